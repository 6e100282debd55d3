"""The GPUs of this machine and who uses them, as nvidia-smi tells; no torch, so that the supervisor
may ask."""

import contextlib
import functools
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from leantune.errors import BadInput

MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """One device. `uuid` is what CUDA_VISIBLE_DEVICES takes whatever the order; `users` are the
    processes on it."""

    index: int
    uuid: str
    name: str
    used_bytes: int
    total_bytes: int
    users: tuple[int, ...] = ()  # process ids

    def holder(self) -> str:
        """Who uses it, in words."""
        if not self.users:
            return (
                f"{self.used_bytes / MIB:.0f} MiB of its memory are in use by a process that "
                "nvidia-smi does not show"
            )
        return "it is used by " + ", ".join(_described(pid) for pid in self.users)


def visible() -> list[Gpu]:
    """The devices that this process may use: all, or those that CUDA_VISIBLE_DEVICES names by
    number or UUID.

    Raises BadInput where nvidia-smi does not answer.
    """
    users = [(uuid, int(pid)) for uuid, pid in _query("compute-apps", "gpu_uuid", "pid")]
    found = [
        Gpu(
            int(index),
            uuid,
            name,
            int(used) * MIB,
            int(total) * MIB,
            tuple(pid for on, pid in users if on == uuid),
        )
        for index, uuid, name, used, total in _query(
            "gpu", "index", "uuid", "name", "memory.used", "memory.total"
        )
    ]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return found
    words = [word.strip() for word in wanted.split(",") if word.strip()]
    return [
        gpu
        for word in words
        for gpu in found
        if word == str(gpu.index) or gpu.uuid.startswith(word)
    ]


def start_query(
    what: str, fields: tuple[str, ...], *options: str, output: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start `nvidia-smi --query-WHAT`, which writes `fields`, set apart by commas, to `output`.
    Raises OSError where there is no such program."""
    command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    return subprocess.Popen(
        [*command, *options], stdout=output, stderr=subprocess.DEVNULL, text=True
    )


def _query(what: str, *fields: str) -> list[list[str]]:
    """The rows of a query; memory is in MiB. Raises BadInput where none is to be had."""
    try:
        with start_query(what, fields) as asked:
            try:
                lines = asked.communicate(timeout=20)[0].splitlines()
            finally:
                asked.kill()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(
            f"nvidia-smi does not answer ({error}); a GPU cannot be leased without it"
        ) from error
    said = lines or ["no reason given"]
    if asked.returncode:
        raise BadInput(f"nvidia-smi failed ({said[-1][:200]}); a GPU cannot be leased without it")
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    if any(len(row) != len(fields) for row in rows):
        raise BadInput(f"nvidia-smi gave an answer that is not understood: {said[0][:200]}")
    return rows


def _described(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{process.name()} (process {pid} of {process.username()})"
    except psutil.Error:
        return f"process {pid}"


@functools.cache
def gpu_name() -> str | None:
    """The name of the first GPU; None where none answers."""
    try:
        return next((name for (name,) in _query("gpu", "name")), None)
    except BadInput:
        return None


def resolve_device(device: str) -> str:
    """`auto` is cuda where a GPU answers. Asks nvidia-smi, so that no torch is imported."""
    if device != "auto":
        return device
    return "cuda" if gpu_name() else "cpu"


@functools.cache
def hardware_name(device: str) -> str:
    """The GPU's name, or the CPU's model; times are compared only where it is equal."""
    if device == "cuda":
        return gpu_name() or "unknown GPU"
    model = None
    with contextlib.suppress(OSError):  # only Linux has this file
        text = Path("/proc/cpuinfo").read_text()
        model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model.group(1).strip() if model else platform.processor() or platform.machine()
