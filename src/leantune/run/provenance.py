"""Where a record comes from: commit, packages, machine and the command that repeats it."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
from pathlib import Path
from typing import Any


def provenance(command: list[str], hashes: dict[str, str], hardware: str) -> dict[str, Any]:
    """Where a record comes from: commit, packages, machine and the command that repeats it. Missing
    is null."""
    names = (
        "torch",
        "transformers",
        "datasets",
        "peft",
        "numpy",
        "scikit-learn",
        "sacrebleu",
        "snakemake",
    )
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
    """(commit, dirty) of the checkout; working output, published results and the lock of sources
    are no dirt."""
    root = Path(__file__).resolve().parents[3]

    def git(*words: str) -> str | None:
        try:
            words = ("git", "-C", str(root), *words)
            done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / ".git").exists():
        return None, None
    status = git(
        "status", "--porcelain", "--", ".", ":!runs", ":!results", ":!README.md", ":!sources.lock"
    )
    return git("rev-parse", "HEAD"), None if status is None else bool(status)
