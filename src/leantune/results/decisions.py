"""decisions.csv: what each comparison decides, in one sentence, or that it decides nothing."""

from collections.abc import Sequence

from leantune.metrics import stats
from leantune.results.comparable import Row, differing
from leantune.results.leaderboard import Board
from leantune.results.ranking import Standing


def decisions(boards: Sequence[Board]) -> list[Row]:
    """A row per key, model and task.

    `gap` is the difference of the two best means, `difference_low` and `_high` the bounds of their
    paired difference; both positive where `best` is better. `more_seeds` is given where the two are
    not told apart.
    """
    rows = []
    for board in boards:
        group = board.group
        others = [
            f"{other.group.key}: {differing(group, other.group)}"
            for other in boards
            if other is not board and other.group.place == {**group.place, "key": other.group.key}
        ]
        told = {"not_ranked_with": "; ".join(others) or None}
        rows.append({**group.place, **_decision(board), **told})
    return sorted(rows, key=lambda row: (row["model"], row["task"], row["key"]))


def _decision(board: Board) -> Row:
    stand, order = board.standing, board.standing.order
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
    metric = next(r["quality_metric"] for r in board.rows if r["method"] == order[0])
    row |= {"best": order[0], "tier_1": "; ".join(first), "quality_metric": metric}
    if len(order) == 1:
        return {**row, "says": f"this decides nothing: {order[0]} is the only method with a score"}
    best, second = order[:2]
    gap = stand.sign * (stand.mean(best) - stand.mean(second))
    row |= {"runner_up": second, "gap": gap}
    difference, shared = stand.difference(best, second), len(stand.seed_differences(best, second))
    if difference is not None:
        row |= {"difference_low": difference.low, "difference_high": difference.high}
        row["difference_from"] = "seeds" if shared > 1 else "examples"
    ahead = f"{_number(gap)} ahead of {second} in {metric}" if gap else f"level with {second}"
    lead = f"{ahead}{_bounds(difference, shared)}"
    within = ""
    if noise is not None and gap < noise:
        within = f", within the noise floor of {_number(noise)}"
    if len(first) == 1 and not within:
        return {**row, "says": f"{best} is best, {lead}{_aside(stand)}"}
    more_seeds, hint = _more_seeds(stand, best, second)
    says = f"{_start(stand, len(first))} {lead}{within}{_beaten(len(order) - len(first))}; {hint}"
    return {**row, "more_seeds": more_seeds, "says": f"{says}{_aside(stand)}"}


def _start(stand: Standing, first: int) -> str:
    """How the sentence begins where the best method is not alone in front. `first`: how many
    methods tier 1 has."""
    best, *others = stand.order
    beaten = [stand.mean(best) - stand.mean(m) for m in others if stand.tiers[m] > 1]
    if not beaten:
        count = len(stand.order)
        return f"this decides nothing: no method of {count} is told apart from the best, {best},"
    if max(stand.sign * lead for lead in beaten) < (stand.noise[0] or 0):
        return f"this decides nothing: {best} is"
    if first == 1:
        return f"{best} is"
    return f"the {first} methods of tier 1 are not told apart: {best} is"


def _beaten(count: int) -> str:
    words = f"{count} {'other is' if count == 1 else 'others are'} told apart from the best"
    return f"; {words}" if count else ""


def _aside(stand: Standing) -> str:
    """Which methods are not placed, and why."""
    unplaced = sorted(stand.scores.keys() - stand.tiers.keys())
    vary = "it varies" if len(unplaced) == 1 else "they vary"
    why = f"as {vary} far more over seeds than the others"
    return f"; not placed, {why}: {', '.join(unplaced)}" if unplaced else ""


def _more_seeds(stand: Standing, best: str, second: str) -> tuple[int | None, str]:
    """(how many more seeds would separate the two, the same in words)."""
    differences, pair = stand.seed_differences(best, second), f"{best} and {second}"
    if len(differences) < 2:
        return None, f"how many seeds would separate {pair} is unknown before they share two"
    needed = stats.seeds_needed(differences)
    if needed is None:
        return None, f"no number of seeds up to 100 would separate {pair}"
    more = max(0, needed - len(differences))
    if more == 0:
        return 0, f"the seeds at hand would separate {pair} in a comparison of their own"
    return more, f"{more} more {'seed' if more == 1 else 'seeds'} would separate {pair}"


def _bounds(difference: stats.Difference | None, shared: int) -> str:
    if difference is None:
        return " (no interval: they share no seed or no test examples)"
    over = f"{shared} seeds" if shared > 1 else "the test examples of one seed"
    bounds = f"{_number(difference.low)} to {_number(difference.high)}"
    return f" (95 % interval of the paired difference {bounds}, over {over})"


def _number(number: float) -> str:
    return f"{number:.3g}"
