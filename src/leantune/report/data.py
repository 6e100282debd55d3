"""What a report shows, read from a folder of results: the tables as text, the records, and the
methods that are ranked together.

The tables are read from their CSV files also where there are records. They may have been made with
`--across` or with other limits, and the page links to them, so they and not the records say what it
shows.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leantune.errors import BadInput
from leantune.files.record import Record
from leantune.files.text import read_csv
from leantune.results.columns import ORDER
from leantune.results.load import load
from leantune.spec import plugins

TABLES = (*ORDER, "footprint")
SHAPE = ("model", "kind", "batch", "seq", "dtype")  # of the footprint


class Line(dict[str, str]):
    """A line of a CSV file. A column that the file has not got reads as empty."""

    def __missing__(self, column: str) -> str:
        return ""

    def number(self, column: str) -> float | None:
        """The cell as a finite number, None where it is empty or is none."""
        try:
            found = float(self[column])
        except ValueError:
            return None
        return found if math.isfinite(found) else None


@dataclass(frozen=True)
class Leaderboard:
    """Methods that are ranked together: one model and task under one comparability key."""

    model: str
    task: str
    key: str
    rows: Sequence[Line]  # of leaderboard.csv, best first
    controls: Sequence[Line]  # rows of the same task and key that need no model

    @property
    def slug(self) -> str:
        return slug(f"{self.model}-{self.task}-{self.key}")

    @property
    def name(self) -> str:
        return f"{self.task} with {self.model}"

    @property
    def scored(self) -> list[Line]:
        """The rows with a quality, best first."""
        return with_number(self.rows, "quality_mean")

    @property
    def best(self) -> Line | None:
        """The row with the best quality, of those placed in a tier where there is one."""
        return next(iter([row for row in self.scored if row["tier"]] or self.scored), None)

    @property
    def metric(self) -> str:
        return next((row["quality_metric"] for row in self.scored), "quality")

    @property
    def higher_is_better(self) -> bool:
        return all(row["higher_is_better"] != "false" for row in self.scored)

    def of(self, table: Sequence[Line]) -> list[Line]:
        """The rows of another table that are about the same model, task and key."""
        return [row for row in table if place(row) == (self.model, self.task, self.key)]


@dataclass(frozen=True)
class Content:
    """The tables, and every record that can be read."""

    tables: dict[str, list[Line]]
    present: frozenset[str]  # tables whose file is there
    records: Sequence[Record]
    damaged: int  # files that are no record

    @property
    def leaderboards(self) -> list[Leaderboard]:
        """Every leaderboard, the one with the most methods first."""
        rows = sorted(self.tables["leaderboard"], key=place)
        by_place = {where: list(own) for where, own in itertools.groupby(rows, key=place)}
        found = [
            Leaderboard(model, task, key, own, by_place.get(("none", task, key), []))
            for (model, task, key), own in by_place.items()
            if model != "none"
        ]
        return sorted(found, key=lambda one: (-len(one.scored), one.model, one.task, one.key))

    def usable(self, board: Leaderboard) -> list[Record]:
        """The scored records of a leaderboard by method and seed, those left out that the tables
        call stale."""
        good = {
            (*place(row), row["method"], row["seed"])
            for row in board.of(self.tables["cells"])
            if row["status"] == "ok" and not row["trial"]
        }
        cells = [(record["cell"], record) for record in self.records if record["status"] == "ok"]
        found = [
            record
            for cell, record in cells
            if cell["trial"] is None
            and (
                *(cell["model"], cell["task"], record["key"]["short"]),
                *(cell["method"], str(cell["seed"])),
            )
            in good
        ]
        return sorted(found, key=lambda record: (record["cell"]["method"], record["cell"]["seed"]))


def place(row: Line) -> tuple[str, str, str]:
    """Which leaderboard a row belongs to."""
    return row["model"], row["task"], row["key"]


def with_number(rows: Sequence[Line], column: str) -> list[Line]:
    """The rows that have a number in the column."""
    return [row for row in rows if row.number(column) is not None]


def shape(row: Line) -> tuple[str, ...]:
    """All that two rows of the footprint may differ in but the method."""
    return tuple(row[name] for name in SHAPE)


def shares_of_full(rows: Sequence[Line]) -> list[tuple[Line, float, float | None]]:
    """The rows of the footprint with a peak, the peak, and its share of that of full fine-tuning at
    the same shape; None where that was not predicted."""
    peaks = [(row, row.number("peak_bytes") or 0) for row in with_number(rows, "peak_bytes")]
    full = {shape(row): peak for row, peak in reversed(peaks) if row["method"] == "full"}
    of_full = [(row, peak, full.get(shape(row))) for row, peak in peaks]
    return [(row, peak, peak / most if most else None) for row, peak, most in of_full]


def read_content(folder: Path) -> Content:
    """Read `records/` and `tables/` of a run's or the published folder. Raises BadInput where there
    is neither."""
    if not (folder / "records").is_dir() and not (folder / "tables").is_dir():
        raise BadInput(
            f"{folder} holds neither records/ nor tables/; name the output folder of a run, or "
            "results"
        )
    files = {name: folder / "tables" / f"{name}.csv" for name in TABLES}
    tables = {name: [Line(line) for line in read_csv(file)] for name, file in files.items()}
    present = frozenset(name for name, file in files.items() if file.is_file())
    results = load(folder)
    damaged = len(results.files) - len(results.records)
    return Content(tables, present, results.records, damaged)


def slug(name: str) -> str:
    """A name for a file or an id: letters, digits and -_. only, told apart by a hash where others
    were dropped."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name).lstrip(".-")[:80]
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return plain if plain == name else f"{plain[:60]}-{digest}"


def kind_of(task: str) -> str | None:
    """classification, causal_lm, ...; None for a task that is not installed here."""
    return plugins.get("tasks", task).spec.kind if task in plugins.discover("tasks") else None
