"""What the view "which method should I use" decides from, as data for the page's script.

`groups` are what was measured. `shapes` are models whose memory was predicted at a batch and
length; their quality is borrowed from the groups of the same kind of task, and the page says so.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from leantune.prediction.cards import CONTEXT_BYTES
from leantune.prediction.paper_scale import BUDGETS_GIB
from leantune.report.data import SHAPE, Content, Leaderboard, Line, kind_of, shape, slug
from leantune.spec import plugins

FIRST = "bert-base"  # the model that the page opens with, where its memory was predicted
FIRST_GIB = 8


def choices(content: Content, summaries: Mapping[str, str]) -> dict[str, Any]:
    """Everything that the selects and sliders choose from; numbers in bytes and seconds.
    `summaries` say in a sentence what a method is."""
    groups = [_group(board, number) for number, board in enumerate(content.leaderboards)]
    rows = itertools.groupby(sorted(content.tables["footprint"], key=shape), key=shape)
    shapes = [_shape(where, list(own), groups) for where, own in rows]
    return {
        "groups": groups,
        "shapes": sorted(shapes, key=lambda one: (one["model"] != FIRST, -len(one["methods"]))),
        "first": FIRST,
        "firstGib": FIRST_GIB,
        "about": {
            name: {"summary": text, "page": f"methods/{quote(slug(name))}.html"}
            for name, text in summaries.items()
        },
    }


def _group(board: Leaderboard, number: int) -> dict[str, Any]:
    return {
        "id": number,
        **{"model": board.model, "task": board.task, "key": board.key, "metric": board.metric},
        "kind": kind_of(board.task),
        "best": board.best["method"] if board.best else None,
        "methods": [_measured(row, board.best) for row in board.rows],
    }


def _measured(row: Line, best: Line | None) -> dict[str, Any]:
    quality = row.number("quality_mean")
    highest = None if best is None else best.number("quality_mean")
    return {
        "name": row["method"],
        "status": row["status"],
        "tier": row.number("tier"),
        **{name: row.number(f"quality_{name}") for name in ("low", "high")},
        "quality": quality,
        "loss": None if quality is None or highest is None else abs(highest - quality),
        "memory": row.number("peak_memory_bytes"),
        "seconds": row.number("step_seconds_median"),
    }


def _shape(
    where: Sequence[str], rows: Sequence[Line], groups: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A model at a batch and length, and the groups that its quality is borrowed from: those of the
    same kind of task in which two methods have a score."""
    told = dict(zip(SHAPE, where, strict=True))
    alike = [
        group
        for group in groups
        if group["kind"] == told["kind"]
        and sum(method["quality"] is not None for method in group["methods"]) > 1
    ]
    measured = {method["name"] for group in alike for method in group["methods"]}
    methods = [_predicted(row, measured) for row in rows]
    return {**told, "evidence": [group["id"] for group in alike], "methods": methods}


def _predicted(row: Line, measured: set[str]) -> dict[str, Any]:
    reserved = row.number("reserved_bytes")
    names = (row["method"], stack_of_quality(row["method"]))
    return {
        "name": row["method"],
        "status": row["status"],
        "reason": row["reason"],
        "evidence": next((name for name in names if name in measured), None),
        "memory": None if reserved is None else reserved + CONTEXT_BYTES,
        "batches": {gib: row.number(f"largest_batch_{gib}gib") for gib in BUDGETS_GIB},
    }


def stack_of_quality(method: str) -> str:
    """The stack whose measured quality stands for this one's: points of the vocabulary slot are
    left out, since they only say which corpus the kept words were counted on. Other points are
    other methods."""
    known = plugins.discover("methods")
    parts = [(part, part.partition("@")[0]) for part in method.split("+")]
    return "+".join(
        name if name in known and plugins.get("methods", name).spec.slot == "vocabulary" else part
        for part, name in parts
    )
