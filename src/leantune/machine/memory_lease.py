"""Memory leases: cells that run side by side agree on who may start, so that a machine is never
filled.

A lease is a file that its holder keeps locked: when the holder dies, however it dies, the kernel
drops the lock and the lease is void. The folder is shared by all runs and users of the machine:
everyone may add a file and nobody may remove another's, as in /tmp. A cell starts when its need
fits into what the machine has available less what the other holders have leased and not yet used
(what they have used is no longer available).
"""

import contextlib
import itertools
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
from filelock import lock_descriptor

from leantune.errors import BadInput
from leantune.machine.memory import GIB, DoesNotFit, Memory, check, machine_memory


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
            f"the lease folder {folder} cannot be written by you; set LEANTUNE_LEASES to one that "
            "can"
        )
    return folder


def open_shared(path: Path) -> IO[str]:
    """A file of the shared folder to lock, made where it is not there: its maker may write it,
    everyone may read it.

    Raises BadInput for a link, which may lead anywhere.
    """
    # The kernel refuses to open another user's file in a sticky folder with O_CREAT, so the cases
    # are apart: it is not there, it is one's own, it is another user's.
    ways = ((os.O_RDWR | os.O_CREAT | os.O_EXCL, "r+"), (os.O_RDWR, "r+"), (os.O_RDONLY, "r"))
    for access, mode in ways:
        try:
            file = os.fdopen(os.open(path, access | os.O_NOFOLLOW, 0o644), mode)
        except (FileExistsError, PermissionError):
            continue
        except OSError as error:
            raise BadInput(f"{path} cannot be opened: {error.strerror}; remove it") from error
        if access & os.O_CREAT:
            os.fchmod(file.fileno(), 0o644)  # whatever the umask
        return file
    raise BadInput(f"{path} is another user's and cannot be read by you; set LEANTUNE_LEASES")


@contextlib.contextmanager
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
    alone_since = None
    for attempt in itertools.count():
        with open_shared(folder / "lock") as gate:
            lock_descriptor(gate.fileno())  # one at a time looks and takes
            held = unused_bytes(folder)
            free = memory().available - sum(held)
            if need <= free:
                lease = open_shared(path)
                lock_descriptor(lease.fileno())
                lease.write(json.dumps({"pid": os.getpid(), "need": need}))
                lease.flush()
                break
        now = time.monotonic()
        alone_since = None if held else alone_since or now
        if alone_since and now - alone_since > patience_seconds:
            raise DoesNotFit(
                f"needs {need / GIB:.1f} GiB of memory, only {free / GIB:.1f} GiB became free on "
                "this machine"
            )
        if wait_message and not attempt:
            wait_message(
                f"waiting for memory: needs {need / GIB:.1f} GiB, {max(free, 0) / GIB:.1f} GiB are "
                f"free beside {len(held)} running cell(s)"
            )
        time.sleep(poll_seconds)
    with lease:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def unused_bytes(folder: Path) -> list[int]:
    """Per living holder, the bytes it has leased and not yet taken. Leases of dead holders are
    removed."""
    unused = []
    for path in sorted(folder.glob("*.lease")):
        # released meanwhile, another user's, or no lease at all
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
                if lock_descriptor(file.fileno(), blocking=False):
                    path.unlink(missing_ok=True)
                else:
                    lease = json.load(file)
                    unused.append(max(int(lease["need"]) - _resident_bytes(int(lease["pid"])), 0))
    return unused


def _resident_bytes(pid: int) -> int:
    """Resident bytes of a process and its descendants (the worker is the supervisor's child)."""
    total = 0
    with contextlib.suppress(psutil.Error):  # it has ended
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total
