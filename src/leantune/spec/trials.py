"""Which tuning trials a config asks for, and which cells take what they chose."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

from leantune.errors import BadInput
from leantune.spec import plugins
from leantune.spec.cells import Cell, resolve_cell
from leantune.spec.config import runnable, settings_for
from leantune.spec.stacks import parse_stack

if TYPE_CHECKING:
    from leantune.spec.schema import ConfigFile

# which trial was chosen, below the output
CHOICE = "tuning/{key}/{model}/{task}/{method}/chosen.json"


def nearest_points(method: str, kind: str, count: int) -> list[dict[str, Any]]:
    """The method's default, which is no setting at all, and the `count - 1` points of its grid that
    are nearest to it: fewest steps along the sorted values, all parameters together; of equals
    those that move what is listed first."""
    part = parse_stack(method, kind)[-1]
    searched, default = part.plugin.spec.search, part.params

    def steps(name: str, value: Any) -> float:
        values = sorted(searched[name], key=sort_key)
        if default[name] in values:
            return abs(values.index(value) - values.index(default[name]))
        # a default that is not listed lies between two values
        place = bisect.bisect(values, sort_key(default[name]), key=sort_key) - 0.5
        return abs(values.index(value) - place)

    def distance(point: dict[str, Any]) -> tuple[float, list[float]]:
        taken = [steps(name, point[name]) if name in point else 0.0 for name in searched]
        return sum(taken), taken[::-1]

    grid = [dict(zip(searched, values, strict=True)) for values in product(*searched.values())]
    moved = [{n: value for n, value in point.items() if value != default[n]} for point in grid]
    near = sorted(filter(None, moved), key=distance)[: count - 1]
    return [{f"{method}.{name}": value for name, value in point.items()} for point in [{}, *near]]


def sort_key(value: Any) -> tuple[bool, Any]:
    return (True, str(value)) if isinstance(value, str) else (False, value)


def planned_trials(config: ConfigFile) -> dict[str, list[Cell]]:
    """The trials of a loaded config, by the file below its output that says which of them was
    chosen."""
    found = {}
    for block in runnable(config):
        count = config.trials if block.trials is None else block.trials
        for model, task, method in product(block.models, block.tasks, block.methods):
            alone = count and "+" not in method and "@" not in method
            search = plugins.get("methods", method).spec.search if alone else {}
            if not search:
                continue
            settings = settings_for(config, block, method, task)
            if both := [key for key in settings if key.removeprefix(f"{method}.") in search]:
                raise BadInput(
                    f"config: '{both[0]}' is set and, with `trials`, searched for; drop one of them"
                )
            points = nearest_points(method, plugins.get("tasks", task).spec.kind, count)
            cells = [
                resolve_cell(
                    model,
                    task,
                    method,
                    trial=number,
                    device=config.device,
                    overrides={**settings, **point},
                    on=config.hardware,
                )
                for number, point in enumerate(points)
            ]
            found[_choice_file(cells[0], method)] = cells
    return found


def choice_files(cell: Cell, known: Collection[str]) -> list[str]:
    """Which of the `known` choices, by file, a cell takes its settings from."""
    files = {part.plugin.name: _choice_file(cell, part.plugin.name) for part in cell.parts}
    chosen = [name for name, file in files.items() if file in known]
    return [files[name] for name in tuned_parts(cell, chosen)]


def tuned_parts(cell: Cell, chosen: Collection[str]) -> list[str]:
    """Those of its parts, by name, whose choices a cell takes. What it trains with without naming
    it, `full`, counts only where no other part is tuned, as the others were tuned beside `full`'s
    default."""
    names = [part.plugin.name for part in cell.parts if part.plugin.name in chosen]
    return [name for name in names if name != "full" or len(names) == 1]


def _choice_file(cell: Cell, method: str) -> str:
    return CHOICE.format(
        key=cell.key["short"], model=cell.model_name, task=cell.task.name, method=method
    )


def chosen_settings(cell: Cell, choices: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that a cell takes from its parts' choices; what a part's own point sets stays as
    the point says."""
    points = {
        part.plugin.name: part.plugin.spec.points.get(part.point or "", {}) for part in cell.parts
    }
    return {
        key: value
        for one in choices
        for key, value in one["settings"].items()
        if key.partition(".")[2] not in points.get(key.partition(".")[0], {})
    }
