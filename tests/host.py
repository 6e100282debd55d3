"""A process that has imported everything and forks `leantune` commands, so that a test's cell takes
a second, not ten: importing torch and transformers takes longer than a small cell.

Supervisor and worker are real processes with real signals, files and limits; only starting a fresh
interpreter is left out. Tests that are about just that start a real command instead. The process
reads a job a line and answers with its exit status; `Host` is the tests' end of it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from leantune.cli import parser
from leantune.run import supervisor

ROOT = Path(__file__).resolve().parents[1]


class Done(NamedTuple):
    """A command that has ended: its exit status, negative for a signal, and what it said."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        return self.stdout + self.stderr


def cell_words(
    method: str,
    out: Path,
    *settings: str,
    model: str = "minilm-l6",
    task: str = "sentiment",
) -> list[str]:
    """The command of a cell on the CPU."""
    cell = {"--model": model, "--task": task, "--method": method, "--device": "cpu"}
    words = [word for pair in cell.items() for word in pair]
    return ["run", *words, "--out", str(out), *(w for one in settings for w in ("--set", one))]


class Host:
    """Runs `leantune` commands, each forked from a process that starts with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._said = folder
        self._process: subprocess.Popen[str] | None = None

    def run(
        self,
        words: Sequence[object],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> Done:
        """The finished command, with all of this environment (this process's, where none is given)
        in this working folder. What it said goes to the test's output too."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.host"],
                cwd=ROOT,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},  # asked where the hub's library begins
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        said = [self._said / "stdout", self._said / "stderr"]
        for file in said:
            file.unlink(missing_ok=True)
        job = {
            "words": [str(word) for word in words],
            "said": [str(file) for file in said],
            "environment": {**(os.environ if environment is None else environment)},
            "folder": str(folder),
        }
        print(json.dumps(job), file=self._process.stdin, flush=True)
        done = Done(
            int(self._process.stdout.readline()),
            *(file.read_text(encoding="utf-8", errors="replace") for file in said),
        )
        print(done.stdout, done.stderr)
        return done

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


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
            from leantune.run import worker  # turns the collector off: never in pytest's process

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
    supervisor.subprocess = SimpleNamespace(  # type: ignore[assignment]  # a stand-in
        Popen=ForkedWorker, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    return parser.main(job["words"])


def main() -> None:
    importlib.import_module("leantune.run.worker")  # with torch, once for all forks
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            for number, file in enumerate(job["said"], 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            os.chdir(job["folder"])
            os.environ.clear()
            os.environ.update(job["environment"])
            _end(lambda job=job: _command(job))  # type: ignore[misc]  # job is bound at once
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
