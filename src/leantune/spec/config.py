"""A config: its defaults, its blocks, and the cells that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.files.parse import check, check_size, read_yaml
from leantune.spec import plugins
from leantune.spec.cells import Cell, resolve_cell
from leantune.spec.settings import settings_of_stack

CALIBRATION_LIMITS = {
    "limit": 0.01,
    "sleep_limit": 0.5,
}  # relative errors: of memory figures, of slept seconds
TIMED_SETTINGS = {"task.evaluations": 1, "task.test": 16}  # nothing but the training is timed


def expand(config: Mapping[str, Any]) -> list[Cell]:
    """Every cell of a validated config, in the order of the file, each once."""
    cells: dict[str, Cell] = {}
    for block in runnable(config):
        for model in block["models"]:
            for task in block["tasks"]:
                for method in block["methods"]:
                    mine = settings_for(config, block, method, task)
                    for seed in block.get("seeds", config["seeds"]):
                        cell = resolve_cell(
                            model,
                            task,
                            method,
                            seed,
                            device=config["device"],
                            overrides=mine,
                            flatness=block.get("flatness", 0),
                            on=config["hardware"],
                        )
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


def settings_for(
    config: Mapping[str, Any], block: Mapping[str, Any], method: str, task: str
) -> dict[str, Any]:
    """What a config and one of its blocks set for a stack on a task. A block's `epochs` become the
    task's steps."""
    spec = plugins.get("tasks", task).spec
    settings = {**config.get("set", {}), **block.get("set", {})}
    if "epochs" in block:
        if "task.steps" in block.get("set", {}):
            raise BadInput("config: a block has both 'epochs' and 'task.steps'; drop one of them")
        train = settings.get("task.train", spec.splits.train)
        batch = settings.get("task.batch", spec.training.batch)
        if (
            isinstance(train, int) and isinstance(batch, int) and batch > 0
        ):  # else `resolve` says what is wrong
            settings["task.steps"] = -(-block["epochs"] * train // batch)
    return settings_of_stack(settings, method, spec.kind)


def load_config(source: Path | Mapping[str, Any], grid: str | None = None) -> dict[str, Any]:
    """A config with its defaults, validated. Raises BadInput naming file and key.

    The blocks of `grids` become `cells`, each with the name of its `grid`, in place of those that
    the config has. With `grid`, or the config's key of that name, those of other grids are left
    out, here and in `timing`.
    """
    from leantune.spec.schema import ConfigFile

    given = read_yaml(source) if isinstance(source, Path) else dict(source)
    where = source if isinstance(source, Path) else "config"
    check_size(given, "config")
    check(given, ConfigFile, where)
    grids, of_file = given.pop("grids", None), given.pop("grid", None)
    chosen = grid or of_file
    if grids is not None:
        given["cells"] = [
            {**block, "grid": name} for name, blocks in grids.items() for block in blocks
        ]
    if "cells" not in given:
        raise BadInput(
            f"{where}: neither key 'cells' nor 'grids' says what to run; give one of them"
        )
    names = dict.fromkeys(block["grid"] for block in given["cells"] if "grid" in block)
    if chosen is not None and chosen not in names:
        raise BadInput(
            f"{where}: no grid is called '{chosen}'; its grids: {', '.join(names) or 'none'}"
        )
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
        config[key] = [
            block for block in config[key] if chosen in (None, block.get("grid", chosen))
        ]
    return config
