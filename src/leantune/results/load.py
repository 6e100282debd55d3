"""Read a folder of results once: its records, which of them are stale, and its step times in
turns."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leantune.errors import BadInput
from leantune.files.record import Record, read_records
from leantune.results.comparable import Entry
from leantune.results.timing import read_comparisons, vs_full
from leantune.spec.cells import Cell, cell_of_record


@dataclass(frozen=True)
class Results:
    """What a folder of results holds, for the tables, the claims and the report."""

    folder: Path
    files: Mapping[str, Record | BadInput]  # by file below the records' folder, in its order
    expected: Sequence[str]  # files of that folder that should be there

    @property
    def records(self) -> list[Record]:
        """The records that can be read."""
        return [found for found in self.files.values() if not isinstance(found, BadInput)]

    @functools.cached_property
    def entries(self) -> list[Entry]:
        """An entry for each file and for each missing one, sorted by file. `time.vs_full` of a
        record is what the comparisons of step times say of it, where there are any. Raises
        BadInput naming a damaged comparison."""
        missing = [Entry(file, "missing", None) for file in set(self.expected) - self.files.keys()]
        found = [_entry(file, one) for file, one in self.files.items()]
        entries = sorted([*found, *missing], key=lambda entry: entry.file)
        return timed(entries, self.folder / "timing")


def load(folder: Path, expected: Iterable[Cell] = (), records: Path | None = None) -> Results:
    """What the folder of a run, or of published results, holds. `records` is the folder of its
    records where that has another name."""
    below, files = records or folder / "records", {}
    for path, found in read_records(below):
        file = path.relative_to(below).as_posix()
        told = isinstance(found, BadInput)  # tables must not depend on where the folder lies
        files[file] = BadInput(str(found).replace(str(path), file)) if told else found
    return Results(folder, files, [record_file(cell) for cell in expected])


def _entry(file: str, found: Record | BadInput) -> Entry:
    if isinstance(found, BadInput):
        return Entry(file, "damaged", None, str(found))
    if (place := place_of(found)) != file:  # a copied or renamed record would count one seed twice
        problem = f"{file}: its content belongs at {place}; move or delete it"
        return Entry(file, "damaged", None, problem)
    return Entry(file, "stale" if is_stale(found) else found["status"], found)


def timed(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """Entries whose `time.vs_full` is what the comparisons of step times in a folder say of them,
    and `time.vs_full_rounds` what each round does."""
    comparisons = read_comparisons(folder)

    def with_ratio(entry: Entry) -> Entry:
        if entry.record is None or not entry.record["time"]:
            return entry
        ratio, rounds = vs_full(comparisons, entry.record) or (None, None)
        time = {**entry.record["time"], "vs_full": ratio, "vs_full_rounds": rounds}
        return replace(entry, record={**entry.record, "time": time})

    return [with_ratio(entry) for entry in entries] if comparisons else list(entries)


def changed(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Of method, task and model those whose hash is not the recorded one."""
    return sorted(name for name, digest in now.items() if recorded.get(name) != digest)


def is_stale(record: Record) -> bool:
    """Whether the method, task or model is no longer what the record was measured with, or is
    gone."""
    try:
        return bool(changed(record["provenance"]["hashes"], cell_of_record(record).hashes))
    except BadInput:
        return True


def record_file(cell: Cell) -> str:
    return cell.record_path.removeprefix("records/")


def place_of(record: Record) -> str:
    """The file below `records/` that a record belongs in."""
    cell = record["cell"]
    names = (record["key"]["short"], cell["model"], cell["task"], cell["method"], cell["seed"])
    return "/".join(map(str, names)) + ".json"
