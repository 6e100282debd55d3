"""The supervisor of one cell. It imports no torch, starts the worker, and always writes the record.

Whatever happens to the worker (an exception, a kill, a timeout), the record says in which phase and
why. Asked to stop (SIGTERM, SIGUSR1), it lets the worker keep a checkpoint beside the record's
place and ends without a record.
"""

import contextlib
import datetime
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leantune.errors import RETRY, BadInput, naming_extras
from leantune.fetch import hub
from leantune.files.record import EMPTY, Record, read_record, summary, write_record
from leantune.files.text import say
from leantune.machine import gpus
from leantune.machine.gpu_lease import Leased, gpu_lease
from leantune.run.job import FILE, Job
from leantune.run.provenance import provenance
from leantune.spec.cells import Cell
from leantune.spec.stacks import unsupported_reason


@naming_extras("a cell", "datasets")
def run(
    cell: Cell,
    out: Path,
    *,
    timeout_minutes: float = 60.0,
    attempt: int = 1,
    attempts: int = 1,
    threads: int = 1,
    force: bool = False,
    limit: int | None = None,
    export: Path | None = None,
    tuning: dict[str, Any] | None = None,
) -> int:
    """Run a cell and write its record to `out`. Returns the exit status: 0 with a record, or 75
    without one when asked to stop, and after `oom` or `timeout` while attempts are left. `limit`:
    bytes that the cell may be predicted to need; `tuning`: where its settings are from, for the
    record. Raises BadInput where nothing should be recorded."""
    _check_writable(out)
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    checkpoint = out.with_name(f".{out.name}.checkpoint")
    reason = unsupported_reason(cell.parts, cell.model, cell.task.spec.kind, cell.device)
    result: dict[str, Any] = {"status": "unsupported", "reason": reason}
    if reason is None:
        terminal = sys.stderr.isatty()
        job = Job(cell, checkpoint.absolute(), terminal, threads, force, limit, export)
        result = _run_worker(job, timeout_minutes)
    if result["status"] == "stopped":
        say("stopped as asked; the same command goes on")
        return RETRY
    if result["status"] == "bad_input":
        raise BadInput(result["reason"])
    if result["status"] in ("oom", "timeout") and attempt < attempts:
        why = f"{result['status']}: {result['reason']}"
        say(f"{why}; attempt {attempt} of {attempts}, asking for another")
        return RETRY
    record = {**_record(cell, result, started, cell.command(str(out))), "tuning": tuning}
    write_record(out, record)
    checkpoint.unlink(missing_ok=True)
    # To stdout: the DAG shows it, all else goes to the log.
    print(summary(record, time.monotonic() - clock), flush=True)
    return 0


