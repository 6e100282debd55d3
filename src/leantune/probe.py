"""A cell's own training loop on fake copies under the meter: exact memory, no weights touched.

Optimizer states exist from the end of the first step. The probe ends with the first step that leaves as many bytes
as it found, since all that follow would repeat it: the second for most methods, and the third at the latest.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses import fake_tensor

from leantune.api import Batch, Context
from leantune.errors import Unsupported
from leantune.meter.allocator import replay
from leantune.meter.simulate import cuda_path, fake_copies, fake_mode
from leantune.meter.tensors import TensorMeter, optimizer_tensors
from leantune.registry import stack_name
from leantune.stack import Stack
from leantune.train import Schedule, Watch, train

STEPS = 3  # at most
NEEDS_VALUES = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)


class Steady(Exception):
    """A step left as many bytes as it found."""


class MeterWatch(Watch):
    """Tells a meter where in the training step it is."""

    def __init__(self, meter: TensorMeter) -> None:
        self.meter = meter
        self.optimizer_state_bytes = 0  # without 0-dim tensors (step counters)
        self.steps = 0
        self._left = -1  # bytes live at the end of the step before
        self._optimizer: torch.optim.Optimizer | None = None

    def prepared(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.meter.watch(model, optimizer)

    def mark(self, phase: str) -> None:
        self.meter.mark(phase)

    def step(self, step: int, seconds: float, loss: float) -> None:
        if self._optimizer is not None:
            self.optimizer_state_bytes = sum(t.nbytes for t in optimizer_tensors(self._optimizer) if t.dim())
        self.steps = step
        if self.meter.live_bytes == self._left:
            raise Steady
        self._left = self.meter.live_bytes


@dataclass(frozen=True)
class Probe:
    """Measures an attached model's training step on fake copies; weights, methods and generators stay as they are.

    Called with a real or meta model it returns a record's memory entry: where the numbers are from, the fields of
    `MemoryReading`, the allocator's peaks, FLOPs of one step and the bytes of optimizer states.
    Raises Unsupported where the method needs values that fake tensors do not have.
    """

    stack: Stack
    schedule: Schedule
    ctx: Context
    shape: tuple[int, int]  # sequences and tokens of the longest batch
    checkpointing: bool = False  # what a prediction must switch on; a cell's model has it on already
    known: dict[Hashable, dict[str, Any]] = field(default_factory=dict, repr=False)  # entries by `structure`

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Three optimizer steps. A model of a structure that was measured before is not measured again: memory
        follows from the structure alone, so a cell whose prediction was right pays for one probe only."""
        key = structure(model)
        if key not in self.known:
            self.known[key] = self._measured(model)
        return self.known[key]

    def _measured(self, model: nn.Module) -> dict[str, Any]:
        schedule = replace(self.schedule, steps=STEPS, checks=0, evaluations=0)
        ctx = replace(self.ctx, probe=True, device="cpu", details={})
        micro_batch = max(1, self.shape[0] // schedule.accumulate)
        with self._fake():
            copy, stack = fake_copies(model, self.stack)
            batch = fake_batch(self.ctx.kind, micro_batch, self.shape[1])
            meter = TensorMeter()
            watch = MeterWatch(meter)
            with meter, contextlib.suppress(Steady):
                meter.track(batch.values(), "inputs")
                meter.watch(copy)
                train(copy, stack, itertools.repeat(batch), schedule, ctx, watch)
        return self._entry(meter, meter.flops // watch.steps, watch.optimizer_state_bytes)

    def forward_only(self, model: nn.Module) -> dict[str, Any]:
        """One forward pass, for a model that is only evaluated."""
        with self._fake():
            copy, _ = fake_copies(model, self.stack)
            batch = fake_batch(self.ctx.kind, *self.shape)
            meter = metered_forward(copy.eval(), batch)
        return self._entry(meter, meter.flops, 0)

    @contextlib.contextmanager
    def _fake(self) -> Iterator[None]:
        try:
            with torch.random.fork_rng(devices=[]), fake_mode(), cuda_path():
                yield
        except NEEDS_VALUES as error:
            name = stack_name(self.stack.parts)
            raise Unsupported(
                f"'{name}' needs tensor values at {error.args[0] if error.args else type(error).__name__}, which fake "
                "tensors do not have; run the cell to measure its memory"
            ) from error

    @staticmethod
    def _entry(meter: TensorMeter, flops: int, states: int) -> dict[str, Any]:
        return {
            "source": "tensors-cpu",
            "path": "cuda-simulated",
            **asdict(meter.result()),
            **replay(meter.trace),
            "flops_per_step": flops,
            "optimizer_state_bytes": states,
        }


def structure(model: nn.Module) -> Hashable:
    """What a training step's allocations depend on: the modules' types, and of every tensor its shape, strides,
    dtype, ties and whether it is trained."""
    numbers: dict[int, int] = {}

    def tensor(t: torch.Tensor | None) -> Hashable:
        if t is None:
            return None
        number = numbers.setdefault(id(t), len(numbers))
        return number, tuple(t.shape), t.stride(), t.dtype, t.requires_grad

    return tuple(
        (name, type(module), *((n, tensor(t)) for n, t in [*module._parameters.items(), *module._buffers.items()]))
        for name, module in model.named_modules()
    )


def metered_forward(model: nn.Module, batch: Batch) -> TensorMeter:
    """A forward pass without gradients under a meter, on the model's own tensors, real or fake."""
    meter = TensorMeter()
    with meter, torch.no_grad():
        meter.track(batch.values(), "inputs")
        meter.watch(model)
        meter.mark("forward")
        model(**batch)
    return meter


def fake_batch(kind: str, batch: int, length: int) -> Batch:
    """A batch of the longest shape, made under a fake mode. Its mask is kept, as that of a batch with padding is."""
    ids = torch.ones(batch, length, dtype=torch.long)
    labels = {
        "classification": lambda: torch.zeros(batch, dtype=torch.long),
        "regression": lambda: torch.zeros(batch, dtype=torch.float32),
    }.get(kind, lambda: torch.zeros_like(ids))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels()}
