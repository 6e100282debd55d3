"""The rows of the tables: pure functions of the records, the same for the same records in any
order.

`cells` has a row per record, `leaderboard` a row per method inside one comparability key,
`failures` a row per cell that has no usable result, and why. Missing numbers are None.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from leantune.results.columns import of_table
from leantune.results.comparable import Entry, Group, Record, Row, groups
from leantune.results.ranking import Standing, standing


@dataclass(frozen=True)
class Board:
    """One group, how its methods stand, and its leaderboard rows, best first."""

    group: Group
    standing: Standing
    rows: list[Row]

    @property
    def scored(self) -> list[Row]:
        """The rows of the methods that have a score."""
        return [row for row in self.rows if row["method"] in self.standing.scores]


# ------------------------------------------------------------------ rows


def cells(entries: Sequence[Entry]) -> list[Row]:
    """A row per readable record, tuning trials and stale ones included."""
    columns = of_table("cells")
    rows = [
        {
            **{column.name: column.value(entry.record) for column in columns if column.path},
            "status": entry.status,
        }
        for entry in entries
        if entry.record is not None
    ]
    return sorted(rows, key=_order)


def failures(entries: Sequence[Entry]) -> list[Row]:
    """A row per cell without a result that counts: failed, unsupported, stale, damaged or
    missing."""
    columns = [column for column in of_table("failures") if column.path]
    rows = []
    for entry in entries:
        if entry.status == "ok":
            continue
        if entry.record is not None:
            row = {column.name: column.value(entry.record) for column in columns}
        else:
            # An expected file's name says which cell it is:
            # <key>/<model>/<task>/<method>/<seed>.json
            names = entry.file.removesuffix(".json").split("/")
            told = ("key", "model", "task", "method", "seed") if len(names) == 5 else ()
            row = {**dict(zip(told, names, strict=False)), "reason": entry.problem}
        if entry.status == "stale":
            row["reason"] = "the method's, task's or model's files changed since this was measured"
        rows.append({**row, "status": entry.status, "file": entry.file})
    return sorted(rows, key=lambda row: (_order(row), row["file"]))


def boards(entries: Sequence[Entry], across: Sequence[str] = ()) -> list[Board]:
    """Every set of methods that may be ranked together, ranked. `across`: key fields to merge
    groups over."""
    return [_board(group) for group in groups(entries, across)]


def leaderboard(entries: Sequence[Entry], across: Sequence[str] = ()) -> list[Row]:
    """A row per method inside one key, model and task: aggregated over seeds, ranked in tiers, best
    first."""
    return ranked(boards(entries, across))


def ranked(found: Iterable[Board]) -> list[Row]:
    """The leaderboard's rows of boards, in its order."""
    return sorted((row for board in found for row in board.rows), key=_leaderboard_order)


def _board(group: Group) -> Board:
    stand, ok = standing(group), group.ok
    numbers = {method: aggregate(records) for method, records in ok.items()}
    full, noise_floor = numbers.get("full", {}), stand.noise[0]
    rows = []
    for method, entries in group.methods.items():
        row = {
            **group.place,
            "method": method,
            "status": "ok" if method in ok else min(entry.status for entry in entries),
            "seeds": len({record["cell"]["seed"] for record in ok.get(method, ())}),
            "failed_seeds": len(entries) - len(ok.get(method, ())),
            "tier": stand.tiers.get(method),
            **numbers.get(method, {}),
        }
        if method in stand.scores:
            interval = zip(
                ("quality_low", "quality_high", "interval_from"),
                stand.interval(method),
                strict=True,
            )
            row |= {
                "quality_mean": stand.mean(method),
                **dict(interval),
                "noise_floor": noise_floor,
            }
            row["tier_from"] = "seeds" if len(stand.scores[method]) > 1 else "examples"
        peak, source = row.get("peak_memory_bytes"), row.get("peak_source")
        one_kind = source and source == full.get("peak_source") and "/" not in source
        if one_kind and peak and full["peak_memory_bytes"]:
            row["peak_vs_full"] = peak / full["peak_memory_bytes"]
        if not group.one_machine:
            row |= {column.name: None for column in of_table("leaderboard") if column.timed}
        rows.append(row)
    return Board(group, stand, sorted(rows, key=_leaderboard_order))


def aggregate(records: Sequence[Record]) -> Row:
    """What several seeds of one method say together, quality apart."""
    return {one.name: one.joined(records) for one in of_table("leaderboard") if one.seeds}


# ------------------------------------------------------------------ order


def _order(row: Row) -> tuple:
    names = [str(row.get(name) or "") for name in ("model", "task", "key", "method")]
    return (*names, int(row.get("seed") or 0), -1 if row.get("trial") is None else row["trial"])


def _leaderboard_order(row: Row) -> tuple:
    quality = row.get("quality_mean")
    best_first = math.inf if quality is None else (-quality if row["higher_is_better"] else quality)
    return (row["model"], row["task"], row["key"], best_first, row["method"])
