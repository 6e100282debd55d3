"""What a report shows, read from a folder of results: the tables as text, the records, the groups
that are ranked."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leantune.errors import BadInput
from leantune.files.record import read_records
from leantune.files.text import read_csv
from leantune.results.comparable import Record
from leantune.spec import plugins

TABLES = (
    *("leaderboard", "decisions", "pareto", "budgets", "overall", "cells"),
    *("footprint", "claims", "failures", "calibration"),
)


class Row(dict[str, str]):
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
class Group:
    """Methods that may be ranked together: one model and task under one comparability key."""

    model: str
    task: str
    key: str
    rows: Sequence[Row]  # of leaderboard.csv, best first
    controls: Sequence[Row]  # rows of the same task and key that need no model

    @property
    def slug(self) -> str:
        return slug(f"{self.model}-{self.task}-{self.key}")

    @property
    def name(self) -> str:
        return f"{self.task} with {self.model}"

    @property
    def scored(self) -> list[Row]:
        """The rows with a quality, best first."""
        return [row for row in self.rows if row.number("quality_mean") is not None]

    @property
    def best(self) -> Row | None:
        """The row with the best quality, of those placed in a tier where there is one."""
        return next((row for row in self.scored if row["tier"]), next(iter(self.scored), None))

    @property
    def metric(self) -> str:
        return next((row["quality_metric"] for row in self.scored), "quality")

    @property
    def higher_is_better(self) -> bool:
        return all(row["higher_is_better"] != "false" for row in self.scored)

    def of(self, table: Sequence[Row]) -> list[Row]:
        """The rows of another table that are about this group."""
        return [
            row
            for row in table
            if (row["model"], row["task"], row["key"]) == (self.model, self.task, self.key)
        ]


@dataclass(frozen=True)
class Results:
    """The tables, and every record that can be read. `name` is what stands for the folder in
    commands."""

    tables: dict[str, list[Row]]
    present: frozenset[str]  # tables whose file is there
    records: Sequence[Record]
    damaged: int  # files that are no record

    @property
    def groups(self) -> list[Group]:
        """The groups of the leaderboard, the one with the most methods first."""
        rows = self.tables["leaderboard"]
        place = lambda row: (row["model"], row["task"], row["key"])  # noqa: E731
        found = []
        for (model, task, key), own in itertools.groupby(sorted(rows, key=place), key=place):
            if model != "none":
                beside = [
                    r for r in rows if (r["model"], r["task"], r["key"]) == ("none", task, key)
                ]
                found.append(Group(model, task, key, list(own), beside))
        return sorted(
            found, key=lambda group: (-len(group.scored), group.model, group.task, group.key)
        )

    def usable(self, group: Group) -> list[Record]:
        """The group's scored records by method and seed, those left out that the tables call stale."""
        good = {
            (row["method"], row["seed"])
            for row in group.of(self.tables["cells"])
            if row["status"] == "ok" and not row["trial"]
        }
        found = []
        for record in self.records:
            cell = record["cell"]
            here = (cell["model"], cell["task"], record["key"]["short"])
            if (
                record["status"] == "ok"
                and cell["trial"] is None
                and here[:2] == (group.model, group.task)
                and here[2] in group.key.split("~")
                and (cell["method"], str(cell["seed"])) in good
            ):
                found.append(record)
        return sorted(found, key=lambda record: (record["cell"]["method"], record["cell"]["seed"]))


def read_results(folder: Path) -> Results:
    """Read `records/` and `tables/` of a run's or the published folder. Raises BadInput where there
    is neither."""
    if not (folder / "records").is_dir() and not (folder / "tables").is_dir():
        raise BadInput(
            f"{folder} holds neither records/ nor tables/; name the output folder of a run, or results"
        )
    tables = {
        name: [Row(line) for line in read_csv(folder / "tables" / f"{name}.csv")] for name in TABLES
    }
    present = frozenset(name for name in TABLES if (folder / "tables" / f"{name}.csv").is_file())
    read = [record for _, record in read_records(folder / "records")]
    records = [record for record in read if not isinstance(record, BadInput)]
    return Results(tables, present, records, len(read) - len(records))


def slug(name: str) -> str:
    """A name for a file or an id: letters, digits and -_. only, told apart by a hash where others
    were dropped."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name).lstrip(".-")[:80]
    return (
        plain if plain == name else f"{plain[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )


def kind_of(task: str) -> str | None:
    """classification, causal_lm, ...; None for a task that is not installed here."""
    return plugins.get("tasks", task).spec.kind if task in plugins.discover("tasks") else None
