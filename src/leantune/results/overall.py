"""overall.csv: one line per model and method over all tasks, each task scaled so that `head` is 0
and `full` is 1."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from scipy import stats

from leantune.results.comparable import Row
from leantune.results.leaderboard import Board

COLUMNS = ["model", "method", "tasks", "mean", "iqm", "peak_vs_full", "task_names", "left_out"]


def overall(boards: Sequence[Board]) -> list[Row]:
    """A row per model and method, best mean first inside a model.

    A task's score is (quality - head) / (full - head), all three of one key; a task with several
    keys counts once, by its mean. It is left out, and said so, where `full` is not better than
    `head` by more than the noise floor (the scale would have no length) or where one of the two, or
    the floor, is missing. `iqm` is the mean of the middle half, from 4 tasks on; `peak_vs_full` a
    geometric mean, None where a counted task has none.
    """
    scaled: dict[tuple[str, str], dict[str, list[tuple[float, float | None]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    left: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for board in boards:
        if board.group.model == "none":
            continue
        why_not = _why_not(board)
        for row in board.rows:
            if row["method"] not in board.standing.scores:
                continue
            name, task = (board.group.model, row["method"]), board.group.task
            if why_not is not None:
                left[name][task].add(why_not)
                continue
            head, full = board.standing.mean("head"), board.standing.mean("full")
            scaled[name][task].append(
                ((row["quality_mean"] - head) / (full - head), row.get("peak_vs_full"))
            )
    rows = [_row(*name, scaled[name], left[name]) for name in {*scaled, *left}]
    return sorted(
        rows,
        key=lambda row: (row["model"], row["mean"] is None, -(row["mean"] or 0), row["method"]),
    )


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


def _row(
    model: str,
    method: str,
    scaled: dict[str, list[tuple[float, float | None]]],
    left: dict[str, set[str]],
) -> Row:
    tasks = sorted(scaled)
    scores = [statistics.fmean(sorted(score for score, _ in scaled[task])) for task in tasks]
    peaks = [sorted(peak for _, peak in scaled[task] if peak is not None) for task in tasks]
    out = [
        f"{task} ({', '.join(sorted(left[task]))})" for task in sorted(left) if task not in scaled
    ]
    return {
        "model": model,
        "method": method,
        "tasks": len(tasks),
        "mean": statistics.fmean(scores) if tasks else None,
        "iqm": float(stats.trim_mean(scores, 0.25)) if len(tasks) >= 4 else None,
        "peak_vs_full": float(stats.gmean([stats.gmean(found) for found in peaks]))
        if tasks and all(peaks)
        else None,
        "task_names": "; ".join(tasks) or None,
        "left_out": "; ".join(out) or None,
    }
