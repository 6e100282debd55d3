"""Peak memory with no GPU and no weights: a model's architecture on the meta device, attached,
probed.

`predict` answers one question, `largest_shapes` searches on predictions for what fits into a
budget.
"""

import functools
import itertools
import time
from collections.abc import Callable, Mapping
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
from leantune.prediction.ask import Ask, Row
from leantune.prediction.metered_step import STEPS, Probe, takes_token_types
from leantune.spec import models
from leantune.spec.stacks import stack_name, unsupported_reason
from leantune.training.loop import Schedule
from leantune.training.stack import Stack

# guesses of `largest` that follow the line of the sizes; then every other one halves what is left
LINES = 6
# bytes that must be free for a step on real values, as a multiple of the parameters' own
REAL_STEP = 8
# what a record keeps of a cell's prediction
OF_CELL = ("peak_bytes", "peak_phase", "by_kind", "allocated_bytes", "reserved_bytes")


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
        entry = probe(model)
    except (BadInput, Unsupported) as error:
        return {"peak_bytes": None, "reason": str(error)}
    return {name: entry[name] for name in OF_CELL}


def predict(ask: Ask) -> Row:
    """What `leantune predict --json` prints. Raises BadInput naming the wrong word, Unsupported for
    a stack that the model or the kind of task does not do.

    Bytes: `peak_bytes` (live tensors of a training step, in `peak_phase`), `by_kind` (adds up to
    the peak), `allocated_bytes` and `reserved_bytes` (of the CUDA caching allocator, simulated),
    `optimizer_state_bytes` (0-dim tensors left out). Counts: `parameters` with `total`, `trainable`
    (without the head) and `head`, `flops_per_step`. `fits` is by card. `path` is `cuda-simulated`,
    or `cpu` where real tensors were needed and `fallback` says why. `seconds` is what the
    prediction took.
    """
    started = time.perf_counter()
    _check(ask)
    training = ask.resolved
    shape = training["batch"], training["length"]
    stack = Stack(ask.parts)
    ctx = Context(
        kind=ask.kind,
        family=ask.plugin.spec.family,
        steps=STEPS,
        head_lr=training["head_lr"],
        seed=0,
        device="cpu",
        batch=shape[0],
        length=shape[1],
        cache=Path(),
        probe=True,
    )
    dtype = "bf16" if ask.precision == "bf16-autocast" else "fp32"
    schedule = Schedule.from_training({**training, "steps": STEPS, "dtype": dtype})
    probe = Probe(stack, schedule, ctx, (*shape, *filter(None, [ask.target])))
    try:
        model, entry = _probed(ask, probe, "meta")
    except Unsupported as error:
        _check_room(ask, str(error))
        model, entry = _probed(ask, probe, "cpu")
    return {
        "model": ask.plugin.name,
        "method": stack_name(ask.parts),
        "point": "+".join(p.point for p in ask.parts if p.point) or None,
        "batch": shape[0],
        "seq": shape[1],
        "dtype": ask.precision,
        **{name: entry[name] for name in ("path", "peak_bytes", "peak_phase", "by_kind")},
        "parameters": parameter_counts(model),
        **{name: entry[name] for name in ("optimizer_state_bytes", *OF_CELL[-2:])},
        "fits": cards.fits(entry["reserved_bytes"]),
        "flops_per_step": entry["flops_per_step"],
        "fallback": entry["fallback"],  # why real tensors were needed, or null
        "seconds": round(time.perf_counter() - started, 2),
        "kind": ask.kind,
    }


def _check(ask: Ask) -> None:
    """Raises what `predict` raises, before a model is built."""
    kinds = ask.plugin.spec.kinds
    if ask.head and ask.task is None and ask.kind not in kinds:
        raise BadInput(f"model '{ask.model}' has no {ask.head} head; it does {', '.join(kinds)}")
    batch, length = (ask.resolved.get(name) for name in ("batch", "length"))
    if batch is None or length is None:
        raise BadInput("give --task, or --batch and --seq")
    if min(batch, length) < 1:
        raise BadInput(f"batch {batch} and sequence length {length} must both be at least 1")
    longest = positions(ask.plugin.raw)
    if longest is not None and length > longest:
        raise BadInput(f"model '{ask.model}' has {longest} positions; --seq {length} is too long")
    if ask.parts[0].slot == "control":
        raise BadInput(f"'{ask.method}' is a control without a model; there is nothing to predict")
    reason = unsupported_reason(ask.parts, ask.plugin, ask.kind)
    if reason is not None:
        raise Unsupported(reason)


def _probed(ask: Ask, probe: Probe, device: str) -> tuple[nn.Module, dict[str, Any]]:
    """The attached model and a step's memory entry."""
    pretraining = ask.head == "pretraining"
    model = build(ask.plugin.raw, probe.stack, probe.ctx, 2, None, device, pretraining)
    if ask.resolved["checkpointing"]:
        enable_checkpointing(model)
    if ask.precision == "bf16":
        model = model.to(torch.bfloat16)
    typed = replace(probe, token_types=ask.two_texts and takes_token_types(model))
    return model, typed(model)


