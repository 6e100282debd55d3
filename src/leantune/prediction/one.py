"""Peak memory with no GPU and no weights: a model's architecture on the meta device, attached,
probed.

`predict_names` answers for names, `largest` searches on predictions for what fits into a budget.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from leantune.api import Context, Data, mark_head
from leantune.errors import BadInput, Unsupported
from leantune.models.load import empty_model, enable_checkpointing, parameter_counts, positions
from leantune.prediction import cards
from leantune.prediction.metered_step import STEPS, Probe, takes_token_types
from leantune.spec import plugins
from leantune.spec.cells import TRAINING_DEFAULTS
from leantune.spec.stacks import parse_stack, stack_name, unsupported_reason
from leantune.training.loop import Schedule
from leantune.training.stack import Stack

KINDS = {
    "classification": "classification",
    "mlm": "masked_lm",
    "causal-lm": "causal_lm",
    "span": "span",
}  # of --head
# guesses of `largest` that follow the line of the sizes; then every other one halves what is left
LINES = 6
# bytes that a step on real values takes, as a multiple of the parameters': what must be free for
# one
REAL_STEP = 8


def build(
    spec: Mapping[str, Any],
    stack: Stack,
    ctx: Context,
    labels: int,
    data: Data | None = None,
    device: str = "meta",
    pretraining: bool = False,
) -> nn.Module:
    """The model with the stack attached, on the meta device or with random values on the CPU.

    Raises BadInput for a missing declared shape, Unsupported where attaching needs values that meta
    has not.
    """
    model = empty_model(spec, ctx.kind, labels, device, pretraining)
    mark_head(model, ctx.kind)
    try:
        with torch.device(device):
            model, _ = stack.attach(model, data, replace(ctx, probe=True, details={}))
    except RuntimeError as error:  # what torch raises where an operator needs values
        if device != "meta":
            raise
        what = str(error).splitlines()[0][:200]
        raise Unsupported(
            f"'{stack_name(stack.parts)}' does not attach without values: {what}"
        ) from error
    return model


def predict_cell(
    spec: Mapping[str, Any], stack: Stack, probe: Probe, labels: int, data: Data
) -> dict[str, Any]:
    """A cell's prediction for its record; null with a reason where the shapes depend on values not
    declared."""
    try:
        model = build(spec, stack, probe.ctx, labels, data)
        if probe.checkpointing:
            enable_checkpointing(model)
        reading = probe(model) if stack.trains else probe.forward_only(model)
    except (BadInput, Unsupported) as error:
        return {"peak_bytes": None, "reason": str(error)}
    return {
        k: reading[k]
        for k in ("peak_bytes", "peak_phase", "by_kind", "allocated_bytes", "reserved_bytes")
    }


def predict_names(
    model: str,
    method: str,
    *,
    task: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    head: str | None = None,
    dtype: str | None = None,
    settings: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `leantune predict --json` prints. Raises BadInput naming the wrong word, Unsupported for
    a stack that the model or the kind of task does not do.

    Bytes: `peak_bytes` (live tensors of a training step, in `peak_phase`), `by_kind` (adds up to
    the peak), `allocated_bytes` and `reserved_bytes` (of the CUDA caching allocator, simulated),
    `optimizer_state_bytes` (0-dim tensors left out). Counts: `parameters` with `total`, `trainable`
    (without the head) and `head`, `flops_per_step`. `fits` is by card. `path` is `cuda-simulated`,
    or `cpu` where real tensors were needed and `fallback` says why. `seconds` is what the
    prediction took.

    `dtype` is that of the weights (and so of everything): bf16 is pure bf16, not autocast. Without
    it a task's own training is predicted (fp32 weights, under bf16 autocast where the task says
    so), else fp32. `training` holds settings in place of the task's own.
    """
    started = time.perf_counter()
    plugin = plugins.get("models", model)
    of_task: Mapping[str, Any] = {}
    kind: str
    if task is not None:
        task_plugin = plugins.get("tasks", task)
        of_task, kind = task_plugin.raw["training"], task_plugin.spec.kind
        pairs = bool(task_plugin.spec.dataset and task_plugin.spec.dataset.pair)
    else:
        kind, pairs = _default_kind(plugin.raw, head), False
    training = {**TRAINING_DEFAULTS, **of_task, **(training or {})}
    batch = training.get("batch") if batch is None else batch
    length = training.get("length") if length is None else length
    if batch is None or length is None:
        raise BadInput("give --task, or --batch and --seq")
    _check_shape(plugin.raw, batch, length)
    parts = parse_stack(method, kind, settings)
    if parts[0].slot == "control":
        raise BadInput(f"'{method}' is a control without a model; there is nothing to predict")
    reason = unsupported_reason(parts, plugin, kind)
    if reason is not None:
        raise Unsupported(reason)
    stack = Stack(parts)
    ctx = Context(
        kind=kind,
        family=plugin.spec.family,
        steps=STEPS,
        head_lr=training["head_lr"],
        seed=0,
        device="cpu",
        batch=batch,
        length=length,
        cache=Path(),
        probe=True,
    )
    autocast = task is not None and dtype is None and training["dtype"] == "bf16"
    schedule = replace(
        Schedule.from_training({**training, "steps": STEPS}), dtype="bf16" if autocast else "fp32"
    )
    probe = Probe(stack, schedule, ctx, (batch, length))

    def predicted(device: str) -> tuple[nn.Module, dict[str, Any]]:
        built = build(plugin.raw, stack, ctx, 2, None, device, pretraining=head == "pretraining")
        if training["checkpointing"]:
            enable_checkpointing(built)
        if dtype == "bf16":
            built = built.to(torch.bfloat16)
        typed = replace(probe, token_types=(pairs or kind == "span") and takes_token_types(built))
        return built, typed(built) if stack.trains else typed.forward_only(built)

    try:
        built, reading = predicted("meta")
    except Unsupported as error:
        _check_room(plugin.raw, str(error))
        built, reading = predicted("cpu")
    return {
        "model": model,
        "method": stack_name(parts),
        "point": "+".join(p.point for p in parts if p.point) or None,
        "batch": batch,
        "seq": length,
        "dtype": "bf16-autocast" if autocast else dtype or "fp32",
        **{k: reading[k] for k in ("path", "peak_bytes", "peak_phase", "by_kind")},
        "parameters": parameter_counts(built),
        **{k: reading[k] for k in ("optimizer_state_bytes", "allocated_bytes", "reserved_bytes")},
        "fits": cards.fits(reading["reserved_bytes"]),
        "flops_per_step": reading["flops_per_step"],
        "fallback": reading["fallback"],  # why real tensors were needed, or null
        "seconds": round(time.perf_counter() - started, 2),
        "kind": kind,
    }


