"""Repositories of the Hugging Face hub, or the same repositories as plain files in a mirror folder.

What is read is written to `sources.lock` in the working directory (or where `LEANTUNE_SOURCES_LOCK`
says): the commit that a branch stood for when it was first asked for, and the size and sha256 of
every file. Later runs read that commit, and refuse a file that has other bytes, be it from the hub
or from a mirror (`LEANTUNE_MIRROR`).
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from leantune.errors import BadInput
from leantune.fetch.cache import Files, cache_folder, kept_digests, short_hash
from leantune.files.parse import check, read_json
from leantune.files.record import write_json

# Weights in formats that torch does not read: with them, a hub repository is several times as
# large.
_OTHER_FRAMEWORKS = [
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.tflite",
    "*.onnx",
    "onnx/*",
    "openvino/*",
    "coreml/*",
]
_PICKLES = "*.bin"  # left out where the same weights are there as safetensors


def fetch_repository(source: Mapping[str, Any]) -> Path:
    """The folder that holds the files of a source `hub: org/name`, checked against `sources.lock`.

    Keys: `repo_type: dataset` for data; `revision`, a commit, branch or tag (default: the main
    branch); `files`, patterns of the files that are used (default: all). A repository that the
    mirror holds is read from there.

    Raises BadInput where it does not exist, is gated, cannot be reached, or has other files than
    those locked.
    """
    folder, _, found = _locked(source)
    if not found:
        raise BadInput(
            f"hub {source['hub']} has no file that matches {source.get('files', '*')}; "
            "correct `files:`"
        )
    return folder


def fetch_config(source: Mapping[str, Any]) -> tuple[Path, str | None]:
    """The `config.json` of a model's repository, and the commit that it is of; None where a mirror
    was read that does not say it. Raises what `fetch_repository` raises."""
    folder, commit, found = _locked({**source, "files": ["config.json"]})
    if not found:
        raise BadInput(
            f"hub {source['hub']} has no config.json, or it was not fetched while there was a "
            "network"
        )
    return folder / "config.json", commit


def _locked(source: Mapping[str, Any]) -> tuple[Path, str | None, Files]:
    """A repository's folder, its commit, and the files in it that are used, as they are locked."""
    name = str(source["hub"])
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?", name):
        raise BadInput(f"hub '{name}' must be written org/name")
    key = _key(source)
    folder, revision = _mirrored(source), None
    if folder is None:
        folder = _downloaded(
            source, _read_lock().get(key, {}).get("revision") or source.get("revision")
        )
        revision = folder.name
    found = kept_digests(folder, _used(folder, source))
    if not found:
        return folder, revision, found
    with FileLock(cache_folder() / f"sources-{short_hash(lock_file())}.lock"):
        locked = _read_lock()
        known = locked.get(key, {"revision": None, "files": {}})
        if None in (revision, known["revision"]) or revision == known["revision"]:
            _check(source, known["files"], found)
            commit: str | None = revision or known["revision"]
            now = {"revision": commit, "files": {**known["files"], **found}}
            if now != known:
                write_json(lock_file(), {**locked, key: now})
            return folder, commit, found
    return _locked(source)  # meanwhile another process has locked another commit


def lock_file() -> Path:
    """The file that repositories are locked in: `LEANTUNE_SOURCES_LOCK`, else `sources.lock` in the
    working directory."""
    return Path(os.environ.get("LEANTUNE_SOURCES_LOCK") or "sources.lock").expanduser().absolute()


