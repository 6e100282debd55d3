"""The cost of a config before it runs: memory, FLOPs and hours of every run, on a named GPU.

Memory and the FLOPs of a training step are predicted without weights and without data. A run's
FLOPs are those of its steps, with every sequence as long as the task allows, and of its
evaluations, whose forward pass counts as a third of a step's forward and backward pass. Its hours
are FLOPs / (the card's dense peak x efficiency), one run at a time on a card. Left out: loading,
attaching, export, a method's hooks, and decoding token by token.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leantune.errors import BadInput
from leantune.files.text import bytes_text, csv_text, text_table
from leantune.prediction import cards
from leantune.prediction.ask import SHAPE, Ask, Row, answers
from leantune.spec.cells import Cell, resolve_cell
from leantune.spec.config import TIMED_SETTINGS, expand, settings_for
from leantune.spec.stacks import Part
from leantune.spec.trials import planned_trials

if TYPE_CHECKING:
    from leantune.spec.schema import CellsBlock, ConfigFile, TimingBlock

COLUMNS = (
    *("what", "grids", "model", "task", "method", "runs", "batch", "seq", "steps", "dtype"),
    *("status", "reason", "memory_bytes", "smallest_card", "flops_per_step", "flops", "hours"),
)
LEFT_OUT = {  # why a run is not counted: how its list begins
    "too large": "left out, above {limit}:",
    "unsupported": "left out, not predicted:",
    "not_run": "not run:",
}
_RATES = ("lr", "lr_scale")  # settings that no allocation and no FLOP depends on


@dataclass(frozen=True)
class Item:
    """A run, or several of one cell."""

    what: str  # cell | trial | timing
    cell: Cell
    grids: tuple[str, ...]  # those of the config that contain it
    runs: int = 1
    not_run: str | None = None  # why nobody can start it


@dataclass(frozen=True)
class Estimate:
    """The rows of COLUMNS, in the config's order, and what they are for. Runs that differ in their
    seed only, or in what changes no figure, are one row; `flops` and `hours` are those of one of
    them."""

    gpu: str
    efficiency: float
    limit_bytes: int  # a run that needs more is not counted
    grids: list[str]  # of the config, in its order
    rows: list[Row]
    predictions: int  # made; rows of one model, stack, kind and shape share one

    def totals(self) -> list[Row]:
        """Runs, FLOPs and hours of each grid as if it were run alone, then of the whole config
        (`all`), in which runs that grids share count once. `runs`, `flops` and `hours` are of rows
        with status `ok`, the others are counted under their status."""
        chosen = {name: [row for row in self.rows if name in row["grids"]] for name in self.grids}
        return [
            {"grid": name, **_total(rows)} for name, rows in {**chosen, "all": self.rows}.items()
        ]


def items(config: "ConfigFile") -> list[Item]:
    """Every run that a loaded config asks for, with its tuning trials and its comparisons of
    step times, and the cells of its blocks with `not_run`. Raises BadInput for a wrong word in the
    config."""
    found: dict[tuple[str, str], Item] = {}
    timed: list[Item] = []
    for block in config.cells:
        runnable = block.model_copy(update={"not_run": None})
        alone = config.model_copy(update={"cells": [runnable]})
        trials = [cell for cells in planned_trials(alone).values() for cell in cells]
        for cell in [*expand(alone), *trials]:
            what = "cell" if cell.trial is None else "trial"
            new = Item(what, cell, (), not_run=block.not_run)
            former = found.get((what, cell.record_path), new)
            grids = dict.fromkeys([*former.grids, *_grids(block)])
            found[what, cell.record_path] = replace(former, grids=tuple(grids))
    for timing in config.timing:
        methods = dict.fromkeys(["full", *timing.methods])  # they take turns
        for model, task, method in itertools.product(timing.models, timing.tasks, methods):
            settings = {**TIMED_SETTINGS, **settings_for(config, timing, method, task)}
            device, on = config.device, config.hardware
            cell = resolve_cell(model, task, method, device=device, overrides=settings, on=on)
            timed.append(Item("timing", cell, _grids(timing), timing.rounds))
    return [*found.values(), *timed]


def _grids(block: "CellsBlock | TimingBlock") -> tuple[str, ...]:
    return () if block.grid is None else (block.grid,)


def estimate(
    config: "ConfigFile",
    gpu: str,
    efficiency: float = cards.EFFICIENCY,
    under: int | None = None,
) -> Estimate:
    """The cost on one GPU by name. A run that needs more memory than `under` bytes, or without it
    than the GPU has, is `too large`; one that cannot be predicted is `unsupported`, both with the
    reason.

    Raises BadInput for a GPU whose peak is not known.
    """
    if gpu not in cards.PEAK_TFLOPS:
        raise BadInput(
            f"--gpu '{gpu}' is no card whose peak is known; known: {', '.join(cards.PEAK_TFLOPS)}"
        )
    limit = cards.usable_bytes(gpu) if under is None else under
    # a control has no model, so there is nothing to predict
    planned = [
        (item, None if item.cell.model_name == "none" else _ask(item.cell))
        for item in items(config)
    ]
    asks = {ask.hash: ask for _, ask in planned if ask}
    known = dict(zip(asks, answers(list(asks.values())), strict=True))
    rows: dict[str, Row] = {}
    for item, ask in planned:
        row = _row(item, known[ask.hash] if ask else None, gpu, efficiency, limit)
        former = rows.setdefault(json.dumps({**row, "runs": 0}), {**row, "runs": 0})
        former["runs"] += item.runs
    grids = dict.fromkeys(grid for block in config.cells for grid in _grids(block))
    return Estimate(gpu, efficiency, limit, list(grids), list(rows.values()), len(asks))


def _ask(cell: Cell) -> Ask:
    """The prediction for a cell. Every setting is named, so that the points that set them need not
    be.

    Of the micro-batches of a step two are predicted: all after the first find the gradients in
    place.
    """
    settings = {
        f"{part.plugin.name}.{name}": value
        for part in cell.parts
        for name, value in _declared(part, cell.task.name).items()
        if name not in _RATES
    }
    repeats = min(2, cell.training["accumulate"])
    shape = {"batch": _micro_batch(cell) * repeats, "accumulate": repeats}
    return Ask(
        cell.model.word,
        "+".join(part.plugin.name for part in cell.parts),
        task=cell.task.name,
        settings=settings,
        training={**{name: cell.training[name] for name in ("dtype", *SHAPE)}, **shape},
    )


def _declared(part: Part, task: str) -> dict[str, Any]:
    """A part's settings. Without data a vocabulary must be declared: a point called as the task is
    (`sst2` for `glue-sst2`) holds what was published about its data."""
    published = part.plugin.spec.points.get(task.rpartition("-")[2], {})
    return {**part.params, **(published if part.slot == "vocabulary" and not part.point else {})}


def _micro_batch(cell: Cell) -> int:
    return max(1, cell.training["batch"] // cell.training["accumulate"])


def _row(item: Item, answer: Row | None, gpu: str, efficiency: float, limit: int) -> Row:
    cell, training = item.cell, item.cell.training
    row: Row = {
        **dict.fromkeys(COLUMNS),
        "what": item.what,
        "grids": list(item.grids),
        "model": cell.model_name,
        "task": cell.task.name,
        "method": cell.method,
        "runs": item.runs,
        "batch": training["batch"],
        "seq": training["length"],
        "steps": training["steps"],
        "dtype": training["dtype"],
        "status": "ok",
    }
    if answer is None:  # a control, which takes no GPU
        return {**row, "memory_bytes": 0, "flops_per_step": 0, "flops": 0, "hours": 0.0}
    if answer["status"] != "ok":
        return {**row, "status": answer["status"], "reason": answer["reason"]}
    memory = answer["reserved_bytes"] + cards.CONTEXT_BYTES
    # FLOPs of a micro-batch, there and back
    a_pass = answer["flops_per_step"] / min(2, training["accumulate"])
    step = round(a_pass * training["accumulate"])
    trains = all(part.plugin.spec.trains for part in cell.parts)
    forward = a_pass / _micro_batch(cell) / (3 if trains else 1)  # of an example
    flops = (training["steps"] * step if trains else 0) + round(forward * _evaluated(item))
    peak = 1e12 * cards.PEAK_TFLOPS[gpu][training["dtype"]]
    row |= {
        "memory_bytes": memory,
        "smallest_card": cards.smallest(answer["fits"]),
        "flops_per_step": step,
        "flops": flops,
        "hours": flops / (peak * efficiency) / 3600,
    }
    if item.not_run is not None:
        row |= {"status": "not_run", "reason": item.not_run}
    elif memory > limit:
        why = f"needs {bytes_text(memory)}, above {bytes_text(limit)}"
        row |= {"status": "too large", "reason": why}
    return row


def _evaluated(item: Item) -> int:
    """Examples that a run evaluates: the validation split at every point of its curve and for every
    change that `flatness` makes, then what is scored."""
    from leantune.training.flatness import NORMS  # here, since it imports torch

    splits, draws = item.cell.splits, item.cell.flatness
    passes = item.cell.training["evaluations"] + (1 + draws * len(NORMS) if draws else 0)
    return passes * splits["validation"] + splits["validation" if item.what == "trial" else "test"]


def _total(rows: Sequence[Row]) -> Row:
    counted = [row for row in rows if row["status"] == "ok"]
    others = {
        status.replace(" ", "_"): sum(row["runs"] for row in rows if row["status"] == status)
        for status in LEFT_OUT
    }
    return {
        "runs": sum(row["runs"] for row in counted),
        "flops": sum(row["runs"] * row["flops"] for row in counted),
        "hours": sum(row["runs"] * row["hours"] for row in counted),
        "longest_hours": max((row["hours"] for row in counted), default=0.0),
        "largest_bytes": max((row["memory_bytes"] for row in counted), default=0),
        **others,
    }


def table(found: Estimate) -> str:
    """The rows as CSV."""
    return csv_text([{**row, "grids": " ".join(row["grids"])} for row in found.rows], COLUMNS)


def describe(found: Estimate) -> str:
    """The cost for people: a line for each row, what is left out and why, and the totals."""
    named = ("model", "task", "method", "what", "runs", "batch", "seq", "steps")
    counted = [
        [
            *(row[name] for name in named),
            *(bytes_text(row["memory_bytes"]), row["smallest_card"], *_work(row)),
        ]
        for row in found.rows
        if row["status"] == "ok"
    ]
    totals = [
        [
            *(total["grid"], total["runs"], *_work(total), f"{total['longest_hours']:.2f}"),
            bytes_text(total["largest_bytes"]),
            *(total[status.replace(" ", "_")] for status in LEFT_OUT),
        ]
        for total in found.totals()
    ]
    of_totals = ("grid", "runs", "PFLOP", "hours", "longest run", "largest")
    parts = [
        f"On one {found.gpu} at {found.efficiency:.0%} of its peak; FLOPs and hours are of one "
        f"run, memory is what the allocator reserves and {bytes_text(cards.CONTEXT_BYTES)} for "
        "the CUDA context.",
        text_table((*named, "memory", "card", "PFLOP", "hours"), counted),
        *_left_out(found),
        text_table((*of_totals, "too large", "unsupported", "not run"), totals),
    ]
    return "\n\n".join(parts)


def _left_out(found: Estimate) -> list[str]:
    """For each status but ok, the runs that have it, by reason."""
    parts = []
    for status, title in LEFT_OUT.items():
        left = [row for row in found.rows if row["status"] == status]
        names: dict[str, list[str]] = {row["reason"]: [] for row in left}
        for row in left:
            names[row["reason"]].append("{model} {task} {method} ({runs} x {what})".format(**row))
        if names:
            lines = [f"  {', '.join(who)}: {why}" for why, who in names.items()]
            parts.append("\n".join([title.format(limit=bytes_text(found.limit_bytes)), *lines]))
    return parts


def _work(row: Row) -> tuple[str, str]:
    return f"{row['flops'] / 1e15:.3g}", f"{row['hours']:.2f}"
