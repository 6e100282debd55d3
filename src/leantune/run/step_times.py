"""Step times side by side: the methods take turns on a machine of their own, round after round.

A cell's own times depend on its neighbours. Here each method runs as a cell of its own, one after
another and again (A B A B), and the ratio to the first is taken within a round, so that what drifts
slowly cancels. A method's time is the mean over its steps but the two of warm-up, hooks included.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import psutil

from leantune.errors import RETRY, BadInput
from leantune.files import record
from leantune.files.text import text_table
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
    its interval. `choices`: what tuning chose for some of the methods (`tune.choice`).

    Raises BadInput for wrong names, fewer than two methods or rounds, or a cell that does not end
    well.
    """
    if len(methods) < 2 or rounds < 2:
        raise BadInput(
            "a comparison needs two methods and two rounds at least: --methods full lora --rounds 2"
        )
    jobs = []
    for method in methods:
        mine = settings_of_stack(settings, method, plugins.get("tasks", task).spec.kind)
        job = resolve_cell(model, task, method, device=device, overrides={**TIMED_SETTINGS, **mine})
        parts = tuned_parts(job, {one["method"] for one in choices})
        chosen = chosen_settings(job, [one for one in choices if one["method"] in parts])
        jobs.append(
            resolve_cell(
                model, task, method, device=device, overrides={**TIMED_SETTINGS, **chosen, **mine}
            )
        )
    turns = []
    for turn in range(rounds):
        taken = {}
        for job in jobs:
            others = psutil.cpu_percent(
                interval=0.5
            )  # of all cores, in percent, while nothing of ours runs
            taken[job.method] = {"step_seconds": _step_seconds(job), "others_percent": others}
            print(
                f"round {turn + 1} of {rounds}: {job.method} {taken[job.method]['step_seconds']:.4f} s a step",
                file=sys.stderr,
                flush=True,
            )
        turns.append(taken)
    first = jobs[0]
    return {
        "model": first.model_name,
        "task": first.task.name,
        "key": {name: first.key[name] for name in STEP_TIME_KEY},
        "steps": first.training["steps"],
        "against": first.method,
        "rounds": turns,
        "ratios": {job.method: ratio(turns, job.method, first.method) for job in jobs[1:]},
        "settings": {job.method: job.overrides for job in jobs},
        "hashes": {job.method: job.hashes["method"] for job in jobs},
        "provenance": provenance(
            _command(first, methods, rounds, settings), first.hashes, first.hardware
        ),
    }


def ratio(
    turns: Iterable[Mapping[str, Mapping[str, float]]], method: str, against: str
) -> dict[str, float | None]:
    """The geometric mean over the rounds of one method's step time to another's, with its t
    interval."""
    logs = [
        math.log(turn[method]["step_seconds"] / turn[against]["step_seconds"]) for turn in turns
    ]
    found = stats.t_interval(logs)
    low, high = (None if bound is None else math.exp(bound) for bound in (found.low, found.high))
    return {"ratio": math.exp(found.mean), "low": low, "high": high}


def describe(found: Mapping[str, Any]) -> str:
    """The ratios as a table for people."""
    rows = [
        (method, f"{one['ratio']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}")
        for method, one in found["ratios"].items()
    ]
    return text_table(("method", f"step time against {found['against']}", "95 % interval"), rows)


def _step_seconds(job: Cell) -> float:
    with tempfile.TemporaryDirectory(prefix="leantune-") as folder:
        out = Path(folder) / "record.json"
        with contextlib.redirect_stdout(StringIO()):
            if supervisor.run(job, out) == RETRY:
                raise SystemExit(RETRY)
        done = record.read_record(out)
    steps = (done["time"] or {}).get("step_seconds") or []
    if done["status"] != "ok" or len(steps) <= WARM_UP:
        why = done["reason"] or f"it took {len(steps)} steps, {WARM_UP} of them to warm up"
        raise BadInput(f"'{job.method}' on '{job.task.name}' cannot be timed: {why}")
    return math.fsum(steps[WARM_UP:]) / (len(steps) - WARM_UP)


def _command(
    first: Cell, methods: Sequence[str], rounds: int, settings: Mapping[str, Any]
) -> list[str]:
    words = [
        "leantune",
        "compare",
        "--model",
        first.model.name,
        "--task",
        first.task.name,
        "--methods",
        *methods,
    ]
    words += ["--rounds", str(rounds), "--device", first.device]
    for key, value in settings.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return words
