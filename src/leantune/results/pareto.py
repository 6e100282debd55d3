"""pareto.csv and budgets.csv: what no other method beats in memory, time and quality, and what a
budget buys."""

from __future__ import annotations

from collections.abc import Sequence

from leantune.results.comparable import Row
from leantune.results.leaderboard import Board

PARETO_COLUMNS = [
    *["key", "model", "task", "method", "quality_metric", "quality_mean", "noise_floor"],
    *[
        "peak_memory_bytes",
        "peak_source",
        "step_seconds_median",
        "time_vs_full",
        "on_front",
        "dominated_by",
    ],
]
BUDGETS = ("peak_memory_bytes", "step_seconds_median", "checkpoint_bytes")
BUDGET_COLUMNS = [
    "key",
    "model",
    "task",
    "budget_kind",
    "peak_source",
    "budget",
    "method",
    "quality_mean",
]


def pareto(boards: Sequence[Board]) -> list[Row]:
    """A row per scored method. One dominates another that needs no less memory and time and has no
    better quality, where one of the three is strictly in its favour; qualities within the noise
    floor are equal.

    Equality within a floor is not transitive: a may tie with b and b with c while c is better than
    a. So the front is built from the bottom: a method is off it where one *on* it dominates it, and
    `dominated_by` names those. No method of the front dominates another, and every method off it
    has one on it that is as good or better. `on_front` is None where memory or time is missing.
    Time is `time_vs_full` where every method has it.
    """
    rows = []
    for board in boards:
        if board.group.model == "none":
            continue
        scored = [row for row in board.rows if row["method"] in board.standing.scores]
        by = _dominators(scored, board.standing.sign)
        for row in scored:
            names = by.get(row["method"])
            told = {
                "on_front": None if names is None else not names,
                "dominated_by": "; ".join(names or ()) or None,
            }
            rows.append({**row, **told})
    return rows


def _dominators(rows: Sequence[Row], sign: int) -> dict[str, list[str]]:
    """For every method with all three figures, the methods of the front that dominate it; empty on
    the front."""
    time = (
        "time_vs_full"
        if all(row["time_vs_full"] is not None for row in rows)
        else "step_seconds_median"
    )
    known = [row for row in rows if row["peak_memory_bytes"] is not None and row[time] is not None]

    def dominates(one: Row, other: Row) -> bool:
        if one["peak_source"] != other["peak_source"] or "/" in (one["peak_source"] or ""):
            return False  # figures of other kinds are not compared
        gain = sign * (one["quality_mean"] - other["quality_mean"])
        floor = one["noise_floor"] or 0.0  # unknown: every difference counts
        saved = [other[figure] - one[figure] for figure in ("peak_memory_bytes", time)]
        return min(saved) >= 0 and gain >= -floor and (max(saved) > 0 or gain > floor)

    found: dict[str, list[str]] = {}
    # Whoever dominates a method comes before it: no more memory, then no more time, then the better
    # quality.
    cheapest = sorted(
        known, key=lambda row: (row["peak_memory_bytes"], row[time], -sign * row["quality_mean"])
    )
    for row in cheapest:
        front = [other for other in cheapest if found.get(other["method"]) == []]
        found[row["method"]] = sorted(other["method"] for other in front if dominates(other, row))
    return found


def budgets(boards: Sequence[Board]) -> list[Row]:
    """The best quality within each budget of peak memory (per source), step time and stored bytes,
    as a staircase: a row where a larger budget buys a better score. Controls, which have no model,
    are left out."""
    rows = []
    for board in boards:
        if board.group.model == "none":
            continue
        scored = [row for row in board.rows if row["method"] in board.standing.scores]
        for kind in BUDGETS:
            known = [row for row in scored if row[kind] is not None]
            by_source = kind == "peak_memory_bytes"
            for source in (
                sorted({row["peak_source"] or "" for row in known}) if by_source else [""]
            ):
                mine = [
                    row for row in known if not by_source or (row["peak_source"] or "") == source
                ]
                told = {name: getattr(board.group, name) for name in ("key", "model", "task")}
                told |= {"budget_kind": kind, "peak_source": source or None}
                for row in _staircase(mine, kind, board.standing.sign):
                    rows.append(
                        {
                            **told,
                            "budget": row[kind],
                            "method": row["method"],
                            "quality_mean": row["quality_mean"],
                        }
                    )
    return rows


def _staircase(rows: Sequence[Row], kind: str, sign: int) -> list[Row]:
    """The rows where the best score changes as the budget grows; of equals the first by name."""
    steps: list[Row] = []
    for row in sorted(
        rows, key=lambda row: (row[kind], -sign * row["quality_mean"], row["method"])
    ):
        if not steps or sign * row["quality_mean"] > sign * steps[-1]["quality_mean"]:
            steps.append(row)
    return steps
