"""What is fetched or unpacked is kept in one folder that all cells share (`LEANTUNE_CACHE`, default
`~/.cache/leantune`): an entry per content hash, populated under a lock in a temporary folder,
checked when it is used, and made again when a file in it was damaged."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from leantune.errors import BadInput

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder that holds everything fetched: `LEANTUNE_CACHE`, else `~/.cache/leantune`."""
    return Path(os.environ.get("LEANTUNE_CACHE") or "~/.cache/leantune").expanduser().absolute()


def entry(key: str, build: Callable[[Path], None]) -> Path:
    """The cached folder `key`, built at most once by `build(empty folder)`, also when processes
    race.

    A damaged entry is named in the log and built again. `build` may raise BadInput; nothing is left
    then.
    """
    folder = cache_folder() / key
    if folder.exists() and _damage(folder) is None:
        return folder / "files"
    try:
        with lock(folder):
            damage = _damage(folder) if folder.exists() else None
            if damage:
                logger.warning("cached %s is damaged (%s): fetching it again", folder, damage)
            if damage or not folder.exists():
                _populate(folder, build, damage)
    except OSError as error:
        raise BadInput(
            f"the cache folder {folder.parent} cannot be written ({error.strerror or error}); "
            "free some space or set LEANTUNE_CACHE to another folder"
        ) from error
    return folder / "files"


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _populate(folder: Path, build: Callable[[Path], None], damage: str | None) -> None:
    """Build beside `folder`, then rename. Call with the lock held."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    try:
        files = partial / "files"
        files.mkdir(parents=True)
        build(files)
        manifest = {}
        for path in sorted(p for p in files.rglob("*") if p.is_file()):
            stat = path.stat()
            manifest[str(path.relative_to(files))] = [
                stat.st_size,
                stat.st_mtime_ns,
                file_sha256(path),
            ]
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=0))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BadInput as error:
        if damage:
            raise BadInput(
                f"cached {folder} is damaged ({damage}) and cannot be replaced: {error}"
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _damage(folder: Path) -> str | None:
    """What is wrong with a cache entry, or None. Bytes are read only where the modification time
    changed."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return "manifest.json is missing or unreadable"
    for name, (size, modified, digest) in manifest.items():
        path = folder / "files" / name
        try:
            stat = path.stat()
        except OSError:
            return f"{name} is missing"
        if stat.st_size != size:
            return f"{name} has {stat.st_size} bytes, not {size}"
        if stat.st_mtime_ns != modified and file_sha256(path) != digest:
            return f"{name} was changed"
    return None


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the lock beside `folder` against other processes and threads; the system frees it when a
    process dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
