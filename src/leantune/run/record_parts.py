"""What a worker measured, as the parts of its record: memory, time and quality."""

import statistics
from itertools import pairwise
from typing import Any

from leantune.run.progress import Marks, Progress, interval
from leantune.spec.cells import Cell
from leantune.training.loop import Training


def memory_part(
    tensors: dict[str, Any], progress: Progress, predicted: dict[str, Any]
) -> dict[str, Any]:
    """The headline is CUDA's allocated peak on a GPU, elsewhere the exact peak with the CUDA path
    simulated. The mean weights each interval by its share of the steps."""
    cuda, changes = progress.marks.cuda.result(), progress.intervals
    intervals = [{"step": 0, **interval(tensors)}, *changes]
    peaks = [one["peak_bytes"] for one in intervals]
    steps = [one["step"] for one in intervals] + [progress.total]
    weighted = sum(
        peak * (end - start) for peak, (start, end) in zip(peaks, pairwise(steps), strict=True)
    )
    return {
        "peak_bytes": cuda["allocated_peak_bytes"] if cuda else max(peaks),
        "peak_source": "cuda" if cuda else "tensors-cpu",
        "mean_peak_bytes": round(weighted / progress.total),
        "tensors": {**tensors, "intervals": intervals if changes else []},
        "cuda": cuda,
        "host": {"peak_bytes": progress.marks.host_peak},
        "predicted": predicted,
    }


def predicted_memory_part(predicted: dict[str, Any]) -> dict[str, Any]:
    """The memory of a cell that was not started."""
    return {
        "peak_bytes": predicted["peak_bytes"],
        "peak_source": "predicted",
        "predicted": predicted,
        **dict.fromkeys(("mean_peak_bytes", "tensors", "cuda", "host")),
    }


def time_part(outcome: Training, marks: Marks) -> dict[str, Any]:
    """Of a cell that was resumed, the steps of all attempts; other phases than training are the
    first attempt's, and the clocks the last's."""
    seconds, resumed = outcome.step_seconds, list(outcome.resumed_after)
    # An attempt's first two steps warm up: they are left out, unless there are no others.
    warm_up = {step for start in (0, *resumed) for step in (start, start + 1)}
    steady = sorted(s for i, s in enumerate(seconds) if i not in warm_up) or sorted(seconds)
    last = len(steady) - 1  # -1: a stack that does not train has no steps
    return {
        "step_seconds": [round(s, 5) for s in seconds],
        "step_seconds_median": statistics.median(steady) if steady else None,
        "step_seconds_p95": steady[min(last, int(0.95 * len(steady)))] if steady else None,
        "train_seconds_total": sum(seconds) if steady else None,
        "hook_seconds_total": outcome.hook_seconds if steady else None,
        "attach_seconds_cold": marks.seconds.get("attach"),
        "phases": {name: round(s, 3) for name, s in marks.seconds.items()},
        "vs_full": None,  # `leantune compare` measures it, and the tables fill it in
        "clocks": marks.clocks.result(),
        **({"resumed_after": resumed} if resumed else {}),
    }


def quality_part(
    cell: Cell,
    scores: dict[str, float | None],
    predictions: list[float],
    references: list[float],
    curve: list[dict[str, float]],
) -> dict[str, Any]:
    """The task's score with what it was computed from, and when training first reached the target
    that the task may name."""
    metric = cell.task.spec.metric
    target, sign = metric.target, 1 if metric.higher_is_better else -1
    reached = next(
        (p for p in curve if target is not None and sign * p["value"] >= sign * target), None
    )
    return {
        "metric": metric.score,
        "value": score_of(cell, scores),
        "higher_is_better": metric.higher_is_better,
        "metrics": scores,
        "curve": curve,
        "target": target,
        "steps_to_target": reached and int(reached["step"]),
        "seconds_to_target": reached and reached["seconds"],
        "predictions": [round(p, 5) for p in predictions],
        "references": references,
    }


def score_of(cell: Cell, scores: dict[str, float | None]) -> float:
    """The score that the task is ranked by, 0 where it is not defined."""
    return float(scores[cell.task.spec.metric.score] or 0.0)
