"""Step times in turns, as files of a run: read them, and what they say of a record."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.files.parse import check, read_json
from leantune.spec.cells import STEP_TIME_KEY


def read_comparisons(folder: Path) -> list[dict[str, Any]]:
    """What `compare` found, from every file below a folder. Raises BadInput naming a damaged
    one."""
    from leantune.files.schema import Comparison

    found = []
    for file in sorted(folder.rglob("*.json")):
        try:
            found.append(read_json(file))
            check(found[-1], Comparison, file)
        except BadInput as error:
            raise BadInput(f"{error}; delete it and run `leantune compare` again") from error
    return found


def vs_full(
    comparisons: Iterable[Mapping[str, Any]], row: Mapping[str, Any]
) -> tuple[float, list[float]] | None:
    """What the comparisons say of a record's step time against `full`, over all rounds and in each:
    None unless one of them timed the same method, code and settings, on the same task, model and
    kind of machine, in rounds with `full`."""
    cell, digest = row["cell"], row["provenance"]["hashes"]["method"]
    method = cell["method"]
    key = {name: row["key"][name] for name in STEP_TIME_KEY}
    for one in comparisons:
        same = (one["model"], one["task"], one["against"]) == (cell["model"], cell["task"], "full")
        same = same and key.items() <= one["key"].items()
        if same and one["hashes"].get(method) == digest:
            found = 1.0 if method == "full" else one["ratios"].get(method, {}).get("ratio")
            both = [turn for turn in one["rounds"] if {method, "full"} <= turn.keys()]
            rounds = [turn[method]["step_seconds"] / turn["full"]["step_seconds"] for turn in both]
            return None if found is None else (found, rounds)
    return None
