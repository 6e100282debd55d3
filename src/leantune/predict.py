"""Peak memory with no GPU and no weights: the cell's own training loop on fake tensors, the CUDA path simulated.

`Probe` measures a model that exists (a cell's, after attach); `predict` builds one from its architecture alone.
Both run three steps at the longest batch; the third is steady, since optimizer states exist from the first on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leantune import models, plan, registry
from leantune.api import Batch, Context, is_head, mark_head
from leantune.errors import BadInput, Unsupported
from leantune.meter.allocator import replay
from leantune.meter.simulate import cuda_path, fake_copy, fake_mode
from leantune.meter.tensors import MemoryReading, TensorMeter, optimizer_tensors
from leantune.stack import Stack
from leantune.train import Schedule, Watch, train

STEPS = 3


class MeterWatch(Watch):
    """Tells a meter where in the training step it is."""

    def __init__(self, meter: TensorMeter) -> None:
        self.meter = meter
        self.optimizer: torch.optim.Optimizer | None = None

    def prepared(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.meter.watch(model, optimizer)

    def mark(self, phase: str) -> None:
        self.meter.mark(phase)


@dataclasses.dataclass(frozen=True)
class Probe:
    """Measures an attached model's training step on fake copies; weights, RNG and optimizer stay as they are."""

    stack: Stack
    schedule: Schedule
    ctx: Context
    shape: tuple[int, int]  # batch, length of the longest batch
    checkpointing: bool = False

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """The memory entry of a record: exact peak, kinds, phases, allocator's view, FLOPs of one step."""
        schedule = dataclasses.replace(self.schedule, steps=STEPS, checks=0, evaluations=0)
        ctx = dataclasses.replace(self.ctx, probe=True, device="cpu", details={})
        with torch.random.fork_rng(devices=[]), fake_mode(), cuda_path():
            copy = fake_copy(model)
            batch = fake_batch(self.ctx.kind, *self.shape)
            meter = TensorMeter()
            watch = MeterWatch(meter)
            with meter:
                meter.track(batch.values(), "inputs")
                meter.watch(copy)
                train(copy, self.stack, itertools.repeat(batch), schedule, ctx, watch)
            states = sum(t.nbytes for t in optimizer_tensors(watch.optimizer) if t.dim()) if watch.optimizer else 0
        return {**_entry(meter.result()), "optimizer_state_bytes": states, **replay(meter.trace)}

    def forward_only(self, model: nn.Module) -> dict[str, Any]:
        """The same for a model that is only evaluated."""
        with torch.random.fork_rng(devices=[]), fake_mode(), cuda_path():
            copy = fake_copy(model).eval()
            batch = fake_batch(self.ctx.kind, *self.shape)
            meter = TensorMeter()
            with meter, torch.no_grad():
                meter.track(batch.values(), "inputs")
                meter.watch(copy)
                meter.mark("forward")
                copy(**batch)
        return {**_entry(meter.result()), "optimizer_state_bytes": 0, **replay(meter.trace)}

    def flops(self, model: nn.Module) -> int:
        """Floating-point operations of one forward and backward pass."""
        with torch.random.fork_rng(devices=[]), fake_mode():
            copy = fake_copy(model).train()
            counter = FlopCounterMode(display=False)
            with counter:
                copy(**fake_batch(self.ctx.kind, *self.shape)).loss.backward()
        return counter.get_total_flops()


def fake_batch(kind: str, batch: int, length: int) -> Batch:
    """A batch of the longest shape with one padded row, so that the attention mask is kept as on real data."""
    mask = torch.ones(batch, length, dtype=torch.long)
    labels = {
        "classification": lambda: torch.zeros(batch, dtype=torch.long),
        "regression": lambda: torch.zeros(batch, dtype=torch.float32),
    }.get(kind, lambda: torch.zeros(batch, length, dtype=torch.long))
    return {"input_ids": torch.ones(batch, length, dtype=torch.long), "attention_mask": mask, "labels": labels()}


def _entry(reading: MemoryReading) -> dict[str, Any]:
    return {"source": "tensors-cpu", "path": "cuda-simulated", **dataclasses.asdict(reading)}


def build(spec: Mapping[str, Any], stack: Stack, ctx: Context, labels: int) -> nn.Module:
    """The model on the meta device with the stack attached. Raises BadInput for a missing declared shape."""
    model = models.empty_model(spec, ctx.kind, labels)
    mark_head(model, ctx.kind)
    with torch.device("meta"):
        model, _ = stack.attach(model, None, dataclasses.replace(ctx, probe=True, details={}))
    return model


def predict_cell(spec: Mapping[str, Any], stack: Stack, probe: Probe, labels: int) -> dict[str, Any]:
    """A cell's prediction for its record; null with a reason where the shapes depend on values not declared."""
    try:
        model = build(spec, stack, probe.ctx, labels)
        reading = probe(model) if stack.trains else probe.forward_only(model)
    except (BadInput, Unsupported) as error:
        return {"peak_bytes": None, "reason": str(error)}
    return {k: reading[k] for k in ("peak_bytes", "peak_phase", "by_kind", "allocated_bytes", "reserved_bytes")}


