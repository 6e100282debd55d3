"""Where a record comes from: commit, packages, machine and the command that repeats it."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
from typing import Any

import psutil

from leantune.spec.plugins import checkout

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "peft",
    "numpy",
    "scikit-learn",
    "sacrebleu",
    "snakemake",
)
# working output, published results and the lock of sources are no dirt
CLEAN = (".", ":!runs", ":!results", ":!README.md", ":!sources.lock")


def provenance(command: list[str], hashes: dict[str, str], hardware: str) -> dict[str, Any]:
    """Commit, packages, machine and the command that repeats it. What is not known is null."""
    status = _git("status", "--porcelain", "--", *CLEAN)
    return {
        "command": shlex.join(command),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "hashes": hashes,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": {
            "name": hardware,
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": platform.platform(),
        },
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _git(*words: str) -> str | None:
    """What git says of the checkout; None where LeanTune does not run from one."""
    root = checkout()
    if root is None or not (root / ".git").exists():  # an outer repository is none of ours
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = ("git", "-C", str(root), *words)
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()
    return None
