"""How much memory this machine has, what a cell needs of it, and whether that fits."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

GIB = 2**30
# Of control groups, version 2 and version 1: the folder, and the files with the limit, with what is
# in use, and the line of memory.stat with the idle file cache, which is given back on demand.
_GROUPS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class DoesNotFit(Exception):
    """The need is more than this machine can ever give: the cell is `oom`, reason `predicted`."""


def check(need: int, capacity: int, limit: int | None = None, of: str = "memory") -> None:
    """Raise DoesNotFit where `need` bytes are more than the device has or the run is allowed
    (`limit`)."""
    if limit is not None and need > limit:
        raise DoesNotFit(f"needs {need / GIB:.2f} GiB of {of}, the limit is {limit / GIB:.2f} GiB")
    if need > capacity:
        raise DoesNotFit(
            f"needs {need / GIB:.1f} GiB of {of}, this machine has {capacity / GIB:.1f} GiB"
        )


class Memory(NamedTuple):
    """Bytes of the machine, or of the control group if that allows less."""

    total: int
    available: int


def need_bytes(predicted_peak_bytes: int) -> int:
    """What a cell leases: its predicted peak with room for fragmentation, plus the interpreter and
    libraries."""
    return int(predicted_peak_bytes * 1.6) + GIB // 2


def machine_memory(
    cgroup_root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc/self")
) -> Memory:
    """Total and available bytes, control-group limits (versions 1 and 2) taken into account."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in _cgroup_limits(cgroup_root, proc):
        total, available = min(total, limit), min(available, limit - used)
    return Memory(total, max(available, 0))


def headroom() -> int:
    """Bytes that this process can still get: what the machine or its control group has available,
    and what is left of its own address space where that is limited (`ulimit -v`)."""
    import resource  # Windows has none, and starts no cell

    available = machine_memory().available
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return available
    return max(0, min(available, limit - psutil.Process().memory_info().vms))


def _cgroup_limits(root: Path, proc: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of this process's memory group and of every group above it that has a
    limit."""
    lines = []
    with contextlib.suppress(OSError):  # not Linux
        lines = (proc / "cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        name, limit, usage, cache = _GROUPS[1 if controllers else 2]
        group = root / name / path.lstrip("/")
        # In a container the path may be one that only the host sees; the groups that exist still
        # count.
        for folder in (group, *group.parents):
            if folder.is_relative_to(root / name):
                with contextlib.suppress(OSError, ValueError):  # no such group, or limit "max"
                    stat = (folder / "memory.stat").read_text().splitlines()
                    idle = int(dict(one.split() for one in stat).get(cache, 0))
                    used = int((folder / usage).read_text())
                    yield int((folder / limit).read_text()), max(used - idle, 0)
