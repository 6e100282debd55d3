"""What a config asks for: its cells, each with resolved settings, comparability key, hashes and
record path.

Torch-free and fast: the DAG calls `expand` once. A `Cell` is also what `leantune run` resolves from
its flags, so the two can never disagree.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from leantune import MEASUREMENT_VERSION
from leantune.errors import BadInput
from leantune.files.parse import check
from leantune.files.record import Record
from leantune.machine.gpus import hardware_name, resolve_device
from leantune.spec import models, plugins
from leantune.spec.hashes import model_hash, stack_hash, task_hash
from leantune.spec.plugins import Plugin
from leantune.spec.settings import recorded_settings
from leantune.spec.stacks import Part, parse_stack, stack_name

if TYPE_CHECKING:
    from leantune.spec.schema import ModelFile, TaskFile

# What step times are compared within: the comparability key without the number of steps.
STEP_TIME_KEY = (
    *("hardware", "device", "dtype", "batch", "length"),
    *("checkpointing", "torch", "measurement"),
)
TRAINING_DEFAULTS: dict[str, Any] = {
    "dtype": "bf16",
    "head_lr": 1.0e-3,
    "warmup": 0.1,
    "schedule": "linear",
    "clip": 0.0,  # 0 is no gradient clipping: the norm's rounding would differ between methods
    "accumulate": 1,
    "checkpointing": False,
    "evaluations": 2,
}


@dataclass(frozen=True)
class Cell:
    """One run: model x task x stack x seed, every setting resolved."""

    model: Plugin[ModelFile]
    task: Plugin[TaskFile]
    parts: tuple[Part, ...]
    seed: int
    trial: int | None
    device: str  # cpu | cuda
    splits: dict[str, int]
    training: dict[str, Any]
    overrides: dict[str, Any]  # the --set words, as given
    hardware: str
    flatness: int = 0  # random changes after training that tell how flat the minimum is

    @property
    def method(self) -> str:
        return stack_name(self.parts)

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """What the record depends on; a record with other hashes is stale."""
        settings = {"splits": self.splits, "training": self.training}
        return {
            "method": stack_hash(self.parts),
            "task": task_hash(self.task, settings),
            "model": (
                "none" if self.model_name == "none" else model_hash(models.pinned(self.model))
            ),
        }

    @functools.cached_property
    def key(self) -> dict[str, Any]:
        """The comparability key; rows are ranked only where it is equal. `samples` is filled in by
        the worker."""
        shape = ("dtype", "batch", "length", "steps", "checkpointing")
        key: dict[str, Any] = {
            "hardware": self.hardware,
            "device": self.device,
            **{name: self.training[name] for name in shape},
            "torch": torch_minor(),
            "measurement": MEASUREMENT_VERSION,
        }
        return {"short": short_key(key, self.hashes["task"]), **key, "samples": None}

    @property
    def model_name(self) -> str:
        """The model of the row: a control has none."""
        return "none" if self.parts[0].slot == "control" else self.model.name

    @property
    def settings(self) -> dict[str, Any]:
        """What a record keeps of the cell so that `cell_of_record` makes it again."""
        return {"model": self.model.word, "set": self.overrides, "flatness": self.flatness}

    @property
    def record_path(self) -> str:
        """Where the record goes, below `<output>/`."""
        place = f"{self.key['short']}/{self.model_name}/{self.task.name}/{self.method}/{self.seed}"
        return (
            f"records/{place}.json"
            if self.trial is None
            else f"tuning/{place}-trial{self.trial}.json"
        )

    @property
    def memory_estimate(self) -> int:
        """Bytes of host memory to ask a scheduler for: a coarse upper bound, 16 bytes a parameter
        and 1.5 GiB."""
        parameters = 0 if self.model_name == "none" else models.parameters(self.model)
        return int(1.5 * 2**30) + 16 * parameters

    def command(self, out: str = "FILE") -> list[str]:
        """The exact words that run this cell again, for people to copy."""
        flags = [
            ("--model", self.model.word),
            ("--task", self.task.name),
            ("--method", self.method),
            ("--seed", self.seed),
            ("--device", self.device),
            ("--trial", self.trial),
            *(("--set", f"{key}={json.dumps(value)}") for key, value in self.overrides.items()),
            ("--trust-remote-code", self.model.name if self.model.spec.trust_remote_code else None),
            ("--flatness", self.flatness or None),
            ("--out", out),
        ]
        given = [(flag, str(value)) for flag, value in flags if value is not None]
        return ["leantune", "run", *chain.from_iterable(given)]


def resolve_cell(
    model: str,
    task: str,
    method: str,
    seed: int = 0,
    *,
    trial: int | None = None,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    flatness: int = 0,
    on: str | None = None,
) -> Cell:
    """One cell from names. `overrides`: `task.KEY` changes a split size or training setting,
    `METHOD.KEY` a method's setting. `on`: the hardware that it will run on, where that is not this
    machine. Raises BadInput naming the word that is wrong and what is allowed."""
    overrides = dict(overrides or {})
    task_plugin = plugins.get("tasks", task)
    own = {k.removeprefix("task."): v for k, v in overrides.items() if k.startswith("task.")}
    splits = {"seed": 0, **task_plugin.raw["splits"]}
    training = {**TRAINING_DEFAULTS, **task_plugin.raw["training"]}
    for key, value in own.items():
        target = splits if key in ("train", "validation", "test", "seed") else training
        if key not in splits and key not in training:
            raise BadInput(
                f"'task.{key}' is no setting of task '{task}'; "
                f"its settings: {', '.join([*splits, *training])}"
            )
        target[key] = value
    if own:
        from leantune.spec.schema import SplitsBlock, TrainingBlock  # not where only names are told

        check(splits, SplitsBlock, f"task '{task}' with --set")
        check(training, TrainingBlock, f"task '{task}' with --set")
    for_methods = {k: v for k, v in overrides.items() if not k.startswith("task.")}
    parts = parse_stack(method, task_plugin.spec.kind, for_methods)
    device = resolve_device(device)
    return Cell(
        plugins.get("models", model),
        task_plugin,
        parts,
        seed,
        trial,
        device,
        splits,
        training,
        overrides,
        on or hardware_name(device),
        flatness,
    )


def short_key(key: Mapping[str, Any], task_hash: str) -> str:
    """The comparability key in a word, for paths and tables: what is known of it before a run, and
    a digest."""
    known = {name: setting for name, setting in key.items() if name not in ("short", "samples")}
    digest = hashlib.sha256(json.dumps([known, task_hash], sort_keys=True).encode()).hexdigest()[:8]
    return (
        f"{key['device']}-{key['dtype']}-b{key['batch']}-l{key['length']}-s{key['steps']}-{digest}"
    )


@functools.cache
def torch_minor() -> str:
    """Installed torch as `major.minor`, read without importing it."""
    return ".".join(importlib.metadata.version("torch").split("+")[0].split(".")[:2])


def cell_of_record(record: Record) -> Cell:
    """The cell of a record as the present files have it. Raises BadInput where a plugin or setting
    is gone."""
    cell, settings = record["cell"], recorded_settings(record)
    return resolve_cell(
        settings["model"],
        cell["task"],
        cell["method"],
        cell["seed"],
        trial=cell["trial"],
        device=record["key"]["device"],
        overrides=settings["set"],
        flatness=settings["flatness"],
    )
