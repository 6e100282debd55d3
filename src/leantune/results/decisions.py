"""decisions.csv: what each comparison decides, in one sentence, or that it decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from leantune.metrics import stats
from leantune.results.comparable import Row, differing
from leantune.results.leaderboard import Board
from leantune.results.ranking import Standing

COLUMNS = [
    *["key", "model", "task", "quality_metric", "methods", "seeds", "noise_floor", "noise_from"],
    *["best", "runner_up", "gap", "difference_low", "difference_high", "difference_from", "tier_1"],
    *["more_seeds", "says", "not_ranked_with"],
]


def decisions(boards: Sequence[Board]) -> list[Row]:
    """A row per key, model and task; controls, which have no model, decide nothing and are left
    out.

    `gap` is the difference of the two best means, `difference_low` and `_high` the bounds of their
    paired difference; both positive where `best` is better. `more_seeds` is given where the two are
    not told apart.
    """
    rows = []
    for board in boards:
        if board.group.model == "none":
            continue
        others = [
            f"{other.group.key}: {differing(board.group, other.group)}"
            for other in boards
            if other is not board
            and (other.group.model, other.group.task) == (board.group.model, board.group.task)
        ]
        names = {"key": board.group.key, "model": board.group.model, "task": board.group.task}
        rows.append({**names, **_decision(board), "not_ranked_with": "; ".join(others) or None})
    return sorted(rows, key=lambda row: (row["model"], row["task"], row["key"]))


def _decision(board: Board) -> Row:
    stand = board.standing
    order = stand.order
    noise, noise_from = stand.noise
    row: Row = {
        "methods": len(stand.scores),
        "seeds": len({seed for seeds in stand.scores.values() for seed in seeds}),
        "noise_floor": noise,
        "noise_from": noise_from,
    }
    if not order:
        return {**row, "says": "this decides nothing: no method has a score"}
    first = [method for method in order if stand.tiers[method] == 1]
    row |= {"best": order[0], "tier_1": "; ".join(first)}
    row["quality_metric"] = next(r["quality_metric"] for r in board.rows if r["method"] == order[0])
    if len(order) == 1:
        return {**row, "says": f"this decides nothing: {order[0]} is the only method with a score"}
    best, second = order[:2]
    gap = stand.sign * (stand.mean(best) - stand.mean(second))
    row |= {"runner_up": second, "gap": gap}
    difference, shared = stand.difference(best, second), len(stand.seed_differences(best, second))
    if difference is not None:
        row |= {"difference_low": difference.low, "difference_high": difference.high}
        row["difference_from"] = "seeds" if shared > 1 else "examples"
    ahead = (
        f"{_number(gap)} ahead of {second} in {row['quality_metric']}"
        if gap
        else f"level with {second}"
    )
    lead = f"{ahead}{_bounds(difference, shared)}"
    within = (
        f", within the noise floor of {_number(noise)}" if noise is not None and gap < noise else ""
    )
    unplaced = sorted(stand.scores.keys() - stand.tiers.keys())
    vary = "it varies" if len(unplaced) == 1 else "they vary"
    aside = (
        f"; not placed, as {vary} far more over seeds than the others: {', '.join(unplaced)}"
        if unplaced
        else ""
    )
    if len(first) == 1 and not within:
        return {**row, "says": f"{best} is best, {lead}{aside}"}
    row["more_seeds"], hint = _more_seeds(stand, best, second)
    below = len(order) - len(first)
    others = (
        f"; {below} {'other is' if below == 1 else 'others are'} told apart from the best"
        if below
        else ""
    )
    beaten = [
        stand.sign * (stand.mean(best) - stand.mean(method))
        for method in order
        if stand.tiers[method] > 1
    ]
    if not below:
        start = (
            f"this decides nothing: no method of {len(order)} is told apart from the best, {best},"
        )
    elif max(beaten) < (noise or 0):
        start = f"this decides nothing: {best} is"
    elif len(first) == 1:
        start = f"{best} is"
    else:
        start = f"the {len(first)} methods of tier 1 are not told apart: {best} is"
    return {**row, "says": f"{start} {lead}{within}{others}; {hint}{aside}"}


def _more_seeds(stand: Standing, best: str, second: str) -> tuple[int | None, str]:
    """(how many more seeds would separate the two, the same in words)."""
    differences = stand.seed_differences(best, second)
    if len(differences) < 2:
        return (
            None,
            f"how many seeds would separate {best} and {second} is unknown before they share two",
        )
    needed = stats.seeds_needed(differences)
    if needed is None:
        return None, f"no number of seeds up to 100 would separate {best} and {second}"
    more = max(0, needed - len(differences))
    if more == 0:
        return (
            0,
            f"the seeds at hand would separate {best} and {second} in a comparison of their own",
        )
    return (
        more,
        f"{more} more {'seed' if more == 1 else 'seeds'} would separate {best} and {second}",
    )


def _bounds(difference: stats.Difference | None, shared: int) -> str:
    if difference is None:
        return " (no interval: they share no seed or no test examples)"
    over = f"{shared} seeds" if shared > 1 else "the test examples of one seed"
    bounds = f"{_number(difference.low)} to {_number(difference.high)}"
    return f" (95 % interval of the paired difference {bounds}, over {over})"


def _number(number: float) -> str:
    return f"{number:.3g}"
