"""What a worker measured, as the parts of its record: parameter counts, memory and time."""

from __future__ import annotations

import statistics
from typing import Any

from leantune.run.phases import Phases, interval
from leantune.spec.cells import Cell
from leantune.training.loop import Training


def memory_figures(
    cell: Cell,
    tensors: dict[str, Any],
    readings: list[dict[str, Any]],
    phases: Phases,
    predicted: dict[str, Any],
) -> dict[str, Any]:
    """The headline is CUDA's allocated peak on a GPU, elsewhere the exact peak with the CUDA path
    simulated."""
    cuda = phases.cuda.result()
    intervals = [{"step": 0, **interval(tensors)}, *readings]
    ends = [r["step"] for r in intervals[1:]] + [cell.training["steps"]]
    weighted = sum(
        r["peak_bytes"] * (end - r["step"]) for r, end in zip(intervals, ends, strict=True)
    )
    headline = max(r["peak_bytes"] for r in intervals)
    return {
        "peak_bytes": cuda["allocated_peak_bytes"] if cuda else headline,
        "peak_source": "cuda" if cuda else "tensors-cpu",
        "mean_peak_bytes": round(weighted / cell.training["steps"]),
        "tensors": {**tensors, "intervals": intervals if readings else []},
        "cuda": cuda,
        "host": phases.host.result(),
        "predicted": predicted,
    }


def predicted_only(predicted: dict[str, Any]) -> dict[str, Any]:
    """The memory of a cell that was not started."""
    peak = predicted["peak_bytes"]
    figures = {"peak_bytes": peak, "peak_source": "predicted", "mean_peak_bytes": None}
    return {**figures, "tensors": None, "cuda": None, "host": None, "predicted": predicted}


def time_figures(outcome: Training, phases: Phases) -> dict[str, Any]:
    """Of a cell that was resumed, the steps of all attempts; other phases than training are the
    first attempt's, and the clocks the last's."""
    starts = (0, *outcome.resumed_after)
    warm_up = {step for start in starts for step in (start, start + 1)}  # two steps from each start
    steady = sorted(s for i, s in enumerate(outcome.step_seconds) if i not in warm_up) or sorted(
        outcome.step_seconds
    )
    figures = {
        "step_seconds": [round(s, 5) for s in outcome.step_seconds],
        "step_seconds_median": statistics.median(steady) if steady else None,
        "step_seconds_p95": steady[min(len(steady) - 1, int(0.95 * len(steady)))]
        if steady
        else None,
        "train_seconds_total": sum(outcome.step_seconds) if steady else None,
        "hook_seconds_total": outcome.hook_seconds if steady else None,
        "attach_seconds_cold": phases.seconds.get("attach"),
        "phases": {k: round(v, 3) for k, v in phases.seconds.items()},
        "vs_full": None,
        "clocks": phases.clocks.result(),
    }
    return (
        {**figures, "resumed_after": list(outcome.resumed_after)}
        if outcome.resumed_after
        else figures
    )
