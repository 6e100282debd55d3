"""What the view "which method should I use" decides from, as data for the page's script.

`groups` are what was measured. `shapes` are models whose memory was predicted at a batch and
length; their quality is borrowed from the groups of the same kind of task, and the page says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from leantune.prediction.cards import CONTEXT_BYTES
from leantune.prediction.paper_scale import BUDGETS_GIB
from leantune.report.data import Group, Results, Row, kind_of, slug
from leantune.spec import plugins

FIRST = "bert-base"  # the model that the page opens with, where its memory was predicted
FIRST_GIB = 8


def choices(results: Results, summaries: Mapping[str, str]) -> dict[str, Any]:
    """Everything that the selects and sliders choose from; numbers in bytes and seconds.
    `summaries` say in a sentence what a method is."""
    groups = [_group(group, number) for number, group in enumerate(results.groups)]
    return {
        "groups": groups,
        "shapes": _shapes(results, groups),
        "first": FIRST,
        "firstGib": FIRST_GIB,
        "about": {
            name: {"summary": text, "page": f"methods/{quote(slug(name))}.html"}
            for name, text in summaries.items()
        },
    }


def _group(group: Group, number: int) -> dict[str, Any]:
    best = None if group.best is None else group.best.number("quality_mean")
    return {
        **{
            "id": number,
            "model": group.model,
            "task": group.task,
            "key": group.key,
            "metric": group.metric,
        },
        "kind": kind_of(group.task),
        "best": None if group.best is None else group.best["method"],
        "methods": [_measured(row, best) for row in group.rows],
    }


def _measured(row: Row, best: float | None) -> dict[str, Any]:
    quality = row.number("quality_mean")
    return {
        "name": row["method"],
        "status": row["status"],
        "tier": row.number("tier"),
        **{name: row.number(f"quality_{name}") for name in ("low", "high")},
        "quality": quality,
        "loss": None if quality is None or best is None else abs(best - quality),
        "memory": row.number("peak_memory_bytes"),
        "seconds": row.number("step_seconds_median"),
    }


def _shapes(results: Results, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    place = lambda row: (row["model"], row["kind"], row["batch"], row["seq"], row["dtype"])  # noqa: E731
    found = []
    for where, rows in itertools.groupby(sorted(results.tables["footprint"], key=place), key=place):
        model, kind, batch, seq, dtype = where
        own = list(rows)
        evidence = [
            g
            for g in groups
            if g["kind"] == kind and sum(m["quality"] is not None for m in g["methods"]) > 1
        ]
        names = {m["name"] for g in evidence for m in g["methods"]}
        found.append(
            {
                **{"model": model, "kind": kind, "batch": batch, "seq": seq, "dtype": dtype},
                "evidence": [g["id"] for g in evidence],
                "methods": [_predicted(row, names) for row in own],
            }
        )
    return sorted(found, key=lambda shape: (shape["model"] != FIRST, -len(shape["methods"])))


def _predicted(row: Row, measured: set[str]) -> dict[str, Any]:
    reserved = row.number("reserved_bytes")
    alike = evidence_name(row["method"])
    return {
        "name": row["method"],
        "status": row["status"],
        "reason": row["reason"],
        "evidence": next((name for name in (row["method"], alike) if name in measured), None),
        "memory": None if reserved is None else reserved + CONTEXT_BYTES,
        "batches": {gib: row.number(f"largest_batch_{gib}gib") for gib in BUDGETS_GIB},
    }


def evidence_name(method: str) -> str:
    """The stack whose measured quality stands for this one's: points of the vocabulary slot are
    left out, since they only say which corpus the kept words were counted on. Other points are
    other methods."""
    found = []
    for part in method.split("+"):
        name, _, _ = part.partition("@")
        known = name in plugins.discover("methods")
        found.append(
            name if known and plugins.get("methods", name).spec.slot == "vocabulary" else part
        )
    return "+".join(found)
