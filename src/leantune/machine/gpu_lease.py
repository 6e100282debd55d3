"""GPU leases: a cell has one device for itself. A lease is a lock on a file named by the device's
UUID.

The supervisor takes it and hands the open file on to its worker, so that the lock lasts until both
have ended, however they end. A device that a process outside the suite uses is left alone: its
memory and time would spoil the cell's.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from filelock import lock_descriptor

from leantune.errors import BadInput
from leantune.machine.gpus import MIB, Gpu, visible
from leantune.machine.memory_lease import lease_folder, open_shared

IDLE_BYTES = 512 * MIB  # what a driver, or a desktop, may hold on a device that nobody computes on


class Leased(NamedTuple):
    """The device, and the open file whose lock is the lease."""

    gpu: Gpu
    lock: int


@contextmanager
def gpu_lease(
    wait_message: Callable[[str], None] | None = None,
    *,
    folder: Path | None = None,
    devices: Callable[[], list[Gpu]] = visible,
    poll_seconds: float = 1.0,
    patience_seconds: float = 10.0,
) -> Iterator[Leased]:
    """Hold one device while the body runs, waiting for other cells first.

    `wait_message` is called once, with a sentence, when the lease has to wait. Raises BadInput,
    which names the holders, where no device is free and none is leased by a cell that could be
    waited for, `patience_seconds` long: the driver takes a moment to give back what an ended
    process held.
    """
    folder = folder or lease_folder()
    waited = False
    asked = time.monotonic()
    while True:
        leased, busy = [], []
        for gpu in devices():
            with open_shared(folder / f"{gpu.uuid}.gpu") as file:
                if not lock_descriptor(file.fileno(), blocking=False):
                    leased.append(f"GPU {gpu.index} ({_holder(file)})")
                elif gpu.users or gpu.used_bytes > IDLE_BYTES:
                    busy.append(f"GPU {gpu.index} ({gpu.name}): {gpu.holder()}")
                else:
                    _sign(file)
                    yield Leased(gpu, file.fileno())
                    return
        if leased:
            asked = time.monotonic()
            if wait_message and not waited:
                wait_message(f"waiting for a GPU, as cells hold {', '.join(leased)}")
            waited = True
        elif time.monotonic() - asked >= patience_seconds:
            what = "; ".join(busy) or "there is none that CUDA_VISIBLE_DEVICES allows"
            raise BadInput(
                f"no free GPU: {what}. Wait for it, or name others in CUDA_VISIBLE_DEVICES"
            )
        time.sleep(poll_seconds)


def _sign(file: IO[str]) -> None:
    """Say in the file who holds it, where it is one's own file."""
    if file.writable():
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid()}))
        file.flush()


def _holder(file: IO[str]) -> str:
    try:
        return f"process {int(json.load(file)['pid'])}"
    except (ValueError, KeyError, TypeError):
        return "another cell"
