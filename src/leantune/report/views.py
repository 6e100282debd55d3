"""The tables of the page: which columns each shows, and their cells as text with units."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from leantune.files.text import bytes_text, count_text, number_text
from leantune.report.data import Line, slug
from leantune.results import columns
from leantune.results.columns import Column
from leantune.spec.stacks import plugin_names

# Numbers as text, by the word under `shown` in results/columns.csv.
FORMATS: dict[str, Callable[[float], str]] = {
    "bytes": bytes_text,
    "ms": lambda seconds: f"{1000 * seconds:.0f} ms",
    "s": "{:.1f} s".format,
    "0": "{:.0f}".format,
    "0.00": "{:.2f}".format,
    "0.000": "{:.3f}".format,
    "k": lambda number: count_text(int(number)),
    "number": number_text,
}
# By view: the CSV file behind it, and the columns that come first.
VIEWS = {
    "leaderboard": (
        "leaderboard",
        "tier method status quality_mean quality_low quality_high quality_metric seeds "
        "peak_memory_bytes peak_vs_full step_seconds_median time_vs_full trainable_parameters "
        "checkpoint_bytes",
    ),
    "cells": (
        "cells",
        "model task method seed trial status quality peak_memory_bytes peak_source "
        "step_seconds_median train_seconds_total trainable_parameters measured_over_predicted key",
    ),
    "runs": (
        "cells",
        "method model task seed trial status quality peak_memory_bytes peak_source "
        "step_seconds_median command",
    ),
    "footprint": (
        "footprint",
        "model method kind batch seq dtype status peak_bytes reserved_bytes smallest_card "
        "trainable_parameters",
    ),
    "batches": (
        "footprint",
        "model method kind seq dtype largest_batch_8gib largest_batch_16gib largest_batch_24gib "
        "largest_batch_48gib largest_batch_80gib",
    ),
    "claims": (
        "claims",
        "method claim verdict published measured expected setting why",
    ),
    "claims of a method": (
        "claims",
        "claim verdict published measured expected setting why command",
    ),
    "failures": ("failures", "status model task method seed phase reason key"),
    "calibration": ("calibration", "check model task expected measured error limit passed why"),
}


def columns_of(view: str) -> list[Column]:
    """The columns of a view, and after them those that its CSV file has beyond its ordered ones, so
    that a new number is seen."""
    csv, names = VIEWS[view]
    ordered = columns.ORDER.get(csv, "").split()
    new = [one for one in columns.of_table(csv) if one.name not in ordered] if ordered else []
    return [*(columns.column(name, view, csv) for name in names.split()), *new]


def table(
    view: str, caption: str, rows: Sequence[Line], *, name: str = "", methods: str = ""
) -> dict[str, Any]:
    """The rows as a table of the templates, with the id `table-<name>`; `name` is the view's where
    none is given. `methods` is the address of the folder of method pages, empty for no links to
    them."""
    shown = columns_of(view)
    cells = [[_cell(row, column, methods) for column in shown] for row in rows]
    found = {"id": name or view, "caption": caption, "csv": VIEWS[view][0]}
    return {**found, "columns": shown, "rows": cells}


def _cell(row: Line, column: Column, methods: str) -> dict[str, Any]:
    """Its text, the number that it is sorted by, and pieces of the text with their addresses."""
    number = row.number(column.name) if column.shown in FORMATS else None
    return {
        "text": row[column.name] if number is None else FORMATS[column.shown](number),
        "order": number,
        "links": method_links(row["method"], methods)
        if methods and column.name == "method"
        else (),
    }


def method_links(method: str, methods: str) -> list[tuple[str, str | None]]:
    """The parts of a stack, each with its page: `svfit@r64+came` is svfit (link), @r64+, came
    (link)."""
    found: list[tuple[str, str | None]] = []
    rest = method
    for part in filter(None, plugin_names(method)):
        before, _, rest = rest.partition(part)
        found += [(before, None), (part, f"{methods}/{quote(slug(part))}.html")]
    return [piece for piece in [*found, (rest, None)] if piece[0]]