def _check_writable(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise BadInput(
            f"cannot write into {out.parent}: {error.strerror}; choose another --out"
        ) from error


def record_of(cell: Cell, out: Path, **how: Any) -> Record:
    """Run a cell and read its record; `how` as `run` takes it. Asked to stop, this process ends."""
    if run(cell, out, **how) == RETRY:
        raise SystemExit(RETRY)
    return read_record(out)


def _run_worker(job: Job, timeout_minutes: float) -> dict[str, Any]:
    """What the worker left, or, where it left nothing, how it ended: a status, in which phase and
    why. `stopped`: there is to be no record. On a GPU of its own, where the cell wants one."""
    errors: deque[str] = deque(maxlen=2**16)  # characters, the last ones
    kills, timed_out = _oom_kills(), False
    with _leased(job.cell) as leased, tempfile.TemporaryDirectory(prefix="leantune-") as scratch:
        folder = Path(scratch)
        workers: list[subprocess.Popen[str]] = []
        with _stops(workers) as stops:
            worker = _start(job, folder, leased)
            workers.append(worker)
            if stops:  # before there was a worker to pass them on to
                worker.terminate()
            try:
                timed_out = _follow(worker, errors, timeout_minutes * 60)
            finally:  # also when this process is asked to stop
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
        phase, headroom = _last_phase(folder)
        lack = {"details": {"headroom_bytes": headroom}}
        file = folder / "result.json"
        if file.exists():
            result: dict[str, Any] = json.loads(file.read_text())
            return {**lack, **result} if result["status"] == "oom" else result
    code = worker.returncode
    if stops or code == RETRY:
        return {"status": "stopped"}
    if timed_out:
        reason = f"not finished after {timeout_minutes:g} minutes"
        return {"status": "timeout", "phase": phase, "reason": reason}
    if code == -signal.SIGKILL and _oom_kills() > kills:
        reason = "the kernel killed the worker: out of memory"
        return {"status": "oom", "phase": phase, "reason": reason, **lack}
    # the exception's own line of a traceback
    reason = ("".join(errors).strip().splitlines() or ["it ended without a word"])[-1][:500]
    if code < 0:
        reason = f"the worker was ended by {signal.Signals(-code).name}"
    return {"status": "error", "phase": phase, "reason": reason}


def _leased(cell: Cell) -> contextlib.AbstractContextManager[Leased | None]:
    """A GPU of the hardware that the cell's key names, where it wants one."""
    if cell.device != "cuda" or cell.model_name == "none":
        return contextlib.nullcontext()
    return gpu_lease(say, devices=lambda: [g for g in gpus.visible() if g.name == cell.hardware])


def _start(job: Job, folder: Path, leased: Leased | None) -> subprocess.Popen[str]:
    """The worker, in a process group of its own."""
    try:
        (folder / FILE).write_bytes(pickle.dumps(job))
    except OSError as error:
        raise BadInput(
            f"cannot write into {folder}: {error.strerror}; free space or set TMPDIR"
        ) from error
    environment = {
        # The allocator that predictions replay, unless the user has set it; the record names it.
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",
        **os.environ,
        "OMP_NUM_THREADS": str(job.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
    }
    if leased is not None:
        environment["CUDA_VISIBLE_DEVICES"] = leased.gpu.uuid
    words = [str(folder), str(os.getpid()), str(time.monotonic())]
    return subprocess.Popen(
        [sys.executable, "-m", "leantune.run.worker", *words],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # The lock on the device lasts until both processes have ended.
        pass_fds=() if leased is None else (leased.lock,),
    )


@contextlib.contextmanager
def _stops(workers: Sequence[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Pass SIGTERM and SIGUSR1 on to the workers while it is open; yields those that came."""
    came: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        came.append(number)
        for worker in workers:
            worker.terminate()

    numbers = (signal.SIGTERM, signal.SIGUSR1)  # here: Windows, where no cell runs, has no SIGUSR1
    former = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _follow(worker: subprocess.Popen[str], errors: deque[str], seconds: float) -> bool:
    """Pass the worker's stderr on, keep its end, and return True where it ran out of time."""

    def copy() -> None:
        assert worker.stderr is not None
        while letter := worker.stderr.read(1):  # bars use carriage returns: lines would come late
            sys.stderr.write(letter)
            if letter in "\r\n":
                sys.stderr.flush()
            errors.append(letter)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    timed_out = False
    try:
        worker.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(worker.pid, signal.SIGKILL)
    thread.join(timeout=10)
    return timed_out


def _last_phase(folder: Path) -> tuple[str, int | None]:
    """The phase that began last, and the bytes that the worker could still get when it did."""
    file = folder / "phases.jsonl"
    for line in reversed(file.read_text().splitlines() if file.exists() else []):
        with contextlib.suppress(ValueError):  # cut short, by a full disk
            last = json.loads(line)
            return last["phase"], last["headroom"]
    return "import", None


def _oom_kills() -> int:
    """How often this machine's kernel has killed for memory since it booted; 0 where it does not
    tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _record(
    cell: Cell, result: dict[str, Any], started: datetime.datetime, command: list[str]
) -> Record:
    points = [part.point for part in cell.parts if part.point]
    plugins = [cell.task] + ([] if cell.model_name == "none" else [cell.model])
    return {
        **EMPTY,
        **{name: part for name, part in result.items() if name != "samples"},
        "cell": {
            "model": cell.model_name,
            "task": cell.task.name,
            "method": cell.method,
            "point": "+".join(points) or None,
            "seed": cell.seed,
            "trial": cell.trial,
            "settings": cell.settings,
        },
        "key": {**cell.key, "samples": result.get("samples")},
        "provenance": {
            **provenance(command, cell.hashes, cell.hardware),
            "revisions": hub.locked_revisions([plugin.raw["source"] for plugin in plugins]),
            "started": started.isoformat(timespec="seconds"),
        },
    }
