"""The tables of an output folder as CSV files, and what the gate and publishing ask of them."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from leantune.files.text import csv_text, text_table, write_text
from leantune.results import calibration
from leantune.results.columns import names
from leantune.results.comparable import Entry, Row
from leantune.results.decisions import decisions
from leantune.results.leaderboard import boards, cells, failures, ranked
from leantune.results.load import Results, load
from leantune.results.overall import overall
from leantune.results.pareto import budgets, pareto
from leantune.spec.cells import Cell
from leantune.spec.config import CALIBRATION_LIMITS


def tables(
    entries: Sequence[Entry],
    limits: Mapping[str, float] = CALIBRATION_LIMITS,
    across: Sequence[str] = (),
) -> dict[str, list[Row]]:
    """The rows of every table that is made of records, by the name of its file.

    Keys that differ only in the fields `across` are ranked together. `limits` are those of the
    calibration, whose controls no other table but cells and failures has.
    """
    found = boards(calibration.without_controls(entries), across)
    models = [board for board in found if board.group.model != "none"]
    return {
        "cells": cells(entries),
        "leaderboard": ranked(found),
        "failures": failures(entries),
        "decisions": decisions(models),
        "overall": overall(models),
        "pareto": pareto(models),
        "calibration": calibration.rows(entries, limits),
        "budgets": budgets(models),
    }


def write_tables(
    output: Path,
    expected: Iterable[Cell] = (),
    limits: Mapping[str, float] = CALIBRATION_LIMITS,
    across: Sequence[str] = (),
) -> list[Row]:
    """Write every table made of records into `<output>/tables`; returns the leaderboard's rows.

    Same records, same bytes. Damaged files are named on stderr and in failures.csv, and the tables
    go on without them; `expected` cells that have no record are `missing` there.
    """
    entries = load(output, expected).entries
    for entry in entries:
        if entry.status == "damaged":
            print(f"warning: damaged record: {entry.problem}", file=sys.stderr)
    found = tables(entries, limits, across)
    for name, rows in found.items():
        write_text(output / "tables" / f"{name}.csv", csv_text(rows, names(name)))
    return found["leaderboard"]


def not_allowed(results: Results, allowed: Sequence[str]) -> list[str]:
    """A table, as lines, of the expected cells that ended otherwise than the config allows; empty
    if none did."""
    expected = set(results.expected)
    rows = failures([entry for entry in results.entries if entry.file in expected])
    bad = [row for row in rows if row["status"] not in allowed]
    columns = ("status", "model", "task", "method", "seed", "phase", "reason")
    table = text_table(columns, ([row.get(column) for column in columns] for row in bad))
    statuses = ",".join(sorted({row["status"] for row in bad}))
    return (
        [
            *table.splitlines(),
            f"{len(bad)} of {len(expected)} cells ended with a status that the config does not "
            "allow "
            f"({statuses}); the tables in {results.folder / 'tables'} go without them, "
            f"`leantune rerun --status {statuses}` starts them again",
        ]
        if bad
        else []
    )
