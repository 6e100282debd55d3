"""Tuning: one cell per point of a grid of settings, scored on the validation split, so that all get equal trials.

A trial's record lies in `<output>/tuning/` under the trial's number; one that was made with the same code and
settings is not made again. What was found is then written into a config's `set:`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leantune import cell as cells
from leantune import plan, record, registry
from leantune.errors import BadInput
from leantune.plan import Cell

Grid = Mapping[str, list[Any]]  # METHOD.PARAM to the values to try


def parse_grid(words: list[str]) -> dict[str, list[Any]]:
    """`["came.lr_scale=0.1,0.3"]` as a grid. Raises BadInput for another form."""
    grid = {}
    for word in words:
        key, _, values = word.partition("=")
        if not values:
            raise BadInput(f"--search '{word}' is not of the form METHOD.PARAM=VALUE,VALUE,...")
        grid[key] = [plan.parse_settings([f"{key}={value}"])[key] for value in values.split(",")]
    return grid


def default_grid(method: str) -> dict[str, list[Any]]:
    """The values that the stack's plugins list under `search:`. Raises BadInput where none does."""
    names = [word.partition("@")[0] for word in method.split("+")]
    grid = {
        f"{name}.{param}": values
        for name in names
        for param, values in registry.get("methods", name).spec.get("search", {}).items()
    }
    if not grid:
        raise BadInput(f"'{method}' lists no values under `search:`; give them: --search METHOD.PARAM=VALUE,VALUE,...")
    return grid


def trials(
    model: str, task: str, method: str, grid: Grid, seed: int, device: str, settings: Mapping[str, Any]
) -> list[Cell]:
    """A cell for every point of the grid, numbered in its order."""
    points = itertools.product(*grid.values())
    return [
        plan.resolve(
            model, task, method, seed, trial=number, device=device,
            overrides={**settings, **dict(zip(grid, point, strict=True))},
        )
        for number, point in enumerate(points)
    ]  # fmt: skip


def run(cell: Cell, output: Path, timeout_minutes: float) -> record.Record:
    """The trial's record, made now unless it is there already."""
    file = output / cell.record_path
    if file.is_file():
        made = record.read_record(file)
        if made["provenance"]["hashes"] == cell.hashes:
            return made
    cells.run(cell, file, timeout_minutes=timeout_minutes)
    return record.read_record(file)


def best(records: list[record.Record]) -> int | None:
    """The index of the best score, the first of equals; None where no trial ended well."""
    scored = [(i, r["quality"]) for i, r in enumerate(records) if r["status"] == "ok"]
    if not scored:
        return None
    sign = -1 if scored[0][1]["higher_is_better"] else 1
    return min(scored, key=lambda found: sign * found[1]["value"])[0]


def describe(grid: Grid, done: list[Cell], records: list[record.Record]) -> str:
    """A line per trial with its settings and its score on the validation split, the best one marked."""
    winner = best(records)
    lines = []
    for i, (cell, row) in enumerate(zip(done, records, strict=True)):
        settings = " ".join(f"{key}={cell.overrides[key]:g}" for key in grid)
        score = f"{row['quality']['metric']} {row['quality']['value']:.4f}" if row["status"] == "ok" else row["status"]
        lines.append(f"{cell.method}  trial {cell.trial}  {settings}  {score}{'  best' if i == winner else ''}")
    return "\n".join(lines)
