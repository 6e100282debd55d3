"""The tables of an output folder: CSV files, the README leaderboard, the gate, and publishing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from leantune import calibration, compare, decisions, fronts, overall, plan
from leantune.errors import BadInput
from leantune.groups import Entry, Record, Row
from leantune.published import compare_records, markdown_leaderboard, update_readme
from leantune.record import read_records
from leantune.rows import (
    CELL_COLUMNS,
    FAILURE_COLUMNS,
    LEADERBOARD_COLUMNS,
    boards,
    cells,
    failures,
    ranked,
    read_entries,
)
from leantune.text import csv_text, text_table, write_text

__all__ = [
    "compare_published",
    "csv_text",
    "markdown_leaderboard",
    "not_allowed",
    "publish",
    "remove",
    "update_readme",
    "write_tables",
    "write_text",
]


def write_tables(
    output: Path,
    expected: Iterable[plan.Cell] = (),
    limits: Mapping[str, float] = plan.CALIBRATION_LIMITS,
    across: Sequence[str] = (),
) -> list[Row]:
    """Write every table made of records into `<output>/tables`; returns the leaderboard's rows.

    Same records, same bytes. Damaged files are named on stderr and in failures.csv, and the tables go on
    without them; `expected` cells that have no record are `missing` there. Keys that differ only in the fields
    `across` are ranked together. `limits` are those of the calibration, whose controls no other table but cells.csv
    and failures.csv has.
    """
    entries = _entries(output, expected)
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
        ("pareto", fronts.pareto(found), fronts.PARETO_COLUMNS),
        ("calibration", calibration.rows(entries, limits), calibration.COLUMNS),
        ("budgets", fronts.budgets(found), fronts.BUDGET_COLUMNS),
    ):
        write_text(output / "tables" / f"{name}.csv", csv_text(table, columns))
    return rows


def not_allowed(output: Path, expected: Iterable[plan.Cell], allowed: Sequence[str]) -> list[str]:
    """A table, as lines, of the expected cells that ended otherwise than the config allows; empty if none did."""
    cells = list(expected)
    files = {_file(cell) for cell in cells}
    entries = [entry for entry in _entries(output, cells) if entry.file in files]
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
    return calibration.failed(calibration.rows(_entries(output, ()), limits))


def compare_published(run: Path, published: Path) -> str:
    """What a folder of records reproduced of the published results, as a text table. These may hold several runs:
    every folder `records` in them counts, and of a cell's records the one with the same settings is compared."""
    folders = sorted(folder for folder in published.rglob("records") if folder.is_dir())
    return compare_records(_readable(run), [record for folder in folders for record in _readable(folder)])


def publish(
    output: Path,
    target: Path,
    expected: Iterable[plan.Cell],
    limits: Mapping[str, float] = plan.CALIBRATION_LIMITS,
) -> list[Row]:
    """Copy the records and tables of a run to the published results, replacing what was there of each cell; returns
    the rows of their leaderboard.

    Published records of other keys (another machine) stay. Raises BadInput where there is nothing to publish, or
    where a control cell says that the run's figures are off by more than `limits`.
    """
    if wrong := miscalibrated(output, limits):
        names = ", ".join(sorted({row["check"] for row in wrong}))
        raise BadInput(
            f"{output}: the calibration failed ({names}), so nothing is published; see its tables/calibration.csv, "
            "and run again on a machine without other work"
        )
    entries = [entry for entry in _entries(output, expected) if entry.record is not None]
    if not entries:
        raise BadInput(f"{output / 'records'} holds no record; run the cells first, then publish")
    for entry in entries:
        (target / "records" / entry.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(output / "records" / entry.file, target / "records" / entry.file)
    if (output / "timing").is_dir():
        shutil.copytree(output / "timing", target / "timing", dirs_exist_ok=True)
    return write_tables(target, limits=limits)


def remove(output: Path, expected: Iterable[plan.Cell], statuses: set[str]) -> list[Path]:
    """Delete the records with these statuses (`stale` and `damaged` among them); returns what was deleted."""
    found = [entry for entry in _entries(output, expected) if entry.status in statuses - {"missing"}]
    paths = [output / "records" / entry.file for entry in found]
    for path in paths:
        path.unlink()
    return paths


# ------------------------------------------------------------------ helpers


def _file(cell: plan.Cell) -> str:
    return cell.record_path.removeprefix("records/")


def _entries(output: Path, expected: Iterable[plan.Cell]) -> list[Entry]:
    return timed(read_entries(output / "records", [_file(cell) for cell in expected], is_stale), output / "timing")


def timed(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """Entries whose `time.vs_full` is what the comparisons of step times in a folder say of them, and `time.vs_full_rounds`
    what each round does."""
    comparisons = compare.read_comparisons(folder)
    return [_timed(entry, comparisons) for entry in entries] if comparisons else list(entries)


def _timed(entry: Entry, comparisons: Sequence[Record]) -> Entry:
    if entry.record is None or not entry.record["time"]:
        return entry
    ratio, rounds = compare.vs_full(comparisons, entry.record) or (None, None)
    return replace(
        entry, record={**entry.record, "time": {**entry.record["time"], "vs_full": ratio, "vs_full_rounds": rounds}}
    )


def cell_of(record: Record) -> plan.Cell:
    """The cell of a record as the present files have it. Raises BadInput where a plugin or setting is gone."""
    flags = plan.command_flags(record["provenance"]["command"])
    told, cell = dict(flags), record["cell"]
    return plan.resolve(
        told.get("--model", cell["model"]),  # a control's row has none
        cell["task"],
        cell["method"],
        cell["seed"],
        trial=cell["trial"],
        device=record["key"]["device"],
        overrides=plan.command_settings(record["provenance"]["command"]),
        flatness=int(told.get("--flatness", 0)),
    )


def is_stale(record: Record) -> bool:
    """Whether the method, task or model is no longer what the record was measured with, or is gone."""
    try:
        now = cell_of(record)
    except BadInput:
        return True
    return any(record["provenance"]["hashes"].get(name) != digest for name, digest in now.hashes.items())


def _readable(records: Path) -> list[Record]:
    return [record for _, record in read_records(records) if not isinstance(record, BadInput) and record]
