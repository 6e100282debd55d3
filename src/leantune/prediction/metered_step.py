"""A cell's own training loop on fake copies under the meter: exact memory, no weights touched.

Optimizer states exist from the end of the first step. The probe ends with the first step that
leaves as many bytes as it found, since all that follow would repeat it: the second for most
methods, and the third at the latest.
"""

import contextlib
import copy
import inspect
import itertools
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from leantune.api import Batch, Context
from leantune.errors import Unsupported
from leantune.meter.allocator import replay
from leantune.meter.fake_cuda import QuickFakeMode, cuda_path, fake_copies
from leantune.meter.tensors import TensorMeter, optimizer_tensors
from leantune.spec.stacks import stack_name
from leantune.training.loop import Schedule, Watch, train
from leantune.training.stack import Stack

STEPS = 3  # at most


class Steady(Exception):
    """A step left as many bytes as it found."""


class MeterWatch(Watch):
    """Tells a meter where in the training step it is."""

    optimizer: torch.optim.Optimizer
    steps = 0
    _left = -1  # bytes live at the end of the step before

    def __init__(self, meter: TensorMeter) -> None:
        self.meter = meter

    def prepared(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.meter.watch(model, optimizer)

    def mark(self, phase: str) -> None:
        self.meter.mark(phase)

    def step(self, step: int, seconds: float, loss: float) -> None:
        self.steps = step
        if self.meter.live_bytes == self._left:
            raise Steady
        self._left = self.meter.live_bytes


@dataclass(frozen=True)
class Probe:
    """Measures an attached model's training step on fake copies; weights, methods and generators
    stay as they are.

    Called with a real or meta model it returns a record's memory entry: where the numbers are from,
    the fields of `MemoryReading`, the allocator's peaks, FLOPs of one step and the bytes of
    optimizer states. A method that needs values is stepped on real copies on the CPU instead:
    `path` is then `cpu`, and `fallback` says why. Raises Unsupported where it needs values and the
    model is on the meta device.
    """

    stack: Stack
    schedule: Schedule
    ctx: Context
    # sequences and tokens of the longest batch, and the tokens of its targets where they are apart
    # from the inputs (an encoder-decoder model's)
    shape: tuple[int, ...]
    # what a prediction must switch on; a cell's model has it on already
    checkpointing: bool = False
    token_types: bool = False  # whether batches say which of two texts a token is of
    # entries by `structure`
    known: dict[Hashable, dict[str, Any]] = field(default_factory=dict, repr=False)

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Three optimizer steps; one forward pass of a stack that does not train. A model of a
        structure that was measured before is not measured again: memory follows from the structure
        alone, so a cell whose prediction was right pays for one probe only."""
        key = structure(model)
        if key not in self.known:
            self.known[key] = self._measured(model)
        return self.known[key]

    def _measured(self, model: nn.Module) -> dict[str, Any]:
        if not self.stack.trains:
            return self.forward_only(model)
        try:
            return self.fake(model)
        except Unsupported as error:
            if any(p.is_meta for p in model.parameters()):
                raise
            return {**self.real(model), "fallback": str(error)}

    def fake(self, model: nn.Module, cuda: bool = True) -> dict[str, Any]:
        """On fake copies, which take the CUDA path or the CPU's. Raises Unsupported where that
        needs values."""
        with self._fake(cuda):
            return self._steps(*fake_copies(model, self.stack), "cuda-simulated" if cuda else "cpu")

    def real(self, model: nn.Module) -> dict[str, Any]:
        """On real copies on the CPU: as much memory and time as training takes there."""
        with torch.random.fork_rng(devices=[]):
            real, stack = copy.deepcopy((model, self.stack))
            for parameter, copied in zip(model.parameters(), real.parameters(), strict=True):
                # such as the mark of the head, which a copy loses
                copied.__dict__.update(vars(parameter))
            return self._steps(real.to("cpu"), stack, "cpu")

    def _steps(self, model: nn.Module, stack: Stack, path: str) -> dict[str, Any]:
        """Trains `model` itself, until a step leaves as much as it found."""
        schedule = replace(self.schedule, steps=STEPS, checks=0, evaluations=0)
        ctx = replace(self.ctx, probe=True, device="cpu", details={})
        micro_batch = max(1, self.shape[0] // schedule.accumulate)
        batch = self._batch(model, micro_batch)
        meter = TensorMeter()
        watch = MeterWatch(meter)
        with meter, contextlib.suppress(Steady):
            meter.track(batch.values(), "inputs")
            meter.watch(model)
            train(model, stack, itertools.repeat(batch), schedule, ctx, watch)
        # 0-dim tensors are step counters, which some optimizers keep on the host
        states = sum(t.nbytes for t in optimizer_tensors(watch.optimizer) if t.dim())
        return self._entry(meter, meter.flops // watch.steps, states, path)

    def forward_only(self, model: nn.Module) -> dict[str, Any]:
        """One forward pass, for a model that is only evaluated."""
        with self._fake():
            fake, _ = fake_copies(model, self.stack)
            batch = self._batch(model, self.shape[0])
            meter = metered_forward(fake.eval(), batch)
        return self._entry(meter, meter.flops, 0, "cuda-simulated")

    def _batch(self, model: nn.Module, size: int) -> Batch:
        length, *target = self.shape[1:]
        return longest_batch(model, self.ctx.kind, size, length, self.token_types, *target)

    @contextlib.contextmanager
    def _fake(self, cuda: bool = True) -> Iterator[None]:
        path = cuda_path() if cuda else contextlib.nullcontext()
        try:
            with torch.random.fork_rng(devices=[]), QuickFakeMode(), path:
                yield
        except RuntimeError as error:  # of fake tensors, .numpy() and missing kernels alike
            name = stack_name(self.stack.parts)
            what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise Unsupported(f"'{name}' does not run on tensors without values: {what}") from error

    @staticmethod
    def _entry(meter: TensorMeter, flops: int, states: int, path: str) -> dict[str, Any]:
        return {
            "source": "tensors-cpu",
            "path": path,
            "fallback": None,
            **asdict(meter.result()),
            **replay(meter.trace),
            "flops_per_step": flops,
            "optimizer_state_bytes": states,
        }


def structure(model: nn.Module) -> Hashable:
    """What a training step's allocations depend on: the modules' types, and of every tensor its
    shape, strides, dtype, ties and whether it is trained."""
    numbers: dict[int, int] = {}  # a tied tensor is met again, under its first number

    def tensor(t: torch.Tensor | None) -> Hashable:
        if t is None:
            return None
        number = numbers.setdefault(id(t), len(numbers))
        return number, tuple(t.shape), t.stride(), t.dtype, t.requires_grad

    return tuple(
        (
            name,
            # by name: a method may make the same class anew for each model
            tuple(f"{c.__module__}.{c.__qualname__}" for c in type(module).__mro__),
            *((n, tensor(t)) for n, t in [*module._parameters.items(), *module._buffers.items()]),
        )
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


def takes_token_types(model: Any) -> bool:
    """Whether its batches of two texts say which of them a token is of: the tokenizers of BERT and
    DeBERTa do so, those whose models know one type (RoBERTa) or no types (decoders) do not."""
    return getattr(model.config, "type_vocab_size", 1) != 1


def longest_batch(
    model: nn.Module,
    kind: str,
    batch: int,
    length: int,
    token_types: bool = False,
    target: int | None = None,
) -> Batch:
    """A batch of the longest shape, fake under a fake mode. Its mask says padding, as one that
    transformers may drop would cost less. `target` is the tokens of an encoder-decoder model's
    targets, without it as many as its inputs have."""
    ids = torch.ones(batch, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, (length + 1) // 2 :] = 0
    of_examples = {  # one target an example; else there is one a token
        "classification": {"labels": torch.long},
        "regression": {"labels": torch.float32},
        "span": {"start_positions": torch.long, "end_positions": torch.long},
    }.get(kind, {})
    targets = {name: torch.zeros(batch, dtype=dtype) for name, dtype in of_examples.items()}
    if kind == "seq2seq_lm":  # 2 pads in no model: mBART looks for the last token before padding
        targets = {"labels": torch.full((batch, target or length), 2)}
    targets = targets or {"labels": torch.zeros_like(ids)}
    inputs = {"input_ids": ids, "attention_mask": mask, **targets}
    if token_types:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if "next_sentence_label" in inspect.signature(model.forward).parameters:
        inputs["next_sentence_label"] = torch.zeros(batch, dtype=torch.long)  # pre-training BERT
    return inputs
