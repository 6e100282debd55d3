"""The record: one JSON file per cell, checked against a model, written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from leantune.errors import BadInput
from leantune.files.parse import check, read_json

Record = Mapping[str, Any]
# What the bytes of a peak are, in the tables' order.
BYTE_KINDS = (
    *("weights", "buffers", "gradients", "optimizer"),
    *("activations", "temporaries", "inputs"),
)
STATUSES = ("ok", "oom", "timeout", "diverged", "unsupported", "error")
EMPTY: Record = {
    **{"schema": 1, "status": "error", "phase": None, "reason": None, "cell": {}, "key": {}},
    **dict.fromkeys(("memory", "parameters", "time", "quality", "inference", "size", "tuning")),
    **{"details": {}, "provenance": {}},
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the body ends well: synced, then renamed.

    Nothing is left of it when the body fails. Raises BadInput naming the file where it cannot be
    written.
    """
    with contextlib.ExitStack() as left:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.name}.", delete=False
            ) as file:
                # once renamed, it is missing
                left.callback(Path(file.name).unlink, missing_ok=True)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except OSError as error:
            raise BadInput(
                f"cannot write {path}: {error.strerror}; free space or choose another output folder"
            ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. Raises BadInput naming the file where it cannot be written."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def write_record(path: Path, record: Record) -> None:
    """Check as RecordFile, then write atomically. Raises BadInput where it does not fit."""
    _check(record, f"record for {path}")
    write_json(path, record)


def read_record(path: Path) -> Record:
    """One record. Raises BadInput naming the file where it is damaged."""
    try:
        record = read_json(path, "record")
    except BadInput as error:
        raise BadInput(f"{error}; delete it and run its cell again") from error
    _check(record, path)
    return record


def _check(record: Record, where: Path | str) -> None:
    from leantune.files.schema import RecordFile

    check(record, RecordFile, where)


def read_records(folder: Path) -> Iterator[tuple[Path, Record | BadInput]]:
    """Every record below `folder` in path order; a damaged one comes as the error that names it."""
    for path in sorted(folder.rglob("*.json")):
        try:
            yield path, read_record(path)
        except BadInput as error:
            yield path, error


def value(record: Record, path: str) -> Any:
    """The value at a dotted path, None where any part of it is absent or null."""
    found: Any = record
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def summary(done: Record, seconds: float) -> str:
    """One line for people: what ran, how it went, its score, its peak and how long it took."""
    name = f"{done['cell']['task']} {done['cell']['method']} seed {done['cell']['seed']}"
    if done["status"] != "ok":
        return f"{done['status']:>11}  {name}: {done['reason']} ({seconds:.0f} s)"
    quality, memory = done["quality"], done["memory"]
    peak = f", peak {memory['peak_bytes'] / 2**20:.1f} MiB" if memory else ""
    return f"{'ok':>11}  {name}: {quality['metric']} {quality['value']:.4f}{peak} ({seconds:.0f} s)"
