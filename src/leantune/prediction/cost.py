"""The bill of a config before it is paid: memory, FLOPs and hours of every run, on a named GPU.

Memory and the FLOPs of a training step are predicted without weights and without data. A run's
FLOPs are those of its steps, with every sequence as long as the task allows, and of its
evaluations, whose forward pass counts as a third of a step's forward and backward pass. Its hours
are FLOPs / (the card's dense peak x efficiency), one run at a time on a card. Left out: loading,
attaching, export, a method's hooks, and decoding token by token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leantune.errors import BadInput
from leantune.files.text import bytes_text, csv_text, text_table
from leantune.prediction import cards, many
from leantune.spec.cells import Cell, resolve_cell
from leantune.spec.config import TIMED_SETTINGS, expand, settings_for
from leantune.spec.stacks import Part
from leantune.spec.trials import planned_trials

Row = dict[str, Any]

COLUMNS = (
    *(
        "what",
        "grids",
        "model",
        "task",
        "method",
        "runs",
        "batch",
        "seq",
        "steps",
        "dtype",
        "status",
        "reason",
    ),
    *("memory_bytes", "smallest_card", "flops_per_step", "flops", "hours"),
)
_RATES = ("lr", "lr_scale")  # settings that no allocation and no FLOP depends on
_SHAPE = (
    "length",
    "dtype",
    "checkpointing",
    "clip",
)  # of the training settings, those that some depend on


@dataclass(frozen=True)
class Item:
    """A run, or several of one cell."""

    what: str  # cell | trial | timing
    cell: Cell
    grids: tuple[str, ...]  # those of the config that contain it
    runs: int = 1
    not_run: str | None = None  # why nobody can start it


@dataclass(frozen=True)
class Bill:
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
        chosen = {
            name: [row for row in self.rows if name in row["grids"]] for name in self.grids
        } | {"all": self.rows}
        return [{"grid": name, **_total(rows)} for name, rows in chosen.items()]


def items(config: Mapping[str, Any]) -> list[Item]:
    """Every run that a validated config asks for, with its tuning trials and its comparisons of
    step times, and the cells of its blocks with `not_run`. Raises BadInput for a wrong word in the
    config."""
    found: dict[tuple[str, str], Item] = {}

    def add(what: str, cell: Cell, grid: str | None, not_run: str | None = None) -> None:
        grids = () if grid is None else (grid,)
        former = found.setdefault(
            (what, cell.record_path), Item(what, cell, grids, not_run=not_run)
        )
        if not set(grids) <= set(former.grids):
            found[what, cell.record_path] = replace(former, grids=(*former.grids, *grids))

    for block in config["cells"]:
        not_run, grid = block.get("not_run"), block.get("grid")
        runnable = {name: setting for name, setting in block.items() if name != "not_run"}
        alone = {**config, "cells": [runnable]}
        for cell in expand(alone):
            add("cell", cell, grid, not_run)
        for trial in (cell for cells in planned_trials(alone).values() for cell in cells):
            add("trial", trial, grid, not_run)
    return [
        *found.values(),
        *(item for block in config["timing"] for item in _timed(config, block)),
    ]


def _timed(config: Mapping[str, Any], block: Mapping[str, Any]) -> list[Item]:
    """The cells that take turns for a block of `timing`, each as often as there are rounds."""
    grids = (block["grid"],) if "grid" in block else ()
    found = []
    for model in block["models"]:
        for task in block["tasks"]:
            for method in dict.fromkeys(["full", *block["methods"]]):
                settings = {**TIMED_SETTINGS, **settings_for(config, block, method, task)}
                cell = resolve_cell(
                    model,
                    task,
                    method,
                    device=config["device"],
                    overrides=settings,
                    on=config["hardware"],
                )
                found.append(Item("timing", cell, grids, block.get("rounds", 3)))
    return found


def draw_up(
    config: Mapping[str, Any],
    gpu: str,
    efficiency: float = cards.EFFICIENCY,
    under: int | None = None,
) -> Bill:
    """The bill for one GPU by name. A run that needs more memory than `under` bytes, or without it
    than the GPU has, is `too large`; one that cannot be predicted is `unsupported`, both with the
    reason.

    Raises BadInput for a GPU whose peak is not known.
    """
    if gpu not in cards.PEAK_TFLOPS:
        raise BadInput(
            f"--gpu '{gpu}' is no card whose peak is known; known: {', '.join(cards.PEAK_TFLOPS)}"
        )
    limit = cards.usable_bytes(gpu) if under is None else under
    asked: list[tuple[Item, str]] = []
    asks: dict[str, tuple[Cell, many.Ask]] = {}
    for item in items(config):
        ask = _ask(item.cell)
        asked.append((item, _key(item.cell, ask)))
        if item.cell.model_name != "none":  # a control without a model
            asks.setdefault(_key(item.cell, ask), (item.cell, ask))
    answers: dict[str, Row] = {}
    with many.progress(len(asks)) as told:
        for name, (cell, ask) in asks.items():
            answers[name] = many.answer(ask)
            told({**answers[name], "method": cell.method})
    rows: dict[str, Row] = {}
    for item, name in asked:
        row = _row(item, answers.get(name), gpu, efficiency, limit)
        former = rows.setdefault(json.dumps({**row, "runs": 0}), {**row, "runs": 0})
        former["runs"] += item.runs
    grids = dict.fromkeys(block["grid"] for block in config["cells"] if "grid" in block)
    return Bill(gpu, efficiency, limit, list(grids), list(rows.values()), len(asks))


def _ask(cell: Cell) -> many.Ask:
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
    micro, repeats = _micro_batch(cell), min(2, cell.training["accumulate"])
    training = {name: cell.training[name] for name in _SHAPE}
    training |= {"batch": micro * repeats, "accumulate": repeats}
    stack = "+".join(part.plugin.name for part in cell.parts)
    words = {"task": cell.task.name, "settings": settings, "training": training}
    return many.Ask(cell.model.name, stack, micro * repeats, cell.training["length"], words)


def _declared(part: Part, task: str) -> dict[str, Any]:
    """A part's settings. Without data a vocabulary must be declared: a point called as the task is
    (`sst2` for `glue-sst2`) holds what was published about its data."""
    published = part.plugin.spec.points.get(task.rpartition("-")[2], {})
    return {**part.params, **(published if part.slot == "vocabulary" and not part.point else {})}


def _key(cell: Cell, ask: many.Ask) -> str:
    """What a prediction depends on; equal keys share one."""
    kind = cell.task.spec.kind
    return json.dumps(
        [ask.model, ask.method, kind, ask.words["settings"], ask.words["training"]], sort_keys=True
    )


def _micro_batch(cell: Cell) -> int:
    return max(1, cell.training["batch"] // cell.training["accumulate"])


def _row(item: Item, answer: Row | None, gpu: str, efficiency: float, limit: int) -> Row:
    cell = item.cell
    training = cell.training
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
    a_pass = answer["flops_per_step"] / min(
        2, training["accumulate"]
    )  # of a micro-batch, there and back
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
        return {**row, "status": "not_run", "reason": item.not_run}
    if memory > limit:
        return {
            **row,
            "status": "too large",
            "reason": f"needs {bytes_text(memory)}, above {bytes_text(limit)}",
        }
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
        for status in ("too large", "unsupported", "not_run")
    }
    return {
        "runs": sum(row["runs"] for row in counted),
        "flops": sum(row["runs"] * row["flops"] for row in counted),
        "hours": sum(row["runs"] * row["hours"] for row in counted),
        "longest_hours": max((row["hours"] for row in counted), default=0.0),
        "largest_bytes": max((row["memory_bytes"] for row in counted), default=0),
        **others,
    }


def table(bill: Bill) -> str:
    """The rows as CSV."""
    return csv_text([{**row, "grids": " ".join(row["grids"])} for row in bill.rows], COLUMNS)


def describe(bill: Bill) -> str:
    """The bill for people: a line for each row, what is left out and why, and the totals."""
    columns = (
        "model",
        "task",
        "method",
        "what",
        "runs",
        "batch",
        "seq",
        "steps",
        "memory",
        "card",
        "PFLOP",
        "hours",
    )
    lines = [
        [
            *(
                row[name]
                for name in ("model", "task", "method", "what", "runs", "batch", "seq", "steps")
            ),
            *(bytes_text(row["memory_bytes"]), row["smallest_card"], *_work(row)),
        ]
        for row in bill.rows
        if row["status"] == "ok"
    ]
    parts = [
        f"On one {bill.gpu} at {bill.efficiency:.0%} of its peak; FLOPs and hours are of one run, memory is what the "
        f"allocator reserves and {bytes_text(cards.CONTEXT_BYTES)} for the CUDA context.",
        text_table(columns, lines),
    ]
    for status, title in (
        ("too large", f"left out, above {bytes_text(bill.limit_bytes)}:"),
        ("unsupported", "left out, not predicted:"),
        ("not_run", "not run:"),
    ):
        names: dict[str, list[str]] = {}
        for row in bill.rows:
            if row["status"] == status:
                name = (
                    f"{row['model']} {row['task']} {row['method']} ({row['runs']} x {row['what']})"
                )
                names.setdefault(row["reason"], []).append(name)
        if names:
            parts.append(
                "\n".join([title, *(f"  {', '.join(who)}: {why}" for why, who in names.items())])
            )
    head = (
        "grid",
        "runs",
        "PFLOP",
        "hours",
        "longest run",
        "largest",
        "too large",
        "unsupported",
        "not run",
    )
    totals = [
        [
            *(total["grid"], total["runs"], *_work(total), f"{total['longest_hours']:.2f}"),
            *(
                bytes_text(total["largest_bytes"]),
                total["too_large"],
                total["unsupported"],
                total["not_run"],
            ),
        ]
        for total in bill.totals()
    ]
    return "\n\n".join([*parts, text_table(head, totals)])


def _work(row: Row) -> tuple[str, str]:
    return f"{row['flops'] / 1e15:.3g}", f"{row['hours']:.2f}"
