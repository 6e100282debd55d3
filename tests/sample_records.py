"""Small valid records for the tests of tables and DAG."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from leantune.files.record import EMPTY, write_record

FIELDS = {
    "hardware": "test machine",
    "device": "cpu",
    "dtype": "bf16",
    "batch": 16,
    "length": 48,
    "steps": 100,
    "checkpointing": False,
    "torch": "2.13",
    "samples": "abc",
    "measurement": 1,
}


def ok(
    method: str = "full", seed: int = 0, quality: float = 0.8, peak: int = 1000, **more: Any
) -> dict[str, Any]:
    """An `ok` record. `more`: model, task, key (fields that differ), predictions, references,
    metric, higher."""
    key = {**FIELDS, **more.get("key", {})}
    record = copy.deepcopy(EMPTY)
    record.update(
        status="ok",
        cell={
            "model": more.get("model", "minilm-l6"),
            "task": more.get("task", "sentiment"),
            "method": method,
            "point": None,
            "seed": seed,
            "trial": None,
        },
        key={"short": f"cpu-b{key['batch']}", **key},
        memory={
            "peak_bytes": peak,
            "peak_source": "tensors-cpu",
            "mean_peak_bytes": peak,
            "tensors": {
                "source": "tensors-cpu",
                "path": "cpu",
                "peak_bytes": peak,
                "by_kind": {"weights": peak},
            },
            "cuda": None,
            "host": None,
            "predicted": None,
        },
        parameters={"total": 20, "trainable": 10, "head": 2},
        time={
            "step_seconds_median": 0.5,
            "step_seconds_p95": 0.6,
            "train_seconds_total": 50.0,
            "attach_seconds_cold": 0.1,
            "phases": {},
            "vs_full": None,
        },
        quality={
            "metric": more.get("metric", "accuracy"),
            "value": quality,
            "higher_is_better": more.get("higher", True),
            **{"metrics": {}, "curve": []},
            **dict.fromkeys(("target", "steps_to_target", "seconds_to_target")),
            "predictions": more.get("predictions", []),
            "references": more.get("references", []),
        },
        provenance={
            "command": more.get("command", "leantune run --model minilm-l6 --out FILE"),
            "commit": None,
            "dirty": None,
            "hashes": more.get("hashes", {"method": "m", "task": "t", "model": "w"}),
        },
    )
    return record


def failed(method: str = "full", seed: int = 0, status: str = "oom", **more: Any) -> dict[str, Any]:
    """A record of a cell that did not get through."""
    record = ok(method, seed, **more)
    record.update(
        status=status,
        phase="attach",
        reason="too big",
        memory=None,
        parameters=None,
        time=None,
        quality=None,
    )
    record["key"]["samples"] = None
    return record


def place(record: dict[str, Any]) -> str:
    """The record's file below `records/`."""
    cell = record["cell"]
    place = (record["key"]["short"], cell["model"], cell["task"], cell["method"], cell["seed"])
    return "/".join(map(str, place)) + ".json"


def write(output: Path, *records: dict[str, Any]) -> None:
    """Write records where a run would."""
    for record in records:
        write_record(output / "records" / place(record), record)
