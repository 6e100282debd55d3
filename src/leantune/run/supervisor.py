"""The supervisor of one cell. It imports no torch, starts the worker, and always writes the record.

Whatever happens to the worker (an exception, a kill, a timeout), the record says in which phase and
why. Asked to stop (SIGTERM, SIGUSR1), it lets the worker keep a checkpoint beside the record's
place and ends without a record.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from leantune.errors import RETRY, BadInput, naming_extras
from leantune.fetch import hub
from leantune.files import record
from leantune.files.record import Record, summary
from leantune.machine import gpus
from leantune.machine.gpu_lease import Leased, gpu_lease
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
    command: list[str] | None = None,
    tuning: dict[str, Any] | None = None,
) -> int:
    """Run a cell and write its record to `out`. Returns the exit status: 0 with a record, or 75
    without one when asked to stop, and after `oom` or `timeout` while attempts are left. `limit`:
    bytes that the cell may be predicted to need; `tuning`: where its settings are from, for the
    record. Raises BadInput where nothing should be recorded."""
    _check_writable(out)
    started, clock = time.time(), time.monotonic()
    kept = out.with_name(f".{out.name}.checkpoint")
    reason = unsupported_reason(cell.parts, cell.model, cell.task.spec.kind, cell.device)
    if reason is not None:
        result: dict[str, Any] = {"status": "unsupported", "reason": reason}
    else:
        result = _run_worker(
            cell,
            timeout_minutes,
            threads,
            {
                "force": force,
                "limit": limit,
                "export": export and str(export),
                "draws": cell.flatness,
                "kept": str(kept.absolute()),
            },
        )
    if result["status"] == "stopped":
        print("stopped as asked; the same command goes on", file=sys.stderr)
        return RETRY
    if result["status"] == "bad_input":
        raise BadInput(result["reason"])
    if result["status"] in ("oom", "timeout") and attempt < attempts:
        print(
            f"{result['status']}: {result.get('reason')}; attempt {attempt} of {attempts}, asking for another",
            file=sys.stderr,
        )
        return RETRY
    finished = {
        **_record(cell, result, started, command or cell.command(str(out))),
        "tuning": tuning,
    }
    record.write_record(out, finished)
    kept.unlink(missing_ok=True)
    # To stdout: the DAG shows it, all else goes to the log.
    print(summary(finished, time.monotonic() - clock), flush=True)
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


def _run_worker(
    cell: Cell, timeout_minutes: float, threads: int, options: dict[str, Any]
) -> dict[str, Any]:
    if cell.device == "cuda" and cell.model_name != "none":

        def say(message: str) -> None:
            print(message, file=sys.stderr, flush=True)

        def devices() -> list[gpus.Gpu]:  # those of the hardware that the key names
            return [gpu for gpu in gpus.visible() if gpu.name == cell.hardware]

        with gpu_lease(say, devices=devices) as leased:
            return _run_on(cell, timeout_minutes, threads, options, leased)
    return _run_on(cell, timeout_minutes, threads, options, None)


def _run_on(
    cell: Cell, timeout_minutes: float, threads: int, options: dict[str, Any], leased: Leased | None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="leantune-") as scratch:
        folder = Path(scratch)
        options = {**options, "terminal": sys.stderr.isatty()}
        job = {
            "cell": _resolve_arguments(cell),
            "threads": threads,
            "options": options,
            "supervisor": os.getpid(),
            "started": time.monotonic(),
        }
        try:
            (folder / "job.json").write_text(json.dumps(job))
        except OSError as error:
            raise BadInput(
                f"cannot write into {folder}: {error.strerror}; free space or set TMPDIR"
            ) from error
        kills_before = _oom_kills()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONUNBUFFERED": "1",
            # The allocator that predictions replay; the record names it.
            "PYTORCH_CUDA_ALLOC_CONF": os.environ.get(
                "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False"
            ),
        }
        if leased is not None:
            environment["CUDA_VISIBLE_DEVICES"] = leased.gpu.uuid
        errors: deque[str] = deque(maxlen=2**16)  # characters, the last ones
        with _Stop() as stop:
            worker = subprocess.Popen(
                [sys.executable, "-m", "leantune.run.worker", scratch],
                env=environment,
                start_new_session=True,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=() if leased is None else (leased.lock,),
            )
            stop.pass_on_to(worker)
            try:
                timed_out = _follow(worker, errors, timeout_minutes * 60)
            finally:  # also when this process is asked to stop
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
            result = _result(folder)
            if result is not None:
                if result["status"] == "oom":
                    result.setdefault("details", {"headroom_bytes": _last_phase(folder)[1]})
                return result
            if stop.asked or worker.returncode == RETRY:
                return {"status": "stopped"}
            phase, headroom = _last_phase(folder)
            if timed_out:
                return {
                    "status": "timeout",
                    "phase": phase,
                    "reason": f"not finished after {timeout_minutes:g} minutes",
                }
            if worker.returncode == -signal.SIGKILL and (_oom_kills() or 0) > (kills_before or 0):
                return {
                    "status": "oom",
                    "phase": phase,
                    "reason": "the kernel killed the worker: out of memory",
                    "details": {"headroom_bytes": headroom},
                }
            if worker.returncode < 0:
                name = signal.Signals(-worker.returncode).name
                return {
                    "status": "error",
                    "phase": phase,
                    "reason": f"the worker was ended by {name}",
                }
            return {"status": "error", "phase": phase, "reason": _last_line("".join(errors))}


class _Stop:
    """While it is open, SIGTERM and SIGUSR1 are passed on to the worker; `asked` says that one
    came."""

    def __init__(self) -> None:
        self.asked = False
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> _Stop:
        self._former = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGUSR1)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def pass_on_to(self, worker: subprocess.Popen[str]) -> None:
        self._worker = worker
        if self.asked:
            worker.terminate()

    def _handle(self, number: int, frame: object) -> None:
        self.asked = True
        if self._worker is not None:
            self._worker.terminate()


def _follow(worker: subprocess.Popen[str], errors: deque[str], seconds: float) -> bool:
    """Pass the worker's stderr on, keep its end, and return True where it ran out of time."""
    import threading

    def copy() -> None:
        assert worker.stderr is not None
        while chunk := worker.stderr.read(1):  # bars use carriage returns, so lines would come late
            sys.stderr.write(chunk)
            if chunk in "\r\n":
                sys.stderr.flush()
            errors.append(chunk)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        worker.wait(timeout=seconds)
        timed_out = False
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(worker.pid, signal.SIGKILL)
    thread.join(timeout=10)
    return timed_out