def locked_revisions(sources: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """The commit of each hub repository among `sources` that is locked; None where only a mirror
    was read."""
    keys = [_key(source) for source in sources if "hub" in source]
    locked = _read_lock() if keys else {}
    return {key: locked[key]["revision"] for key in keys if key in locked}


def _key(source: Mapping[str, Any]) -> str:
    """`models/org/name` or `datasets/org/name`, with `@revision` where one is asked for."""
    asked = f"@{source['revision']}" if source.get("revision") else ""
    return f"{source.get('repo_type', 'model')}s/{source['hub']}{asked}"


def _read_lock() -> dict[str, dict[str, Any]]:
    from leantune.files.schema import Lock  # here, as it imports pydantic

    locked: dict[str, dict[str, Any]] = {}
    if lock_file().exists():
        locked = read_json(lock_file(), "lock of sources")
        check(locked, Lock, lock_file())
    return locked


def _mirrored(source: Mapping[str, Any]) -> Path | None:
    """The repository's folder below `LEANTUNE_MIRROR`, if it is there; data may lie in
    `datasets/org/name`."""
    mirror = os.environ.get("LEANTUNE_MIRROR")
    if not mirror:
        return None
    root = Path(mirror).expanduser().absolute()
    if not root.is_dir():
        raise BadInput(
            f"LEANTUNE_MIRROR names '{mirror}', which is not a folder; mend or unset the variable"
        )
    above = [root / "datasets", root] if source.get("repo_type") == "dataset" else [root]
    places = [folder / str(source["hub"]) for folder in above]
    return next((place for place in places if place.is_dir()), None)


def _downloaded(source: Mapping[str, Any], revision: str | None) -> Path:
    """A snapshot in the user's own Hugging Face cache, whose folder is named by its commit. Nothing
    is asked of the hub for files of a commit that are there already."""
    from huggingface_hub import constants, errors, snapshot_download

    name, kind = str(source["hub"]), str(source.get("repo_type", "model"))

    def snapshot(ignored: list[str]) -> Path:
        folder = snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            allow_patterns=source.get("files"),
            ignore_patterns=ignored,
        )
        return Path(folder)

    try:
        if kind == "dataset":
            return snapshot([])
        folder = snapshot([*_OTHER_FRAMEWORKS, _PICKLES])
        return folder if any(folder.rglob("*.safetensors")) else snapshot(_OTHER_FRAMEWORKS)
    except (OSError, ValueError) as error:  # every error of the hub library is one of these
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
        at = f" at {revision}" if revision else ""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        sayings = {
            errors.GatedRepoError: f"hub {name} is gated: ask for access on {page}, then run "
            "`hf auth login` or set HF_TOKEN",
            errors.RevisionNotFoundError: f"hub {name} has no revision '{revision}'; correct "
            "`revision:` or leave it out",
            errors.RepositoryNotFoundError: f"the hub has no {kind} {name} that you may read; "
            "correct the name or `repo_type:`, or run `hf auth login` if it is private",
            Exception: f"hub {name}{at} could not be fetched ({reason[:300]}); check the network "
            "and HF_HUB_OFFLINE, or put its files in a folder and set LEANTUNE_MIRROR to it",
        }
        said = next(text for class_, text in sayings.items() if isinstance(error, class_))
        raise BadInput(said) from error


def _used(folder: Path, source: Mapping[str, Any]) -> list[str]:
    """The names of the files that a source uses, hidden ones (.git, .gitattributes) left out."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts)]
    names = _matching(names, source.get("files"))
    if source.get("repo_type") == "dataset":
        return names
    pickles = [_PICKLES] if _matching(names, "*.safetensors") else []
    return _matching(names, None, [*_OTHER_FRAMEWORKS, *pickles])


def _matching(names: Iterable[str], allowed: Any, ignored: list[str] | None = None) -> list[str]:
    """The names that the hub's own rules let through: those that match a pattern of `allowed`, all
    where it is None, and none of `ignored`."""
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored))


def _check(source: Mapping[str, Any], locked: Files, found: Files) -> None:
    """Raise BadInput for a file that is not the one that was locked, or for data of which one is
    missing."""
    accept = (
        "get the locked files, or accept these by removing the entry "
        f"'{_key(source)}' from {lock_file()}"
    )
    wrong = [
        f"{file} has sha256 {now['sha256']}, but {locked[file]['sha256']} is locked"
        for file, now in found.items()
        if now != locked.get(file, now)
    ]
    if source.get("repo_type") == "dataset":  # of a model, a file that is missing is noticed later
        wanted = _matching(locked, source.get("files"))
        wrong += [f"{file} is locked and missing" for file in wanted if file not in found]
    if wrong:
        raise BadInput(f"hub {source['hub']}: {wrong[0]}; {accept}")
