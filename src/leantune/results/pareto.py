"""pareto.csv and budgets.csv: what no other method beats in memory, time and quality, and the best
method for each budget."""

from collections.abc import Sequence

from leantune.results.comparable import Row
from leantune.results.leaderboard import Board

BUDGETS = ("peak_memory_bytes", "step_seconds_median", "checkpoint_bytes")


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
        by = _dominators(board.scored, board.standing.sign)
        for row in board.scored:
            names = by.get(row["method"])
            on_front = None if names is None else not names
            dominated_by = "; ".join(names or ()) or None
            rows.append({**row, "on_front": on_front, "dominated_by": dominated_by})
    return rows


def _dominators(rows: Sequence[Row], sign: int) -> dict[str, list[str]]:
    """For every method with all three numbers, the methods of the front that dominate it; empty on
    the front."""
    in_turns = all(row["time_vs_full"] is not None for row in rows)
    time = "time_vs_full" if in_turns else "step_seconds_median"
    known = [row for row in rows if row["peak_memory_bytes"] is not None and row[time] is not None]

    def dominates(one: Row, other: Row) -> bool:
        if one["peak_source"] != other["peak_source"] or "/" in (one["peak_source"] or ""):
            return False  # peaks of different sources are not compared
        gain = sign * (one["quality_mean"] - other["quality_mean"])
        floor = one["noise_floor"] or 0.0  # unknown: every difference counts
        saved = [other[cost] - one[cost] for cost in ("peak_memory_bytes", time)]
        return min(saved) >= 0 and gain >= -floor and (max(saved) > 0 or gain > floor)

    found: dict[str, list[str]] = {}
    # Whoever dominates a method comes before it: no more memory, then no more time, then the better
    # quality.
    known.sort(key=lambda row: (row["peak_memory_bytes"], row[time], -sign * row["quality_mean"]))
    for row in known:
        front = [other for other in known if found.get(other["method"]) == []]
        found[row["method"]] = sorted(other["method"] for other in front if dominates(other, row))
    return found


def budgets(boards: Sequence[Board]) -> list[Row]:
    """The best quality within each budget of peak memory (per source), step time and stored bytes,
    as a staircase: a row where a larger budget buys a better score."""
    return [
        {**row, "budget_kind": kind, "peak_source": source, "budget": row[kind]}
        for board in boards
        for kind in BUDGETS
        for source, rows in _by_source(board.scored, kind).items()
        for row in _staircase(rows, kind, board.standing.sign)
    ]


def _by_source(rows: Sequence[Row], kind: str) -> dict[str | None, list[Row]]:
    """The rows that have the number, those with peaks of different sources apart."""
    known = [row for row in rows if row[kind] is not None]
    if kind != "peak_memory_bytes":
        return {None: known}
    sources = sorted({row["peak_source"] or "" for row in known})
    return {
        source or None: [row for row in known if (row["peak_source"] or "") == source]
        for source in sources
    }


def _staircase(rows: Sequence[Row], kind: str, sign: int) -> list[Row]:
    """The rows where the best score changes as the budget grows; of equals the first by name."""
    steps: list[Row] = []
    for row in sorted(rows, key=lambda r: (r[kind], -sign * r["quality_mean"], r["method"])):
        if not steps or sign * row["quality_mean"] > sign * steps[-1]["quality_mean"]:
            steps.append(row)
    return steps
