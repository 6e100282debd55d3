"""The worker: the process that runs one cell through its phases, for the supervisor.

`python -m leantune.run.worker FOLDER SUPERVISOR STARTED` reads the job in FOLDER and writes
`phases.jsonl` there (a line as each phase starts, so that a killed worker's last phase is known)
and `result.json`. SUPERVISOR is its process id, STARTED its monotonic clock.
"""

# ruff: noqa: E402  # what stands between the imports is about the time that they take
import gc

# collecting while the libraries below are imported costs one to two seconds a cell; `main` ends it
gc.disable()

import ctypes
import logging
import os
import pickle
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # A worker does not outlive its supervisor; here, since the imports below take seconds.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[2]):  # it has ended before that
        sys.exit(1)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as the command does

from typing import Any

import torch

from leantune.errors import RETRY, BadInput, Diverged, Unsupported
from leantune.files.record import write_json
from leantune.run.job import FILE
from leantune.run.phases import run_cell
from leantune.run.progress import Marks
from leantune.training.resume import Preempted, Stop

STATUSES = {BadInput: "bad_input", Unsupported: "unsupported", Diverged: "diverged"}


def main() -> int:
    gc.freeze()  # what was imported stays, and need not be looked at again
    gc.enable()
    stop = Stop()
    folder = Path(sys.argv[1])
    job = pickle.loads((folder / FILE).read_bytes())
    torch.set_num_threads(job.threads)
    marks = Marks(folder, started=float(sys.argv[3]))
    result: dict[str, Any] = {"status": "ok"}
    try:
        result |= run_cell(job, marks, stop)
    except Preempted:
        return RETRY
    except tuple(STATUSES) as error:
        result = {"status": STATUSES[type(error)], "reason": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        words = str(error).splitlines() or ["out of memory"]
        result = {"status": "oom", "reason": f"{type(error).__name__}: {words[0][:300]}"}
    if result["status"] != "ok":
        result["phase"] = marks.current
    write_json(folder / "result.json", result)
    return 0


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's, the CPU allocator's (a plain RuntimeError) or CUDA's out of memory."""
    words = ("DefaultCPUAllocator", "CUDA out of memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


if __name__ == "__main__":
    sys.exit(main())
