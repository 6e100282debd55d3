"""What a config asks for: its cells, each with resolved settings, comparability key, hashes and record path.

Torch-free and fast: the DAG calls `expand` once. A `Cell` is also what `leantune run` resolves from its flags,
so the two can never disagree.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leantune import MEASUREMENT_VERSION, registry
from leantune.errors import BadInput
from leantune.reading import check_size, parse_yaml
from leantune.registry import Part, Plugin

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
CALIBRATION_LIMITS = {"limit": 0.01, "sleep_limit": 0.5}  # relative errors: of memory figures, of slept seconds


@dataclass(frozen=True)
class Cell:
    """One run: model x task x stack x seed, every setting resolved."""

    model: Plugin
    task: Plugin
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
        return registry.stack_name(self.parts)

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """What the record depends on; a record with other hashes is stale."""
        settings = {"splits": self.splits, "training": self.training}
        return {
            "method": registry.stack_hash(self.parts),
            "task": registry.task_hash(self.task, settings),
            "model": "none" if self.model_name == "none" else registry.model_hash(self.model),
        }

    @functools.cached_property
    def key(self) -> dict[str, Any]:
        """The comparability key; rows are ranked only where it is equal. `samples` is filled in by the worker."""
        t = self.training
        key: dict[str, Any] = {
            "hardware": self.hardware,
            "device": self.device,
            "dtype": t["dtype"],
            "batch": t["batch"],
            "length": t["length"],
            "steps": t["steps"],
            "checkpointing": t["checkpointing"],
            "torch": torch_minor(),
            "measurement": MEASUREMENT_VERSION,
        }
        return {"short": short_key(key, self.hashes["task"]), **key, "samples": None}

    @property
    def model_name(self) -> str:
        """The model of the row: a control has none."""
        return "none" if self.parts[0].slot == "control" else self.model.name

    @property
    def record_path(self) -> str:
        """Where the record goes, below `<output>/`."""
        folder = "tuning" if self.trial is not None else "records"
        name = f"{self.seed}.json" if self.trial is None else f"{self.seed}-trial{self.trial}.json"
        return f"{folder}/{self.key['short']}/{self.model_name}/{self.task.name}/{self.method}/{name}"

    @property
    def memory_estimate(self) -> int:
        """Bytes of host memory to ask a scheduler for: a coarse upper bound, 16 bytes a parameter and 1.5 GiB."""
        parameters = 0 if self.model_name == "none" else int(self.model.spec["parameters"])
        return int(1.5 * 2**30) + 16 * parameters

    def command(self, out: str = "FILE") -> list[str]:
        """The exact words that run this cell again."""
        words = [
            "leantune",
            "run",
            "--model",
            self.model.name,
            "--task",
            self.task.name,
            "--method",
            self.method,
        ]
        words += ["--seed", str(self.seed), "--device", self.device]
        words += [] if self.trial is None else ["--trial", str(self.trial)]
        for key, value in self.overrides.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        words += ["--trust-remote-code", self.model.name] if self.model.spec.get("trust_remote_code") else []
        words += ["--flatness", str(self.flatness)] if self.flatness else []
        return [*words, "--out", out]


def resolve(
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
    """One cell from names. `overrides`: `task.KEY` changes a split size or training setting, `METHOD.KEY` a
    method's setting. `on`: the hardware that it will run on, where that is not this machine. Raises BadInput naming
    the word that is wrong and what is allowed."""
    overrides = dict(overrides or {})
    task_plugin = registry.get("tasks", task)
    own = {k.removeprefix("task."): v for k, v in overrides.items() if k.startswith("task.")}
    splits = {"seed": 0, **task_plugin.spec["splits"]}
    training = {**TRAINING_DEFAULTS, **task_plugin.spec["training"]}
    for key, value in own.items():
        target = splits if key in ("train", "validation", "test", "seed") else training
        if key not in splits and key not in training:
            raise BadInput(
                f"'task.{key}' is no setting of task '{task}'; its settings: {', '.join([*splits, *training])}"
            )
        target[key] = value
    if own:
        _check_settings(task_plugin.file, task, json.dumps([splits, training], sort_keys=True))
    for_methods = {k: v for k, v in overrides.items() if not k.startswith("task.")}
    parts = registry.parse_stack(method, task_plugin.spec["kind"], for_methods)
    device = resolve_device(device)
    return Cell(
        registry.get("models", model), task_plugin, parts, seed, trial, device, splits, training, overrides,
        on or hardware(device), flatness,
    )  # fmt: skip


@functools.cache
def _check_settings(file: Path, task: str, settings: str) -> None:
    """Raise BadInput for splits or training settings that a task.yaml could not have; seeds share one check."""
    splits, training = json.loads(settings)
    resolved = {**registry.get("tasks", task).spec, "splits": splits, "training": training}
    registry.validate(resolved, "task", f"task '{task}' with --set")


def expand(config: Mapping[str, Any]) -> list[Cell]:
    """Every cell of a validated config, in the order of the file, each once."""
    cells: dict[str, Cell] = {}
    for block in runnable(config):
        for model in block["models"]:
            for task in block["tasks"]:
                for method in block["methods"]:
                    mine = settings_for(config, block, method, task)
                    for seed in block.get("seeds", config["seeds"]):
                        cell = resolve(
                            model, task, method, seed, device=config["device"], overrides=mine,
                            flatness=block.get("flatness", 0), on=config["hardware"],
                        )  # fmt: skip
                        former = cells.setdefault(cell.record_path, cell)
                        if former.hashes != cell.hashes:
                            raise BadInput(
                                f"config: two blocks give '{method}' on '{task}' different settings under one "
                                "record; give one of them a point of its own"
                            )
    return list(cells.values())


def runnable(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The blocks of a validated config whose cells a run starts: those without `not_run`."""
    return [block for block in config["cells"] if "not_run" not in block]


