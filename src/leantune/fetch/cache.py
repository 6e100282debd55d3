"""What is fetched or unpacked is kept in one folder that all cells share (`LEANTUNE_CACHE`, default
`~/.cache/leantune`): an entry per content hash, populated under a lock in a temporary folder,
checked when it is used, and made again when a file in it was damaged."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from leantune.errors import BadInput
from leantune.files.record import write_json

logger = logging.getLogger(__name__)

Files = dict[str, dict[str, Any]]  # name to `size` in bytes and `sha256`
Digests = dict[str, tuple[int, int, str]]  # by name: bytes, time of the last change in ns, sha256


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
    if _damage(folder):
        try:
            with FileLock(f"{folder}.lock"):
                damage = _damage(folder)  # asked again, as another process may have been faster
                if damage:
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


def digests(folder: Path, names: Iterable[str], known: Mapping[str, Any]) -> Digests:
    """Size, time and sha256 of the files `names` in `folder`; bytes are read only where size or
    time are not those `known`."""
    found: Digests = {}
    for name in names:
        stat = (folder / name).stat()
        size, modified, digest = known.get(name, (None, None, ""))
        if (size, modified) != (stat.st_size, stat.st_mtime_ns):
            digest = file_sha256(folder / name)
        found[name] = stat.st_size, stat.st_mtime_ns, digest
    return found


def kept_digests(folder: Path, names: Iterable[str]) -> Files:
    """Size and sha256 of each file. Bytes are read again only where size or modification time
    changed."""
    file = cache_folder() / "digests" / f"{short_hash(folder)}.json"
    known = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(file.read_text())
    found = digests(folder, names, known)
    if any(list(now) != known.get(name) for name, now in found.items()):
        write_json(file, {**known, **{name: list(now) for name, now in found.items()}})
    return {name: {"size": size, "sha256": digest} for name, (size, _, digest) in found.items()}


def short_hash(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:32]


def _populate(folder: Path, build: Callable[[Path], None], damage: str) -> None:
    """Build beside `folder`, then rename. Call with the lock held."""
    if folder.exists():
        logger.warning("cached %s is damaged (%s): fetching it again", folder, damage)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    try:
        files = partial / "files"
        files.mkdir(parents=True)
        build(files)
        names = sorted(str(p.relative_to(files)) for p in files.rglob("*") if p.is_file())
        (partial / "manifest.json").write_text(json.dumps(digests(files, names, {}), indent=0))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BadInput as error:
        if folder.exists():
            raise BadInput(
                f"cached {folder} is damaged ({damage}) and cannot be replaced: {error}"
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _damage(folder: Path) -> str | None:
    """What is wrong with a cache entry, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return "manifest.json is missing or unreadable"
    files = folder / "files"
    missing = [name for name in manifest if not (files / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    now = digests(files, manifest, manifest)
    changed = [name for name in manifest if now[name][2] != manifest[name][2]]
    return f"{changed[0]} was changed" if changed else None
