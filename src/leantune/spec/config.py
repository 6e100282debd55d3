"""A config: its defaults, its blocks, and the cells that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leantune.errors import BadInput
from leantune.files.parse import check, check_size, read_yaml
from leantune.spec import plugins
from leantune.spec.cells import Cell, resolve_cell
from leantune.spec.settings import settings_of_stack

if TYPE_CHECKING:
    from leantune.spec.schema import CellsBlock, ConfigFile, TimingBlock

# the largest relative errors: of memory that is known, of slept seconds
CALIBRATION_LIMITS = {"limit": 0.01, "sleep_limit": 0.5}
TIMED_SETTINGS = {"task.evaluations": 1, "task.test": 16}  # nothing but the training is timed


def expand(config: ConfigFile) -> list[Cell]:
    """Every cell of a loaded config, in the order of the file, each once."""
    cells: dict[str, Cell] = {}
    for block in runnable(config):
        for model, task, method in product(block.models, block.tasks, block.methods):
            settings = settings_for(config, block, method, task)
            for seed in block.seeds or config.seeds:
                cell = resolve_cell(
                    model,
                    task,
                    method,
                    seed,
                    device=config.device,
                    overrides=settings,
                    flatness=block.flatness,
                    on=config.hardware,
                )
                former = cells.setdefault(cell.record_path, cell)
                if former.hashes["model"] != cell.hashes["model"]:
                    raise BadInput(
                        f"config: models '{former.model.word}' and '{model}' are both written "
                        f"'{cell.model.name}' in records; give each a config and an output of its "
                        "own"
                    )
                if former.hashes != cell.hashes:
                    raise BadInput(
                        f"config: two blocks give '{method}' on '{task}' different settings under "
                        "one record; give one of them a point of its own"
                    )
    return list(cells.values())


def runnable(config: ConfigFile) -> list[CellsBlock]:
    """The blocks of a loaded config whose cells a run starts: those without `not_run`."""
    return [block for block in config.cells if block.not_run is None]


def settings_for(
    config: ConfigFile, block: CellsBlock | TimingBlock, method: str, task: str
) -> dict[str, Any]:
    """What a config and one of its blocks set for a stack on a task. A block's `epochs` become the
    task's steps."""
    spec = plugins.get("tasks", task).spec
    settings = {**config.set, **block.set}
    if epochs := getattr(block, "epochs", None):
        if "task.steps" in block.set:
            raise BadInput("config: a block has both 'epochs' and 'task.steps'; drop one of them")
        train = settings.get("task.train", spec.splits.train)
        batch = settings.get("task.batch", spec.training.batch)
        # another value is no number of examples, which `resolve_cell` says
        if isinstance(train, int) and isinstance(batch, int) and batch > 0:
            settings["task.steps"] = -(-epochs * train // batch)
    return settings_of_stack(settings, method, spec.kind)


def load_config(source: Path | Mapping[str, Any], grid: str | None = None) -> ConfigFile:
    """A config with its defaults. Raises BadInput naming file and key.

    The blocks of `grids` become `cells`, each with the name of its `grid`, in place of those that
    the config has. With `grid`, or the config's key of that name, those of other grids are left
    out, here and in `timing`.
    """
    from leantune.spec.schema import ConfigFile

    given = read_yaml(source) if isinstance(source, Path) else dict(source)
    where = source if isinstance(source, Path) else "config"
    check_size(given, "config")
    config: ConfigFile = check(given, ConfigFile, where)
    blocks = config.cells
    if config.grids:
        named = [(name, block) for name, blocks in config.grids.items() for block in blocks]
        blocks = [block.model_copy(update={"grid": name}) for name, block in named]
    if not blocks:
        raise BadInput(f"{where}: neither key 'cells' nor 'grids' says what to run; give one")
    chosen = grid or config.grid
    names = dict.fromkeys(block.grid for block in blocks if block.grid)
    if chosen not in (None, *names):
        raise BadInput(
            f"{where}: no grid is called '{chosen}'; its grids: {', '.join(names) or 'none'}"
        )
    kept = {
        "cells": [block for block in blocks if chosen in (None, block.grid or chosen)],
        "timing": [block for block in config.timing if chosen in (None, block.grid or chosen)],
    }
    return config.model_copy(update={**kept, "grids": None, "grid": None})
