"""The format of published runs: one architecture, many runs of it, each with what it reserved on
the GPU.

`meta.architecture` is a transformers config with its `model_type`, so no hub is asked. A run has
`experiment`, `peft_config` (null or empty: full fine-tuning), `train_config` and
`memory_max_bytes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leantune.errors import BadInput

TRAINING = (
    "dtype",
    "batch_size",
    "optimizer_type",
    "optimizer_kwargs",
)  # without these nothing can be replayed


@dataclass(frozen=True)
class Run:
    """One published training run."""

    experiment: str
    peft_config: dict[str, Any]  # empty for full fine-tuning
    train_config: dict[str, Any]
    measured: int  # bytes: the most that was reserved, less what was reserved at the start


@dataclass(frozen=True)
class Published:
    """The content of a file."""

    architecture: dict[str, Any]
    source: str
    gpu: str
    runs: list[Run]


def load(path: Path) -> Published:
    """Read a file. Raises BadInput with the run and the key that is wrong."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise BadInput(
            f"cannot read '{path}': {error.strerror}; name a file of published runs"
        ) from error
    except ValueError as error:
        raise BadInput(f"'{path}' is not JSON: {error}") from error
    meta = _entry(content, "meta", dict, str(path))
    architecture = _entry(meta, "architecture", dict, "'meta'")
    _entry(architecture, "model_type", str, "'meta.architecture'")
    runs = _entry(content, "runs", list, str(path))
    if not runs:
        raise BadInput(f"'{path}' holds no runs; add at least one to 'runs'")
    return Published(
        architecture,
        source=str(meta.get("source", "a source that the file does not name")),
        gpu=str(meta.get("gpu", "")),
        runs=[_run(run, number) for number, run in enumerate(runs)],
    )


def _run(run: Any, number: int) -> Run:
    where = f"run {number}"
    name = _entry(run, "experiment", str, where)
    where = f"run {number} ('{name}')"
    train = _entry(run, "train_config", dict, where)
    for key in TRAINING:
        if key not in train:
            raise BadInput(f"'train_config' of {where} has no '{key}'; add it")
    measured = _entry(run, "memory_max_bytes", int, where)
    if measured <= 0:
        raise BadInput(
            f"'memory_max_bytes' of {where} is {measured}; it must be a number of bytes above 0"
        )
    peft_config = run.get("peft_config") or {}
    if not isinstance(peft_config, dict) or (peft_config and "peft_type" not in peft_config):
        raise BadInput(
            f"'peft_config' of {where} has no 'peft_type'; add it, "
            "or leave it null for full fine-tuning"
        )
    return Run(name, peft_config, train, measured)


def _entry(holder: Any, key: str, kind: type, where: str) -> Any:
    value = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadInput(
            f"{where} has no '{key}' of type {kind.__name__}; add it as in peft_l40s_runs.json"
        )
    return value
