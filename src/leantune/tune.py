"""Tuning: cells that try settings and are scored on the validation split, so that all methods get equal trials.

A trial's record lies in `<output>/tuning/` under the trial's number. A config's `trials: N` gives each method that
lists values under `search:` N trials on each model and task with seed 0: its default, then the nearest points of the
grid. The best one's settings serve every seed, every point of the method and every stack that it is part of, but
where the config sets a value by hand.
`leantune tune` tries a grid by hand; a trial that was made with the same code and settings is not made again.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leantune import cell as cells
from leantune import plan, record, registry
from leantune.errors import BadInput
from leantune.plan import Cell
from leantune.reading import read_json, validate

CHOICE = "tuning/{key}/{model}/{task}/{method}/chosen.json"  # which trial was chosen, below the output
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
    grid = {
        f"{name}.{param}": values
        for name in registry.plugin_names(method)
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
    if cells.run(cell, file, timeout_minutes=timeout_minutes) == cells.RETRY:
        raise SystemExit(cells.RETRY)
    return record.read_record(file)


def best(records: Sequence[record.Record]) -> int | None:
    """The index of the best score, the first of equals; None where no trial ended well."""
    scored = [(i, r["quality"]) for i, r in enumerate(records) if r["status"] == "ok"]
    if not scored:
        return None
    sign = -1 if scored[0][1]["higher_is_better"] else 1
    return min(scored, key=lambda found: sign * found[1]["value"])[0]


# ------------------------------------------------------------------ a config's trials


def nearest_points(method: str, kind: str, count: int) -> list[dict[str, Any]]:
    """The method's default, which is no setting at all, and the `count - 1` points of its grid that are nearest to
    it: fewest steps along the sorted values, all parameters together; of equals those that move what is listed first."""
    part = registry.parse_stack(method, kind)[-1]
    searched: Mapping[str, list[Any]] = part.plugin.spec["search"]

    def steps(name: str, value: Any) -> float:
        values, default = sorted(searched[name], key=_rank), part.params[name]
        if default in values:
            return abs(values.index(value) - values.index(default))
        place = bisect.bisect(values, _rank(default), key=_rank) - 0.5
        return abs(values.index(value) - place)

    grid = [dict(zip(searched, values, strict=True)) for values in itertools.product(*searched.values())]
    others = [point for point in grid if any(part.params[name] != value for name, value in point.items())]

    def distance(point: dict[str, Any]) -> tuple[float, list[float]]:
        taken = [steps(name, value) for name, value in point.items()]
        return sum(taken), taken[::-1]

    others.sort(key=distance)
    changed = [{n: v for n, v in point.items() if v != part.params[n]} for point in others[: count - 1]]
    return [{}, *({f"{method}.{name}": value for name, value in point.items()} for point in changed)]


def _rank(value: Any) -> tuple[bool, Any]:
    return (True, str(value)) if isinstance(value, str) else (False, value)


def planned(config: Mapping[str, Any]) -> dict[str, list[Cell]]:
    """The trials of a validated config, by the file below its output that says which of them was chosen."""
    found = {}
    for block in plan.runnable(config):
        count = block.get("trials", config["trials"])
        for model, task, method in itertools.product(block["models"], block["tasks"], block["methods"]):
            if count < 1 or "+" in method or "@" in method:
                continue
            spec = registry.get("methods", method).spec
            if not spec.get("search"):
                continue
            settings = plan.settings_for(config, block, method, task)
            both = [key for key in settings if key.removeprefix(f"{method}.") in spec["search"]]
            if both:
                raise BadInput(f"config: '{both[0]}' is set and, with `trials`, searched for; drop one of them")
            common: dict[str, Any] = {"device": config["device"], "on": config["hardware"]}
            cells_ = [
                plan.resolve(model, task, method, 0, trial=i, overrides={**settings, **point}, **common)
                for i, point in enumerate(nearest_points(method, registry.get("tasks", task).spec["kind"], count))
            ]
            found[_choice_file(cells_[0], method)] = cells_
    return found


def choice_files(cell: Cell, known: Collection[str]) -> list[str]:
    """Which of the `known` choices, by file, a cell takes its settings from."""
    files = {part.plugin.name: _choice_file(cell, part.plugin.name) for part in cell.parts}
    return [files[name] for name in tuned_parts(cell, {name for name, file in files.items() if file in known})]


def tuned_parts(cell: Cell, chosen: Collection[str]) -> list[str]:
    """Those of its parts, by name, whose choices a cell takes. What it trains with without naming it, `full`, counts
    only where no other part is tuned, as the others were tuned beside `full`'s default."""
    names = [part.plugin.name for part in cell.parts if part.plugin.name in chosen]
    return [name for name in names if name != "full" or len(names) == 1]


