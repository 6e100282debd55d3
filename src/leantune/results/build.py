"""The tables of an output folder: CSV files, the README leaderboard, the gate, and publishing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from leantune.files.text import csv_text, text_table, write_text
from leantune.results import calibration, decisions, overall, pareto
from leantune.results.comparable import Row
from leantune.results.leaderboard import (
    CELL_COLUMNS,
    FAILURE_COLUMNS,
    LEADERBOARD_COLUMNS,
    boards,
    cells,
    failures,
    ranked,
)
from leantune.results.load import expected_entries, record_file
from leantune.spec.cells import Cell
from leantune.spec.config import CALIBRATION_LIMITS


def write_tables(
    output: Path,
    expected: Iterable[Cell] = (),
    limits: Mapping[str, float] = CALIBRATION_LIMITS,
    across: Sequence[str] = (),
) -> list[Row]:
    """Write every table made of records into `<output>/tables`; returns the leaderboard's rows.

    Same records, same bytes. Damaged files are named on stderr and in failures.csv, and the tables
    go on without them; `expected` cells that have no record are `missing` there. Keys that differ
    only in the fields `across` are ranked together. `limits` are those of the calibration, whose
    controls no other table but cells.csv and failures.csv has.
    """
    entries = expected_entries(output, expected)
    for entry in entries:
        if entry.status == "damaged":
            print(f"warning: damaged record: {entry.problem}", file=sys.stderr)
    found = boards(calibration.without_controls(entries), across)
    rows = ranked(found)
    for name, table, columns in (
        ("cells", cells(entries), CELL_COLUMNS),
        ("leaderboard", rows, LEADERBOARD_COLUMNS),
        ("failures", failures(entries), FAILURE_COLUMNS),
        ("decisions", decisions.decisions(found), decisions.COLUMNS),
        ("overall", overall.overall(found), overall.COLUMNS),
        ("pareto", pareto.pareto(found), pareto.PARETO_COLUMNS),
        ("calibration", calibration.rows(entries, limits), calibration.COLUMNS),
        ("budgets", pareto.budgets(found), pareto.BUDGET_COLUMNS),
    ):
        write_text(output / "tables" / f"{name}.csv", csv_text(table, columns))
    return rows


def not_allowed(output: Path, expected: Iterable[Cell], allowed: Sequence[str]) -> list[str]:
    """A table, as lines, of the expected cells that ended otherwise than the config allows; empty
    if none did."""
    cells = list(expected)
    files = {record_file(cell) for cell in cells}
    entries = [entry for entry in expected_entries(output, cells) if entry.file in files]
    bad = [row for row in failures(entries) if row["status"] not in allowed]
    if not bad:
        return []
    columns = ("status", "model", "task", "method", "seed", "phase", "reason")
    table = text_table(columns, ([row.get(column) for column in columns] for row in bad))
    statuses = ",".join(sorted({row["status"] for row in bad}))
    return [
        *table.splitlines(),
        f"{len(bad)} of {len(cells)} cells ended with a status that the config does not allow ({statuses}); "
        f"the tables in {output / 'tables'} go without them, `leantune rerun --status {statuses}` starts them again",
    ]


def miscalibrated(output: Path, limits: Mapping[str, float]) -> list[Row]:
    """The rows of calibration.csv that failed: what the control cells say is wrong with the meter."""
    return calibration.failed(calibration.rows(expected_entries(output, ()), limits))


# ------------------------------------------------------------------ helpers
