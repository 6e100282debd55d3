"""Tuning: cells that try settings and are scored on the validation split, so that all methods get
equal trials.

A trial's record lies in `<output>/tuning/` under the trial's number. A config's `trials: N` gives
each method that lists values under `search:` N trials on each model and task with seed 0: its
default, then the nearest points of the grid. The best one's settings serve every seed, every point
of the method and every stack that it is part of, but where the config sets a value by hand.
`leantune tune` tries a grid by hand; a trial that was made with the same code and settings is not
made again.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.files.parse import check, read_json
from leantune.files.record import Record, read_record
from leantune.files.text import text_table
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
            f"'{method}' lists no values under `search:`; "
            "give them: --search METHOD.PARAM=VALUE,VALUE,..."
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
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    cell = (model, task, method, seed)
    return [
        resolve_cell(*cell, trial=number, device=device, overrides={**settings, **point})
        for number, point in enumerate(points)
    ]


def run(cell: Cell, output: Path, timeout_minutes: float) -> Record:
    """The trial's record, made now unless it is there already."""
    file = output / cell.record_path
    made = read_record(file) if file.is_file() else None
    if made is None or made["provenance"]["hashes"] != cell.hashes:
        made = supervisor.record_of(cell, file, timeout_minutes=timeout_minutes)
    return made


def best(records: Sequence[Record]) -> int | None:
    """The index of the best score, the first of equals; None where no trial ended well."""
    losses = {
        i: record["quality"]["value"] * (-1 if record["quality"]["higher_is_better"] else 1)
        for i, record in enumerate(records)
        if record["status"] == "ok"
    }
    return min(losses, key=lambda i: losses[i], default=None)


# ------------------------------------------------------------------ a config's trials


def choice(records: Sequence[Record]) -> dict[str, Any]:
    """What was chosen of a method's trials, and why: the content of a choice file and of a record's
    `tuning.METHOD`.

    `at_edge` names the settings whose chosen value is the smallest or largest one tried: better
    ones may lie beyond.
    """
    method, task = (records[0]["cell"][name] for name in ("method", "task"))
    tried = [
        {
            "trial": record["cell"]["trial"],
            "settings": _own_settings(record, method),
            "status": record["status"],
            "value": record["quality"]["value"] if record["status"] == "ok" else None,
        }
        for record in records
    ]
    winner = best(records)
    chosen = {} if winner is None else tried[winner]["settings"]
    last = parse_stack(method, plugins.get("tasks", task).spec.kind)[-1]
    defaults = {f"{method}.{name}": value for name, value in last.params.items()}
    at_edge = []
    for key in sorted({key for trial in tried for key in trial["settings"]}):
        values = sorted(({**defaults, **t["settings"]}[key] for t in tried), key=sort_key)
        if winner is not None and {**defaults, **chosen}[key] in (values[0], values[-1]):
            at_edge.append(key)
    metrics = (record["quality"]["metric"] for record in records if record["status"] == "ok")
    return {
        "method": method,
        "metric": next(metrics, None),
        "trials": tried,
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


def _own_settings(record: Record, method: str) -> dict[str, Any]:
    """What a trial was given for its own method, not for the task or what it is stacked with."""
    given = recorded_settings(record)["set"].items()
    return {key: value for key, value in given if key.startswith(f"{method}.")}


def describe(grid: Grid, cells: list[Cell], records: list[Record]) -> str:
    """A line for each trial with its settings and its score on the validation split; the best is
    marked."""
    winner = best(records)
    rows = [
        (
            cell.method,
            f"trial {cell.trial}",
            " ".join(f"{key}={cell.overrides[key]:g}" for key in grid),
            f"{record['quality']['metric']} {record['quality']['value']:.4f}"
            if record["status"] == "ok"
            else record["status"],
            "best" if i == winner else "",
        )
        for i, (cell, record) in enumerate(zip(cells, records, strict=True))
    ]
    return text_table(("method", "trial", "settings", "score", ""), rows)
