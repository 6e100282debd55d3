"""Read a folder of results: its records, which of them are stale, and its step times in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from leantune.errors import BadInput
from leantune.files.record import read_record, read_records
from leantune.results.comparable import Entry, Record
from leantune.results.timing import read_comparisons, vs_full
from leantune.spec.cells import Cell, cell_of_record


def timed(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """Entries whose `time.vs_full` is what the comparisons of step times in a folder say of them,
    and `time.vs_full_rounds` what each round does."""
    comparisons = read_comparisons(folder)
    return [_timed(entry, comparisons) for entry in entries] if comparisons else list(entries)


def _timed(entry: Entry, comparisons: Sequence[Record]) -> Entry:
    if entry.record is None or not entry.record["time"]:
        return entry
    ratio, rounds = vs_full(comparisons, entry.record) or (None, None)
    return replace(
        entry,
        record={
            **entry.record,
            "time": {**entry.record["time"], "vs_full": ratio, "vs_full_rounds": rounds},
        },
    )


def is_stale(record: Record) -> bool:
    """Whether the method, task or model is no longer what the record was measured with, or is gone."""
    try:
        now = cell_of_record(record)
    except BadInput:
        return True
    return any(
        record["provenance"]["hashes"].get(name) != digest for name, digest in now.hashes.items()
    )


def expected_entries(output: Path, expected: Iterable[Cell]) -> list[Entry]:
    return timed(
        read_entries(output / "records", [record_file(cell) for cell in expected], is_stale),
        output / "timing",
    )


def readable(records: Path) -> list[Record]:
    return [
        record for _, record in read_records(records) if not isinstance(record, BadInput) and record
    ]


def record_file(cell: Cell) -> str:
    return cell.record_path.removeprefix("records/")


def read_entries(
    records: Path,
    expected: Iterable[str] = (),
    is_stale: Callable[[Record], bool] = lambda _: False,
) -> list[Entry]:
    """Every record below the folder, sorted by file, and the `expected` files (relative) that are
    not there."""
    entries = []
    for path in sorted(records.rglob("*.json")):
        file = path.relative_to(records).as_posix()
        try:
            record = read_record(path)
            if _place(record) != file:  # a copied or renamed record would count one seed twice
                raise BadInput(
                    f"{path}: its content belongs at {_place(record)}; move or delete it"
                )
        except BadInput as error:
            entries.append(Entry(file, "damaged", None, str(error).replace(str(path), file)))
        else:
            entries.append(Entry(file, "stale" if is_stale(record) else record["status"], record))
    present = {entry.file for entry in entries}
    missing = [Entry(file, "missing", None) for file in set(expected) - present]
    return sorted([*entries, *missing], key=lambda entry: entry.file)


def _place(record: Record) -> str:
    cell = record["cell"]
    return f"{record['key']['short']}/{cell['model']}/{cell['task']}/{cell['method']}/{cell['seed']}.json"