def _result(folder: Path) -> dict[str, Any] | None:
    file = folder / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


def _last_phase(folder: Path) -> tuple[str, int | None]:
    """The phase that began last, and the bytes that the worker could still get when it did."""
    file = folder / "phases.jsonl"
    for line in reversed(file.read_text().splitlines() if file.exists() else []):
        with contextlib.suppress(ValueError):  # cut short, by a full disk
            last = json.loads(line)
            return last["phase"], last["headroom"]
    return "import", None


def _last_line(text: str) -> str:
    """The exception's own line of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "the worker ended without a word"


def _oom_kills() -> int | None:
    """How often this machine's kernel has killed for memory since it booted."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return None


def _resolve_arguments(cell: Cell) -> dict[str, Any]:
    """The arguments with which `plan.resolve` makes this cell again in the worker."""
    return {
        "model": cell.model.name,
        "task": cell.task.name,
        "method": cell.method,
        "seed": cell.seed,
        "trial": cell.trial,
        "device": cell.device,
        "overrides": cell.overrides,
    }


def _record(cell: Cell, result: dict[str, Any], started: float, command: list[str]) -> Record:
    points = [p.point for p in cell.parts if p.point]
    when = datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds")
    sources = [cell.task.raw["source"]] + (
        [] if cell.model_name == "none" else [cell.model.raw["source"]]
    )
    known = ("memory", "parameters", "time", "quality", "inference", "size", "details")
    return {
        **record.EMPTY,
        **{k: result[k] for k in known if k in result},
        "status": result["status"],
        "phase": result.get("phase"),
        "reason": result.get("reason"),
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
            "revisions": hub.locked_revisions(sources),
            "started": when,
        },
    }