def _check_room(ask: Ask, reason: str) -> None:
    """Raises Unsupported where a step on real values, in place of one without, would not fit on
    this machine."""
    need, free = REAL_STEP * 4 * models.parameters(ask.plugin), psutil.virtual_memory().available
    if need > free:
        raise Unsupported(
            f"{reason}; a step on real values needs about {need / 2**30:.0f} GiB for "
            f"'{ask.model}', and {free / 2**30:.0f} GiB are free here"
        )


# ------------------------------------------------------------------ what fits


def largest_shapes(budget: int, ask: Ask) -> dict[str, Any]:
    """The largest batch at the given length, and the longest sequence at the given batch, whose
    reserved bytes stay within `budget` bytes: one of them where only length or batch is given, both
    with a task. Raises BadInput where the smallest does not fit."""
    given = ask.resolved
    whole = replace(ask, batch=given.get("batch", 1), length=given.get("length", 1))
    longest = positions(ask.plugin.raw)
    found: dict[str, Any] = {"budget_bytes": budget}
    for key, name, other, limit in (
        ("largest_batch", "batch", "length", None),
        ("longest_seq", "length", "batch", longest),
    ):
        if other not in given:
            continue
        sizes: dict[int, int] = {}
        found[key] = largest(functools.partial(_reserved, whole, name), budget, limit, sizes)
        if found[key] is None:
            raise BadInput(
                f"'{ask.method}' on '{ask.model}' with {name} 1 and {other} {given[other]} "
                f"reserves {sizes[1] / 2**30:.2f} GiB; "
                f"the budget of {budget / 2**30:.2f} GiB is too small"
            )
    return found


def largest_batches(ask: Ask) -> list[int]:
    """For each of the budgets, the largest batch whose reserved bytes stay within it; 0 where one
    sequence's do not."""
    sizes: dict[int, int] = {}
    size = functools.partial(_reserved, ask, "batch")
    return [largest(size, budget, sizes=sizes) or 0 for budget in ask.budgets]


def _reserved(ask: Ask, name: str, number: int) -> int:
    shape: dict[str, Any] = {name: number}
    return int(predict(replace(ask, **shape))["reserved_bytes"])


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
        if near > 1 and (turn < LINES or turn % 2):
            # along the line through n = 1 and the size nearest to the budget
            slope = (sizes[near] - sizes[1]) / (near - 1)
            guess = near + int((budget - sizes[near]) // slope) if slope > 0 else guess
            guess = max(low + 1, min(guess, 64 * low if high is None else high - 1))
        low, high = (guess, high) if fits(guess) else (low, guess)
    dips = [n for n in (low + 2, low + 3) if (limit is None or n <= limit) and fits(n)]
    return max([low, *dips])


def describe(row: Row) -> str:
    """A prediction for people: the peak, what it is made of, and when."""
    sizes = {
        name: f"{size / 2**20:10.1f} MiB"
        for name, size in {**row["by_kind"], **row}.items()
        if name in row["by_kind"] or name.endswith("_bytes")
    }
    fitting = [card for card, fits in row["fits"].items() if fits] or ["none of the known cards"]
    counts = row["parameters"]
    fallback = f"  measured on real tensors, CPU path: {row['fallback']}"
    lines = [
        f"{row['method']} on {row['model']}, batch {row['batch']} x {row['seq']}, {row['dtype']}",
        f"  peak            {sizes['peak_bytes']}, in the {row['peak_phase']} phase",
        *([fallback] if row["fallback"] else []),
        *(f"    {kind:<13} {sizes[kind]}" for kind, size in row["by_kind"].items() if size),
        f"  reserved        {sizes['reserved_bytes']} by the CUDA allocator (simulated)",
        f"  fits on         {', '.join(fitting)}, with {cards.CONTEXT_BYTES / 2**30:g} GiB left "
        "for the CUDA context",
        f"  optimizer state {sizes['optimizer_state_bytes']}",
        f"  trainable       {counts['trainable']:>10,} of {counts['total']:,} parameters, "
        f"and {counts['head']:,} in the head",
    ]
    return "\n".join(lines)


def describe_shapes(found: Mapping[str, Any]) -> str:
    """What fits into a budget, for people."""
    searched = {
        "largest_batch": "  largest batch     {}",
        "longest_seq": "  longest sequence  {} tokens",
    }
    lines = [text.format(found[key]) for key, text in searched.items() if key in found]
    budget = f"{found['budget_bytes'] / 2**30:.2f} GiB"
    return "\n".join([f"within {budget} of reserved memory:", *lines])
