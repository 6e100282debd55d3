"""A process that has imported everything and forks `leantune` commands, so that a fault test takes
a second, not ten.

Supervisor and worker are real processes with real signals, files and limits; only starting a fresh
interpreter is left out. Tests that are about just that start a real command instead. Reads a job a
line, answers with its exit status.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from leantune.cli import parser
from leantune.run import supervisor, worker


class ForkedWorker:
    """What the supervisor uses of `subprocess.Popen`, for a worker that is forked."""

    def __init__(self, words: list[str], env: dict[str, str], **_: Any) -> None:
        reading, writing = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            system = ctypes.CDLL(None)
            system.prctl(1, signal.SIGKILL)  # as the worker's module does when it is started
            system.prctl(15, b"leantune.worker")
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            os.close(reading)
            os.dup2(writing, 2)
            os.environ.clear()
            os.environ.update(env)
            sys.argv = words[2:]
            _end(worker.main)
        os.close(writing)
        self.stderr = os.fdopen(reading, "r")

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            else:
                time.sleep(0.01)
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


def _end(what: Callable[[], int]) -> None:
    """Run to the end of this process, with the exit status that the interpreter would give."""
    code: Any = 1
    try:
        code = what()
    except SystemExit as asked:
        code = asked.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _command(job: dict[str, Any]) -> int:
    tempfile.tempdir = None  # TMPDIR may be another
    supervisor.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=ForkedWorker, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    return parser.main(job["words"])


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            for number in (1, 2):
                os.dup2(os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            os.environ.update(job["environment"])
            _end(lambda job=job: _command(job))  # type: ignore[misc]
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
