"""What a run reproduced of the published results."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from leantune.files.record import value
from leantune.files.text import text_table
from leantune.results.comparable import KEY, Record
from leantune.results.load import readable

# Fields that leave quality comparable (machine and library build), and of them those that leave
# bytes exact.
_QUALITY_MAY_DIFFER = {"hardware", "torch"}
_BYTES_MAY_DIFFER = {"hardware"}


def compare_published(run: Path, published: Path) -> str:
    """What a folder of records reproduced of the published results, as a text table. These may hold
    several runs: every folder `records` in them counts, and of a cell's records the one with the
    same settings is compared."""
    folders = sorted(folder for folder in published.rglob("records") if folder.is_dir())
    return compare_records(
        readable(run), [record for folder in folders for record in readable(folder)]
    )


def compare_records(run: Iterable[Record], published: Iterable[Record]) -> str:
    """A text table, one row per cell of the run: what was reproduced of what is published.

    Quality is compared where nothing but hardware and torch differ, exact bytes where nothing but
    hardware does, step times on equal hardware only. The last column says what could not be
    compared and why.
    """
    by_cell: dict[tuple, list[Record]] = {}
    for record in published:
        by_cell.setdefault(_cell(record), []).append(record)
    rows, counts = [], {"cells": 0, "compared": 0, "bytes": 0, "equal": 0}
    for record in sorted(run, key=_cell):
        candidates = by_cell.get(_cell(record), [])
        other = min(candidates, key=functools.partial(_distance, record), default=None)
        row, compared, same_bytes = _comparison(record, other)
        rows.append([*_cell(record), *row])
        counts["cells"] += 1
        counts["compared"] += compared
        counts["bytes"] += same_bytes is not None
        counts["equal"] += bool(same_bytes)
    columns = (
        "model",
        "task",
        "method",
        "seed",
        "quality",
        "published",
        "diff",
        "bytes",
        "step x",
        "not compared",
    )
    summary = (
        f"{counts['compared']} of {counts['cells']} cells compared with published ones; "
        f"peak bytes equal in {counts['equal']} of {counts['bytes']} that could be"
    )
    return f"reproduced against published\n{text_table(columns, rows)}\n{summary}"


def _cell(record: Record) -> tuple[str, str, str, int]:
    return (
        record["cell"]["model"],
        record["cell"]["task"],
        record["cell"]["method"],
        record["cell"]["seed"],
    )


def _distance(a: Record, b: Record) -> tuple[int, bool, str]:
    """Sorts the published records of a cell: first those of the same key, and of them those of the
    same settings."""
    return (
        len(_differing(a, b)),
        a["provenance"]["hashes"] != b["provenance"]["hashes"],
        b["key"]["short"],
    )


def _differing(a: Record, b: Record) -> list[str]:
    return [name for name in KEY if a["key"].get(name) != b["key"].get(name)]


def _comparison(record: Record, other: Record | None) -> tuple[list[str | None], bool, bool | None]:
    """(quality, published, difference, bytes, step ratio, why not), compared at all, bytes equal or
    None."""
    mine = value(record, "quality.value")
    quality = None if mine is None else f"{mine:.4f}"
    if other is None:
        return [quality, None, None, None, None, "not published"], False, None
    for name, one in (("this run", record), ("published", other)):
        if one["status"] != "ok":
            reason = f"{name} ended as {one['status']}"
            return [quality, None, None, None, None, reason], False, None
    differing = _differing(record, other)
    if set(differing) - _QUALITY_MAY_DIFFER:
        return [quality, None, None, None, None, f"other {', '.join(differing)}"], False, None
    theirs = value(other, "quality.value")
    why = []
    difference = None if mine is None or theirs is None else f"{mine - theirs:+.4f}"
    peaks = [
        (value(r, "memory.peak_bytes"), value(r, "memory.peak_source")) for r in (record, other)
    ]
    same: bool | None = None
    if set(differing) - _BYTES_MAY_DIFFER:
        why.append(f"bytes: other {', '.join(sorted(set(differing) - _BYTES_MAY_DIFFER))}")
    elif peaks[0][1] != peaks[1][1]:
        why.append("bytes: other source")
    elif None not in (peaks[0][0], peaks[1][0]):
        same = peaks[0] == peaks[1]
    ratio = None
    if "hardware" in differing:
        why.append("time: other hardware")
    else:
        times = [value(r, "time.step_seconds_median") for r in (record, other)]
        ratio = f"{times[0] / times[1]:.2f}" if all(times) else None
    if record["provenance"]["hashes"] != other["provenance"]["hashes"]:
        why.append("the files changed since")
    published = None if theirs is None else f"{theirs:.4f}"
    bytes_word = None if same is None else "equal" if same else "differ"
    return [quality, published, difference, bytes_word, ratio, "; ".join(why) or None], True, same
