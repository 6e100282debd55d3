"""Step times side by side: the methods take turns on a machine of their own, round after round.

A cell's own times depend on its neighbours. Here each method runs as a cell of its own, one after
another and again (A B A B), and the ratio to the first is taken within a round, so that what drifts
slowly cancels. A method's time is the mean over its steps but the two of warm-up, hooks included.
"""

import contextlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import psutil

from leantune.errors import BadInput
from leantune.files.text import say, text_table
from leantune.metrics import stats
from leantune.run import supervisor
from leantune.run.provenance import provenance
from leantune.spec import plugins
from leantune.spec.cells import STEP_TIME_KEY, Cell, resolve_cell
from leantune.spec.config import TIMED_SETTINGS
from leantune.spec.settings import settings_of_stack
from leantune.spec.trials import chosen_settings, tuned_parts

WARM_UP = 2  # steps


def compare(
    model: str,
    task: str,
    methods: Sequence[str],
    *,
    rounds: int,
    device: str,
    settings: Mapping[str, Any],
    choices: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Seconds a step of each method in each round, and the ratio of every method to the first with
    its interval. `choices`: what tuning chose for some of the methods (`trials.choice`).

    Raises BadInput for wrong names, fewer than two methods or rounds, or a cell that does not end
    well.
    """
    if len(methods) < 2 or rounds < 2:
        raise BadInput(
            "a comparison needs two methods and two rounds at least: --methods full lora --rounds 2"
        )
    cells = [_timed_cell(model, task, method, device, settings, choices) for method in methods]
    turns: list[dict[str, dict[str, float]]] = [{} for _ in range(rounds)]
    for number, turn in enumerate(turns, 1):
        for cell in cells:
            # of all cores, in percent, while nothing of ours runs
            others = psutil.cpu_percent(interval=0.5)
            seconds = _step_seconds(cell)
            turn[cell.method] = {"step_seconds": seconds, "others_percent": others}
            say(f"round {number} of {rounds}: {cell.method} {seconds:.4f} s a step")
    first = cells[0]
    words = ["leantune", "compare", "--model", first.model.word, "--task", first.task.name]
    words += ["--methods", *methods, "--rounds", str(rounds), "--device", first.device]
    for key, value in settings.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return {
        "model": first.model_name,
        "task": first.task.name,
        "key": {name: first.key[name] for name in STEP_TIME_KEY},
        "steps": first.training["steps"],
        "against": first.method,
        "rounds": turns,
        "ratios": {cell.method: ratio(turns, cell.method, first.method) for cell in cells[1:]},
        "settings": {cell.method: cell.overrides for cell in cells},
        "hashes": {cell.method: cell.hashes["method"] for cell in cells},
        "provenance": provenance(words, first.hashes, first.hardware),
    }


def _timed_cell(
    model: str,
    task: str,
    method: str,
    device: str,
    settings: Mapping[str, Any],
    choices: Sequence[Mapping[str, Any]],
) -> Cell:
    """With few steps and what tuning chose of it; what is set by hand stays."""
    given = settings_of_stack(settings, method, plugins.get("tasks", task).spec.kind)

    def resolved(chosen: Mapping[str, Any]) -> Cell:
        overrides = {**TIMED_SETTINGS, **chosen, **given}
        return resolve_cell(model, task, method, device=device, overrides=overrides)

    cell = resolved({})
    parts = tuned_parts(cell, {choice["method"] for choice in choices})
    return resolved(chosen_settings(cell, [c for c in choices if c["method"] in parts]))


def ratio(
    turns: Iterable[Mapping[str, Mapping[str, float]]], method: str, against: str
) -> dict[str, float | None]:
    """The geometric mean over the rounds of one method's step time to another's, with its t
    interval."""
    found = stats.t_interval(
        [math.log(turn[method]["step_seconds"] / turn[against]["step_seconds"]) for turn in turns]
    )
    low, high = (None if bound is None else math.exp(bound) for bound in (found.low, found.high))
    return {"ratio": math.exp(found.mean), "low": low, "high": high}


def describe(found: Mapping[str, Any]) -> str:
    """The ratios as a table for people."""
    rows = [
        (method, f"{one['ratio']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}")
        for method, one in found["ratios"].items()
    ]
    return text_table(("method", f"step time against {found['against']}", "95 % interval"), rows)


def _step_seconds(cell: Cell) -> float:
    with tempfile.TemporaryDirectory(prefix="leantune-") as folder:
        with contextlib.redirect_stdout(StringIO()):  # its summary
            record = supervisor.record_of(cell, Path(folder) / "record.json")
    steps = (record["time"] or {}).get("step_seconds") or []
    if record["status"] != "ok" or len(steps) <= WARM_UP:
        why = record["reason"] or f"it took {len(steps)} steps, {WARM_UP} of them to warm up"
        raise BadInput(f"'{cell.method}' on '{cell.task.name}' cannot be timed: {why}")
    return math.fsum(steps[WARM_UP:]) / (len(steps) - WARM_UP)