def _choice_file(cell: Cell, method: str) -> str:
    return CHOICE.format(key=cell.key["short"], model=cell.model_name, task=cell.task.name, method=method)


def choice(records: Sequence[record.Record]) -> dict[str, Any]:
    """What was chosen of a method's trials, and why: the content of a choice file and of a record's `tuning.METHOD`.

    `at_edge` names the settings whose chosen value is the smallest or largest one tried: better ones may lie beyond.
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
        f"{method}.{name}": value for name, value in registry.parse_stack(method, _kind(records[0]))[-1].params.items()
    }
    tried: dict[str, list[Any]] = {}  # of every setting that some trial changes, its value in each
    for key in sorted({key for row in rows for key in row["settings"]}):
        tried[key] = sorted(({**defaults, **row["settings"]}[key] for row in rows), key=_rank)
    now = {**defaults, **chosen}
    at_edge = [key for key, values in tried.items() if winner is not None and now[key] in (values[0], values[-1])]
    return {
        "method": method,
        "metric": next((row["quality"]["metric"] for row in records if row["status"] == "ok"), None),
        "trials": rows,
        "chosen": winner,
        "settings": chosen,
        "at_edge": at_edge,
    }


def read_choice(file: Path) -> dict[str, Any]:
    """What `choice` wrote. Raises BadInput naming a file that is something else."""
    try:
        found = read_json(file)
        validate(found, "choice", file)
    except BadInput as error:
        raise BadInput(f"{error}: not a choice of settings; make it with `leantune choose`") from error
    return found


def chosen_settings(cell: Cell, choices: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that a cell takes from its parts' choices; what a part's own point sets stays as the point says."""
    points = {part.plugin.name: part.plugin.spec.get("points", {}).get(part.point or "", {}) for part in cell.parts}
    return {
        key: value
        for one in choices
        for key, value in one["settings"].items()
        if key.partition(".")[2] not in points.get(key.partition(".")[0], {})
    }


def _settings_of(row: record.Record) -> dict[str, Any]:
    """The settings of its own method that a trial was run with, from the command in its record."""
    given = plan.command_settings(row["provenance"]["command"])
    return {key: value for key, value in given.items() if key.partition(".")[0] == row["cell"]["method"]}


def _kind(row: record.Record) -> str:
    return str(registry.get("tasks", row["cell"]["task"]).spec["kind"])


def describe(grid: Grid, done: list[Cell], records: list[record.Record]) -> str:
    """A line per trial with its settings and its score on the validation split, the best one marked."""
    winner = best(records)
    lines = []
    for i, (cell, row) in enumerate(zip(done, records, strict=True)):
        settings = " ".join(f"{key}={cell.overrides[key]:g}" for key in grid)
        score = f"{row['quality']['metric']} {row['quality']['value']:.4f}" if row["status"] == "ok" else row["status"]
        lines.append(f"{cell.method}  trial {cell.trial}  {settings}  {score}{'  best' if i == winner else ''}")
    return "\n".join(lines)