def short_key(key: Mapping[str, Any], task_hash: str) -> str:
    """The comparability key in a word, for paths and tables: what is known of it before a run, and a digest."""
    known = {name: setting for name, setting in key.items() if name not in ("short", "samples")}
    digest = hashlib.sha256(json.dumps([known, task_hash], sort_keys=True).encode()).hexdigest()[:8]
    return f"{key['device']}-{key['dtype']}-b{key['batch']}-l{key['length']}-s{key['steps']}-{digest}"


def settings_for(config: Mapping[str, Any], block: Mapping[str, Any], method: str, task: str) -> dict[str, Any]:
    """What a config and one of its blocks set for a stack on a task. A block's `epochs` become the task's steps."""
    spec = registry.get("tasks", task).spec
    settings = {**config.get("set", {}), **block.get("set", {})}
    if "epochs" in block:
        if "task.steps" in block.get("set", {}):
            raise BadInput("config: a block has both 'epochs' and 'task.steps'; drop one of them")
        train = settings.get("task.train", spec["splits"]["train"])
        batch = settings.get("task.batch", spec["training"]["batch"])
        if isinstance(train, int) and isinstance(batch, int) and batch > 0:  # else `resolve` says what is wrong
            settings["task.steps"] = -(-block["epochs"] * train // batch)
    return settings_of_stack(settings, method, spec["kind"])


def settings_of_stack(settings: Mapping[str, Any], method: str, kind: str) -> dict[str, Any]:
    """Those of the settings that concern a stack: the task's and those of its parts."""
    parts = registry.parse_stack(method, kind)
    stacked = {"task", *(part.plugin.name for part in parts)}  # `came` trains with `full`'s rate
    return {key: value for key, value in settings.items() if key.partition(".")[0] in stacked}


def load_config(source: Path | Mapping[str, Any], grid: str | None = None) -> dict[str, Any]:
    """A config with its defaults, validated. Raises BadInput naming file and key.

    The blocks of `grids` become `cells`, each with the name of its `grid`, in place of those that the config has.
    With `grid`, or the config's key of that name, those of other grids are left out, here and in `timing`.
    """
    given = registry.read_yaml(source) if isinstance(source, Path) else dict(source)
    where = source if isinstance(source, Path) else "config"
    check_size(given, "config")
    registry.validate(given, "config", where)
    grids, of_file = given.pop("grids", None), given.pop("grid", None)
    chosen = grid or of_file
    if grids is not None:
        given["cells"] = [{**block, "grid": name} for name, blocks in grids.items() for block in blocks]
    if "cells" not in given:
        raise BadInput(f"{where}: neither key 'cells' nor 'grids' says what to run; give one of them")
    names = dict.fromkeys(block["grid"] for block in given["cells"] if "grid" in block)
    if chosen is not None and chosen not in names:
        raise BadInput(f"{where}: no grid is called '{chosen}'; its grids: {', '.join(names) or 'none'}")
    defaults = {
        "output": "runs/default",
        "seeds": [0],
        "device": "auto",
        "hardware": None,
        "allowed_statuses": ["ok", "unsupported"],
        "timeout_minutes": 60,
        "trials": 0,
        "timing": [],
        "footprint": [],
        "claims": False,
    }
    limits = {**CALIBRATION_LIMITS, **given.get("calibration", {})}
    config = {**defaults, **given, "calibration": limits}
    for key in ("cells", "timing"):
        config[key] = [block for block in config[key] if chosen in (None, block.get("grid", chosen))]
    return config


def command_flags(command: str) -> list[tuple[str, str]]:
    """The flags and values of a record's command. Raises BadInput for one that cannot be read."""
    try:
        words = shlex.split(command)[2:]
    except ValueError as error:
        raise BadInput(f"the record's command cannot be read ({error}); run its cell again") from error
    return list(zip(words[::2], words[1::2], strict=False))


def command_settings(command: str) -> dict[str, Any]:
    """What a record's command sets (`--set`)."""
    return parse_settings([value for flag, value in command_flags(command) if flag == "--set"])


def parse_settings(words: list[str]) -> dict[str, Any]:
    """`["lora.rank=4", "task.steps=10"]` as a mapping; values are YAML scalars or lists."""
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*", key):
            raise BadInput(f"--set '{word}' is not of the form METHOD.PARAM=VALUE or task.KEY=VALUE")
        settings[key] = parse_yaml(value, f"--set '{word}'")
        if isinstance(settings[key], str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", settings[key]):
            settings[key] = float(settings[key])  # YAML 1.1 reads 1e-3 as a string
    return settings


@functools.cache
def resolve_device(device: str) -> str:
    """`auto` is cuda where a GPU answers. Asks nvidia-smi, so that no torch is imported."""
    if device != "auto":
        return device
    return "cuda" if _gpu_name() else "cpu"


@functools.cache
def _gpu_name() -> str | None:
    try:
        out = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = [line.strip() for line in out.stdout.splitlines() if line.strip()]
    return names[0] if out.returncode == 0 and names else None


@functools.cache
def hardware(device: str) -> str:
    """The GPU's name, or the CPU's model; times are compared only where it is equal."""
    if device == "cuda":
        return _gpu_name() or "unknown GPU"
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model.group(1).strip() if model else platform.processor() or platform.machine()


@functools.cache
def torch_minor() -> str:
    """Installed torch as `major.minor`, read without importing it."""
    return ".".join(importlib.metadata.version("torch").split("+")[0].split(".")[:2])
