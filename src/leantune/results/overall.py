"""overall.csv: one line per model and method over all tasks, each task scaled so that `head` is 0
and `full` is 1."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from scipy import stats

from leantune.results.comparable import Row
from leantune.results.leaderboard import Board

Scaled = tuple[float, float | None]  # quality between head and full, and peak over that of full


def overall(boards: Sequence[Board]) -> list[Row]:
    """A row per model and method, best mean first inside a model.

    A task's score is (quality - head) / (full - head), all three of one key; a task with several
    keys counts once, by its mean. It is left out, and said so, where `full` is not better than
    `head` by more than the noise floor (the scale would have no length) or where one of the two, or
    the floor, is missing. `iqm` is the mean of the middle half, from 4 tasks on; `peak_vs_full` a
    geometric mean, None where a counted task has none.
    """
    # (model, method) -> task -> what each key of it says: a score, or why there is none
    found: dict[tuple[str, str], dict[str, list[Scaled | str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for board in boards:
        why_not = _why_not(board)
        for row in board.scored:
            found[row["model"], row["method"]][row["task"]].append(why_not or _scaled(board, row))
    rows = [_row(*name, tasks) for name, tasks in found.items()]
    return sorted(
        rows,
        key=lambda row: (row["model"], row["mean"] is None, -(row["mean"] or 0), row["method"]),
    )


def _scaled(board: Board, row: Row) -> Scaled:
    head, full = board.standing.mean("head"), board.standing.mean("full")
    return (row["quality_mean"] - head) / (full - head), row.get("peak_vs_full")


def _why_not(board: Board) -> str | None:
    """Why this board's task cannot be scaled, None where it can."""
    stand = board.standing
    missing = [name for name in ("full", "head") if name not in stand.scores]
    if missing:
        return f"no {' and no '.join(missing)}"
    gain, noise = stand.sign * (stand.mean("full") - stand.mean("head")), stand.noise[0]
    if noise is None:
        return "noise floor unknown"
    return None if gain > noise else f"full above head by {gain:.3g}, noise floor {noise:.3g}"


def _row(model: str, method: str, tasks: Mapping[str, Sequence[Scaled | str]]) -> Row:
    scaled = {
        task: sorted((one for one in found if not isinstance(one, str)), key=lambda one: one[0])
        for task, found in sorted(tasks.items())
    }
    counted = {task: found for task, found in scaled.items() if found}
    scores = [statistics.fmean(score for score, _ in found) for found in counted.values()]
    peaks = [sorted(p for _, p in found if p is not None) for found in counted.values()]
    left_out = [
        f"{task} ({', '.join(sorted({why for why in tasks[task] if isinstance(why, str)}))})"
        for task, found in scaled.items()
        if not found
    ]
    return {
        "model": model,
        "method": method,
        "tasks": len(counted),
        "mean": statistics.fmean(scores) if counted else None,
        "iqm": float(stats.trim_mean(scores, 0.25)) if len(counted) >= 4 else None,
        "peak_vs_full": float(stats.gmean([stats.gmean(found) for found in peaks]))
        if counted and all(peaks)
        else None,
        "task_names": "; ".join(counted) or None,
        "left_out": "; ".join(left_out) or None,
    }
