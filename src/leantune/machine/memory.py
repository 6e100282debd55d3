"""Memory leases: cells that run side by side agree on who may start, so that a machine is never
filled.

A lease is a file that its holder keeps locked (`flock`): when the holder dies, however it dies, the
kernel drops the lock and the lease is void. The folder is shared by all runs and users of the
machine: everyone may add a file and nobody may remove another's, as in /tmp. A cell starts when its
need fits into what the machine has available less what the other holders have leased and not yet
used (what they have used is no longer available).
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import psutil

from leantune.errors import BadInput

GIB = 2**30


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
    available = machine_memory().available
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return available
    return max(0, min(available, limit - psutil.Process().memory_info().vms))


def _cgroup_limits(root: Path, proc: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of this process's memory group and of every group above it that has a
    limit."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = (
                root / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        group = top / path.lstrip("/")
        # In a container the path may be one that only the host sees; the groups that exist still
        # count.
        for folder in (group, *group.parents):
            found = _limit(folder, *names)
            if found:
                yield found
            if folder == top:
                break


def _limit(
    folder: Path, limit_name: str, usage_name: str, cache_name: str
) -> tuple[int, int] | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        usage = int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    return int(limit), max(
        usage - int(stat.get(cache_name, 0)), 0
    )  # idle file cache is given back on demand


def lease_folder() -> Path:
    """Where the leases of this machine lie, made for all users: `LEANTUNE_LEASES`, else one in the
    folder for temporary files; a Slurm job has memory of its own, so its leases are its own too.
    Raises BadInput where it cannot be used."""
    name = "-".join(["leantune-leases", *filter(None, [os.environ.get("SLURM_JOB_ID")])])
    folder = Path(os.environ.get("LEANTUNE_LEASES") or os.path.join(tempfile.gettempdir(), name))
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(0o1777)  # whatever the umask; sticky
    except FileExistsError:  # another process was faster, or it is no folder
        pass
    except OSError as error:
        raise BadInput(
            f"cannot make the lease folder {folder}: {error.strerror}; set LEANTUNE_LEASES"
        ) from error
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise BadInput(
            f"the lease folder {folder} cannot be written by you; set LEANTUNE_LEASES to one that can"
        )
    return folder


def open_shared(path: Path) -> IO[str]:
    """A file of the shared folder to lock, made where it is not there: its maker may write it,
    everyone may read it.

    The kernel refuses to open another user's file in a sticky folder with O_CREAT, so the two cases
    are apart. Raises BadInput for a link, which may lead anywhere.
    """
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(handle, 0o644)
            return os.fdopen(handle, "r+")
        except FileExistsError:
            pass
        for access, mode in ((os.O_RDWR, "r+"), (os.O_RDONLY, "r")):
            try:
                return os.fdopen(os.open(path, access | os.O_NOFOLLOW), mode)
            except PermissionError:
                continue
            except FileNotFoundError:  # removed since
                break
            except OSError as error:
                raise BadInput(f"{path} cannot be opened: {error.strerror}; remove it") from error
        else:
            raise BadInput(
                f"{path} is another user's and cannot be read by you; set LEANTUNE_LEASES"
            )


@contextmanager
def memory_lease(
    need: int,
    wait_message: Callable[[str], None] | None = None,
    *,
    limit: int | None = None,
    folder: Path | None = None,
    memory: Callable[[], Memory] = machine_memory,
    poll_seconds: float = 0.5,
    patience_seconds: float = 600.0,
) -> Iterator[None]:
    """Hold `need` bytes of this machine while the body runs, waiting for other holders first.

    `wait_message` is called once, with a sentence, when the lease has to wait. Raises DoesNotFit
    when `need` is above the machine's total or above `limit` (bytes that one cell may use), or when
    no other lease is left and the memory still did not become available within `patience_seconds`
    (then programs outside the suite hold it).
    """
    folder = folder or lease_folder()
    check(need, memory().total, limit)
    path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.lease"
    alone_since: float | None = None
    waited = False
    while True:
        with open_shared(folder / "lock") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)  # one at a time looks and takes
            held = _unused_bytes(folder)
            free = memory().available - sum(held)
            if need <= free:
                lease = open_shared(path)
                fcntl.flock(lease, fcntl.LOCK_EX)
                lease.write(json.dumps({"pid": os.getpid(), "need": need}))
                lease.flush()
                break
        now = time.monotonic()
        alone_since = None if held else alone_since or now
        if alone_since and now - alone_since > patience_seconds:
            raise DoesNotFit(
                f"needs {need / GIB:.1f} GiB of memory, only {free / GIB:.1f} GiB became free on this machine"
            )
        if wait_message and not waited:
            wait_message(
                f"waiting for memory: needs {need / GIB:.1f} GiB, {max(free, 0) / GIB:.1f} GiB are free "
                f"beside {len(held)} running cell(s)"
            )
        waited = True
        time.sleep(poll_seconds)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lease.close()


def _unused_bytes(folder: Path) -> list[int]:
    """Per living holder, the bytes it has leased and not yet taken. Leases of dead holders are
    removed."""
    unused = []
    for path in sorted(folder.glob("*.lease")):
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    lease = json.load(file)
                    unused.append(max(int(lease["need"]) - _resident_bytes(int(lease["pid"])), 0))
                else:
                    path.unlink(missing_ok=True)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ):  # released meanwhile, another user's, or no lease at all
            continue
    return unused


def _resident_bytes(pid: int) -> int:
    """Resident bytes of a process and all its descendants (the worker is the supervisor's child)."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:  # ended meanwhile
            continue
    return total