def predict_names(
    model: str,
    method: str,
    *,
    task: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    head: str | None = None,
    dtype: str = "fp32",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `leantune predict` prints, keys as in the documentation. Raises BadInput naming the wrong word."""
    plugin = registry.get("models", model)
    training = dict(plan.TRAINING_DEFAULTS)
    if task is not None:
        task_plugin = registry.get("tasks", task)
        training |= task_plugin.spec["training"]
        kind = task_plugin.spec["kind"]
    else:
        kind = _default_kind(plugin.spec, head)
    batch, length = batch or training.get("batch"), length or training.get("length")
    if batch is None or length is None:
        raise BadInput("give --task, or --batch and --seq")
    _check_shape(plugin.spec, batch, length)
    parts = registry.parse_stack(method, kind, settings)
    if parts[0].slot == "control":
        raise BadInput(f"'{method}' is a control without a model; there is nothing to predict")
    stack = Stack(parts)
    schedule = dataclasses.replace(Schedule.from_training({**training, "steps": STEPS}), dtype="fp32")
    ctx = Context(
        kind=kind,
        family=plugin.spec["family"],
        steps=STEPS,
        head_lr=training["head_lr"],
        seed=0,
        device="cpu",
        batch=batch,
        length=length,
        cache=Path(),
        probe=True,
    )
    probe = Probe(stack, schedule, ctx, (batch, length))
    empty = build(plugin.spec, stack, ctx, 2)
    if dtype == "bf16":
        empty = empty.to(torch.bfloat16)
    reading = probe(empty) if stack.trains else probe.forward_only(empty)
    unique = {id(p): p for p in empty.parameters()}.values()
    return {
        "model": model,
        "method": registry.stack_name(parts),
        "point": "+".join(p.point for p in parts if p.point) or None,
        "batch": batch,
        "seq": length,
        "dtype": dtype,
        **{k: reading[k] for k in ("path", "peak_bytes", "peak_phase", "by_kind")},
        "parameters": {
            "total": sum(p.numel() for p in unique),
            "trainable": sum(p.numel() for p in unique if p.requires_grad and not is_head(p)),
            "head": sum(p.numel() for p in unique if is_head(p)),
        },
        **{k: reading[k] for k in ("optimizer_state_bytes", "allocated_bytes", "reserved_bytes")},
        "flops_per_step": probe.flops(empty),
    }


def _default_kind(spec: Mapping[str, Any], head: str | None) -> str:
    kinds = {"classification": "classification", "mlm": "masked_lm", "causal-lm": "causal_lm", None: ""}
    kind = kinds[head] or ("causal_lm" if "causal_lm" in spec["kinds"] else "classification")
    if kind not in spec["kinds"]:
        raise BadInput(f"model '{spec['name']}' has no {head} head; it does {', '.join(spec['kinds'])}")
    return kind


def _check_shape(spec: Mapping[str, Any], batch: int, length: int) -> None:
    longest = spec["architecture"].get("max_position_embeddings", spec["architecture"].get("n_positions"))
    if batch < 1 or length < 1:
        raise BadInput(f"batch {batch} and sequence length {length} must both be at least 1")
    if longest is not None and length > longest:
        raise BadInput(f"model '{spec['name']}' has {longest} positions; --seq {length} is too long")


def inference_peak(model: nn.Module, batch: Batch) -> int:
    """Exact peak of a forward pass without gradients, on the batch's own device: bytes."""
    meter = TensorMeter()
    with meter, torch.no_grad():
        meter.track(batch.values(), "inputs")
        meter.watch(model)
        meter.mark("forward")
        model(**batch)
    return meter.result().peak_bytes


def describe(result: Mapping[str, Any]) -> str:
    """A prediction for people: the peak, what it is made of, and when."""
    mib = 2**20
    lines = [
        f"{result['method']} on {result['model']}, batch {result['batch']} x {result['seq']}, {result['dtype']}",
        f"  peak            {result['peak_bytes'] / mib:10.1f} MiB, in the {result['peak_phase']} phase",
    ]
    lines += [f"    {kind:<13} {size / mib:10.1f} MiB" for kind, size in result["by_kind"].items() if size]
    lines += [
        f"  reserved        {result['reserved_bytes'] / mib:10.1f} MiB by the CUDA allocator (simulated)",
        f"  optimizer state {result['optimizer_state_bytes'] / mib:10.1f} MiB",
        f"  trainable       {result['parameters']['trainable']:>10,} of {result['parameters']['total']:,} parameters, "
        f"and {result['parameters']['head']:,} in the head",
    ]
    return "\n".join(lines)
