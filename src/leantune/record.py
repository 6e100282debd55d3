"""The record: one JSON file per cell, checked against a schema, written whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from leantune.errors import BadInput
from leantune.reading import read_json, validate

Record = dict[str, Any]
STATUSES = ("ok", "oom", "timeout", "diverged", "unsupported", "error")
EMPTY: Record = {
    "schema": 1,
    "status": "error",
    "phase": None,
    "reason": None,
    "cell": {},
    "key": {},
    "memory": None,
    "parameters": None,
    "time": None,
    "quality": None,
    "inference": None,
    "size": None,
    "tuning": None,
    "details": {},
    "provenance": {},
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the body ends well: synced, then renamed.

    Nothing is left of it when the body fails. Raises BadInput naming the file where it cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; free space or choose another output folder") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. Raises BadInput naming the file where it cannot be written."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def write_record(path: Path, record: Record) -> None:
    """Validate against schemas/record.schema.json, then write atomically. Raises BadInput where it does not fit."""
    validate(record, "record", f"record for {path}")
    write_json(path, record)


def read_record(path: Path) -> Record:
    """One record. Raises BadInput naming the file where it is damaged."""
    try:
        record = read_json(path, "record")
    except BadInput as error:
        raise BadInput(f"{error}; delete it and run its cell again") from error
    validate(record, "record", path)
    return record


def read_records(folder: Path) -> Iterator[tuple[Path, Record | BadInput]]:
    """Every record below `folder` in path order; a damaged one comes as the error that names it."""
    for path in sorted(folder.rglob("*.json")):
        try:
            yield path, read_record(path)
        except BadInput as error:
            yield path, error


def provenance(command: list[str], hashes: dict[str, str], hardware: str) -> dict[str, Any]:
    """Where a record comes from: commit, packages, machine and the command that repeats it. Missing is null."""
    names = ("torch", "transformers", "datasets", "evaluate", "peft", "numpy", "scikit-learn", "sacrebleu", "snakemake")
    commit, dirty = _git_state()
    return {
        "command": shlex.join(command),
        "commit": commit,
        "dirty": dirty,
        "hashes": hashes,
        "packages": {n: _version(n) for n in names},
        "python": platform.python_version(),
        "hardware": {
            "name": hardware,
            "cores": os.cpu_count(),
            "memory_bytes": _memory_bytes(),
            "system": platform.platform(),
        },
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _git_state() -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout; working output, published results and the lock of sources are no dirt."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        try:
            words = ("git", "-C", str(root), *words)
            done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / ".git").exists():
        return None, None
    status = git("status", "--porcelain", "--", ".", ":!runs", ":!results", ":!README.md", ":!sources.lock")
    return git("rev-parse", "HEAD"), None if status is None else bool(status)
