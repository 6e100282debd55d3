"""Compare two records, and what a run reproduced of the published results."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from leantune.files.record import Record, value
from leantune.files.text import text_table
from leantune.results.comparable import KEY, Row
from leantune.results.load import load

KEYS = {name: f"key.{name}" for name in KEY}
MEASURED = {
    "quality": "quality.value",
    "bytes": "memory.peak_bytes",
    "source": "memory.peak_source",
    "step": "time.step_seconds_median",
}
HASHES = {"files": "provenance.hashes"}
# Fields that leave quality comparable (machine and library build), and of them those that leave
# bytes exact.
_QUALITY_MAY_DIFFER = {"hardware", "torch"}
_BYTES_MAY_DIFFER = {"hardware"}


class Pair(NamedTuple):
    """What two records say of one thing; None where a record says nothing of it."""

    one: Any
    other: Any

    @property
    def same(self) -> bool:
        return bool(self.one == self.other)

    @property
    def known(self) -> bool:
        return self.one is not None and self.other is not None


def compare(one: Record, other: Record, paths: Mapping[str, str]) -> dict[str, Pair]:
    """What two records say at each dotted path, by the name of the path."""
    return {name: Pair(value(one, path), value(other, path)) for name, path in paths.items()}


def differing(one: Record, other: Record, paths: Mapping[str, str]) -> list[str]:
    """The names of the paths where two records differ."""
    return [name for name, pair in compare(one, other, paths).items() if not pair.same]


# ------------------------------------------------------------------ a run against the published


def compare_published(run: Sequence[Record], published: Path) -> str:
    """What a run's records reproduced of the published results, as a text table. These may hold
    several runs: every folder `records` in them counts, and of a cell's records the one with the
    same settings is compared."""
    folders = sorted(folder for folder in published.rglob("records") if folder.is_dir())
    known = [record for folder in folders for record in load(folder.parent).records]
    return compare_records(run, known)


def compare_records(run: Iterable[Record], published: Iterable[Record]) -> str:
    """A text table, one row per cell of the run: what was reproduced of what is published.

    Quality is compared where nothing but hardware and torch differ, exact bytes where nothing but
    hardware does, step times on equal hardware only. The last column says what could not be
    compared and why.
    """
    by_cell: dict[tuple, list[Record]] = defaultdict(list)
    for record in published:
        by_cell[_cell(record)].append(record)
    rows: list[Row] = [
        {
            **dict(zip(("model", "task", "method", "seed"), _cell(record), strict=True)),
            **_row(record, _closest(record, by_cell[_cell(record)])),
        }
        for record in sorted(run, key=_cell)
    ]
    columns = ["model", "task", "method", "seed", "quality", "published", "diff", "bytes"]
    columns += ["step x", "not compared"]
    table = text_table(columns, ([row.get(column) for column in columns] for row in rows))
    same = [row["bytes"] for row in rows if row.get("bytes")]
    return (
        f"reproduced against published\n{table}\n"
        f"{sum('diff' in row for row in rows)} of {len(rows)} cells compared with published ones; "
        f"peak bytes equal in {same.count('equal')} of {len(same)} that could be"
    )


def _cell(record: Record) -> tuple[Any, ...]:
    return tuple(record["cell"][name] for name in ("model", "task", "method", "seed"))


def _closest(record: Record, published: Sequence[Record]) -> Record | None:
    """Of the published records of a cell one whose key differs the least, and of those one of the
    same settings."""

    def distance(other: Record) -> tuple[int, int, str]:
        differ = [len(differing(record, other, paths)) for paths in (KEYS, HASHES)]
        return (*differ, other["key"]["short"])

    return min(published, key=distance, default=None)


def _row(record: Record, other: Record | None) -> Row:
    """The columns of a cell and its published record; `diff` is among them where the two could be
    compared."""
    score = value(record, "quality.value")
    row = {"quality": None if score is None else f"{score:.4f}"}
    if other is None:
        return {**row, "not compared": "not published"}
    for name, one in (("this run", record), ("published", other)):
        if one["status"] != "ok":
            return {**row, "not compared": f"{name} ended as {one['status']}"}
    keys = differing(record, other, KEYS)
    if set(keys) - _QUALITY_MAY_DIFFER:
        return {**row, "not compared": f"other {', '.join(keys)}"}
    quality, peak, source, step = compare(record, other, MEASURED).values()
    other_keys = ", ".join(sorted(set(keys) - _BYTES_MAY_DIFFER)) or None
    other_bytes = other_keys or (None if source.same else "source")
    other_times = "hardware" if "hardware" in keys else None
    why = [
        *([f"bytes: other {other_bytes}"] if other_bytes else []),
        *([f"time: other {other_times}"] if other_times else []),
        *(["the files changed since"] if differing(record, other, HASHES) else []),
    ]
    return {
        **row,
        "published": None if quality.other is None else f"{quality.other:.4f}",
        "diff": f"{quality.one - quality.other:+.4f}" if quality.known else None,
        "bytes": (("equal" if peak.same else "differ") if peak.known and not other_bytes else None),
        "step x": f"{step.one / step.other:.2f}" if all(step) and not other_times else None,
        "not compared": "; ".join(why) or None,
    }
