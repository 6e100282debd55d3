"""Tuning: cells that try settings and are scored on the validation split, so that all methods get
equal trials.

A trial's record lies in `<output>/tuning/` under the trial's number. A config's `trials: N` gives
each method that lists values under `search:` N trials on each model and task with seed 0: its
default, then the nearest points of the grid. The best one's settings serve every seed, every point
of the method and every stack that it is part of, but where the config sets a value by hand.
`leantune tune` tries a grid by hand; a trial that was made with the same code and settings is not
made again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leantune.errors import RETRY, BadInput
from leantune.files import record
from leantune.files.parse import check, read_json
from leantune.run import supervisor
from leantune.spec import plugins
from leantune.spec.cells import Cell, resolve_cell
from leantune.spec.settings import parse_settings, recorded_settings
from leantune.spec.stacks import parse_stack, plugin_names
from leantune.spec.trials import sort_key

Grid = Mapping[str, list[Any]]  # METHOD.PARAM to the values to try


def parse_grid(words: list[str]) -> dict[str, list[Any]]:
    """`["came.lr_scale=0.1,0.3"]` as a grid. Raises BadInput for another form."""
    grid = {}
    for word in words:
        key, _, values = word.partition("=")
        if not values:
            raise BadInput(f"--search '{word}' is not of the form METHOD.PARAM=VALUE,VALUE,...")
        grid[key] = [parse_settings([f"{key}={value}"])[key] for value in values.split(",")]
    return grid


def default_grid(method: str) -> dict[str, list[Any]]:
    """The values that the stack's plugins list under `search:`. Raises BadInput where none does."""
    grid = {
        f"{name}.{param}": values
        for name in plugin_names(method)
        for param, values in plugins.get("methods", name).spec.search.items()
    }
    if not grid:
        raise BadInput(
            f"'{method}' lists no values under `search:`; give them: --search METHOD.PARAM=VALUE,VALUE,..."
        )
    return grid


def trials(
    model: str,
    task: str,
    method: str,
    grid: Grid,
    seed: int,
    device: str,
    settings: Mapping[str, Any],
) -> list[Cell]:
    """A cell for every point of the grid, numbered in its order."""
    points = itertools.product(*grid.values())
    return [
        resolve_cell(
            model,
            task,
            method,
            seed,
            trial=number,
            device=device,
            overrides={**settings, **dict(zip(grid, point, strict=True))},
        )
        for number, point in enumerate(points)
    ]


def run(cell: Cell, output: Path, timeout_minutes: float) -> record.Record:
    """The trial's record, made now unless it is there already."""
    file = output / cell.record_path
    if file.is_file():
        made = record.read_record(file)
        if made["provenance"]["hashes"] == cell.hashes:
            return made
    if supervisor.run(cell, file, timeout_minutes=timeout_minutes) == RETRY:
        raise SystemExit(RETRY)
    return record.read_record(file)


def best(records: Sequence[record.Record]) -> int | None:
    """The index of the best score, the first of equals; None where no trial ended well."""
    scored = [(i, r["quality"]) for i, r in enumerate(records) if r["status"] == "ok"]
    if not scored:
        return None
    sign = -1 if scored[0][1]["higher_is_better"] else 1
    return min(scored, key=lambda found: sign * found[1]["value"])[0]


# ------------------------------------------------------------------ a config's trials


def choice(records: Sequence[record.Record]) -> dict[str, Any]:
    """What was chosen of a method's trials, and why: the content of a choice file and of a record's
    `tuning.METHOD`.

    `at_edge` names the settings whose chosen value is the smallest or largest one tried: better
    ones may lie beyond.
    """
    method = records[0]["cell"]["method"]
    rows = [
        {
            "trial": row["cell"]["trial"],
            "settings": _settings_of(row),
            "status": row["status"],
            "value": row["quality"]["value"] if row["status"] == "ok" else None,
        }
        for row in records
    ]
    winner = best(records)
    chosen = {} if winner is None else rows[winner]["settings"]
    defaults = {
        f"{method}.{name}": value
        for name, value in parse_stack(method, _kind(records[0]))[-1].params.items()
    }
    tried: dict[str, list[Any]] = {}  # of every setting that some trial changes, its value in each
    for key in sorted({key for row in rows for key in row["settings"]}):
        tried[key] = sorted(({**defaults, **row["settings"]}[key] for row in rows), key=sort_key)
    now = {**defaults, **chosen}
    at_edge = [
        key
        for key, values in tried.items()
        if winner is not None and now[key] in (values[0], values[-1])
    ]
    return {
        "method": method,
        "metric": next(
            (row["quality"]["metric"] for row in records if row["status"] == "ok"), None
        ),
        "trials": rows,
        "chosen": winner,
        "settings": chosen,
        "at_edge": at_edge,
    }


def read_choice(file: Path) -> dict[str, Any]:
    """What `choice` wrote. Raises BadInput naming a file that is something else."""
    from leantune.files.schema import Choice

    try:
        found = read_json(file)
        check(found, Choice, file)
    except BadInput as error:
        raise BadInput(
            f"{error}: not a choice of settings; make it with `leantune choose`"
        ) from error
    return found


def _settings_of(row: record.Record) -> dict[str, Any]:
    """The settings of its own method that a trial was run with."""
    given = recorded_settings(row)["set"]
    return {
        key: value for key, value in given.items() if key.partition(".")[0] == row["cell"]["method"]
    }


def _kind(row: record.Record) -> str:
    return plugins.get("tasks", row["cell"]["task"]).spec.kind


def describe(grid: Grid, done: list[Cell], records: list[record.Record]) -> str:
    """A line per trial with its settings and its score on the validation split, the best one
    marked."""
    winner = best(records)
    lines = []
    for i, (cell, row) in enumerate(zip(done, records, strict=True)):
        settings = " ".join(f"{key}={cell.overrides[key]:g}" for key in grid)
        score = (
            f"{row['quality']['metric']} {row['quality']['value']:.4f}"
            if row["status"] == "ok"
            else row["status"]
        )
        lines.append(
            f"{cell.method}  trial {cell.trial}  {settings}  {score}{'  best' if i == winner else ''}"
        )
    return "\n".join(lines)