def largest_shapes(budget: int, model: str, method: str, **words: Any) -> dict[str, Any]:
    """The largest batch at the given length, and the longest sequence at the given batch, whose
    reserved bytes stay within `budget` bytes: one of them where only length or batch is given, both
    with a task. Takes `predict_names`'s words. Raises BadInput where the smallest does not fit."""
    given = {
        "batch": 1,
        "length": 1,
        **_task_shape(words.get("task")),
        **{k: v for k, v in words.items() if v},
    }
    longest = positions(plugins.get("models", model).raw)
    found: dict[str, Any] = {"budget_bytes": budget}
    for name, other, limit in (("batch", "length", None), ("length", "batch", longest)):
        if other not in words and not words.get("task"):
            continue

        def reserved(n: int, name: str = name) -> int:
            return int(predict_names(model, method, **{**given, name: n})["reserved_bytes"])

        best = largest(reserved, budget, limit)
        if best is None:
            raise BadInput(
                f"'{method}' on '{model}' with {name} 1 and {other} {given[other]} reserves "
                f"{reserved(1) / 2**30:.2f} GiB; the budget of {budget / 2**30:.2f} GiB is too small"
            )
        found["largest_batch" if name == "batch" else "longest_seq"] = best
    return found


def largest_batches(budgets: Sequence[int], model: str, method: str, **words: Any) -> list[int]:
    """For each budget in bytes, the largest batch whose reserved bytes stay within it; 0 where one
    sequence's do not. Takes `predict_names`'s words."""

    def reserved(batch: int) -> int:
        return int(predict_names(model, method, **{**words, "batch": batch})["reserved_bytes"])

    sizes: dict[int, int] = {}
    return [largest(reserved, budget, sizes=sizes) or 0 for budget in budgets]


def _task_shape(task: str | None) -> dict[str, int]:
    training = plugins.get("tasks", task).raw["training"] if task else {}
    return {name: training[name] for name in ("batch", "length") if name in training}


def largest(
    size: Callable[[int], int],
    budget: int,
    limit: int | None = None,
    sizes: dict[int, int] | None = None,
) -> int | None:
    """The largest n from 1 to `limit` with `size(n) <= budget`, or None. `size` grows nearly in
    proportion, with small dips (segments of the allocator), so the two numbers above the first that
    does not fit are tried too. `sizes` are those known already, and takes the new ones."""
    sizes = {} if sizes is None else sizes

    def fits(n: int) -> bool:
        if n not in sizes:
            sizes[n] = size(n)
        return sizes[n] <= budget

    if not fits(1):
        return None
    low, high = 1, None if limit is None else limit + 1  # low fits, high does not
    for turn in itertools.count():
        if high is not None and high - low <= 1:
            break
        guess = 4 * low if high is None else (low + high) // 2
        near = min(sizes, key=lambda n: (abs(sizes[n] - budget), -n))
        if near > 1 and (
            turn < LINES or turn % 2
        ):  # along the line through n = 1 and the size nearest to the budget
            slope = (sizes[near] - sizes[1]) / (near - 1)
            guess = near + int((budget - sizes[near]) // slope) if slope > 0 else guess
            guess = max(low + 1, min(guess, 64 * low if high is None else high - 1))
        low, high = (guess, high) if fits(guess) else (low, guess)
    dips = [n for n in (low + 2, low + 3) if (limit is None or n <= limit) and fits(n)]
    return max([low, *dips])


def _default_kind(spec: Mapping[str, Any], head: str | None) -> str:
    kinds = spec["kinds"]
    if head == "pretraining":
        return "causal_lm" if "causal_lm" in kinds else "masked_lm"
    kind = (
        KINDS[head]
        if head
        else next(k for k in ("causal_lm", "classification", "masked_lm") if k in kinds)
    )
    if kind not in spec["kinds"]:
        raise BadInput(
            f"model '{spec['name']}' has no {head or kind} head; it does {', '.join(spec['kinds'])}"
        )
    return kind


def _check_room(spec: Mapping[str, Any], reason: str) -> None:
    """Raises Unsupported where a step on real values, in place of one without, would not fit on
    this machine."""
    need, free = REAL_STEP * 4 * spec["parameters"], psutil.virtual_memory().available
    if need > free:
        raise Unsupported(
            f"{reason}; a step on real values needs about {need / 2**30:.0f} GiB for '{spec['name']}', and "
            f"{free / 2**30:.0f} GiB are free here"
        )


def _check_shape(spec: Mapping[str, Any], batch: int, length: int) -> None:
    longest = positions(spec)
    if batch < 1 or length < 1:
        raise BadInput(f"batch {batch} and sequence length {length} must both be at least 1")
    if longest is not None and length > longest:
        raise BadInput(
            f"model '{spec['name']}' has {longest} positions; --seq {length} is too long"
        )


def describe(result: Mapping[str, Any]) -> str:
    """A prediction for people: the peak, what it is made of, and when."""
    mib = 2**20
    on = (
        ", ".join(card for card, fits in result["fits"].items() if fits)
        or "none of the known cards"
    )
    lines = [
        f"{result['method']} on {result['model']}, batch {result['batch']} x {result['seq']}, {result['dtype']}",
        f"  peak            {result['peak_bytes'] / mib:10.1f} MiB, in the {result['peak_phase']} phase",
    ]
    if result["fallback"]:
        lines.append(f"  measured on real tensors, CPU path: {result['fallback']}")
    lines += [
        f"    {kind:<13} {size / mib:10.1f} MiB" for kind, size in result["by_kind"].items() if size
    ]
    lines += [
        f"  reserved        {result['reserved_bytes'] / mib:10.1f} MiB by the CUDA allocator (simulated)",
        f"  fits on         {on}, with {cards.CONTEXT_BYTES / 2**30:g} GiB left for the CUDA context",
        f"  optimizer state {result['optimizer_state_bytes'] / mib:10.1f} MiB",
        f"  trainable       {result['parameters']['trainable']:>10,} of {result['parameters']['total']:,} parameters, "
        f"and {result['parameters']['head']:,} in the head",
    ]
    return "\n".join(lines)


def describe_shapes(found: Mapping[str, Any]) -> str:
    """What fits into a budget, for people."""
    lines = [f"within {found['budget_bytes'] / 2**30:.2f} GiB of reserved memory:"]
    lines += [f"  largest batch     {found['largest_batch']}"] if "largest_batch" in found else []
    lines += (
        [f"  longest sequence  {found['longest_seq']} tokens"] if "longest_seq" in found else []
    )
    return "\n".join(lines)
