"""Snakemake's log for people: a line for each cell that ended, and one line over all cells with the
time left.

The profile names it (`logger: [leantune]`). On a terminal the line over all cells is updated in
place, elsewhere it is printed once every tenth of the cells. Errors, warnings and dry runs look as
in Snakemake; its own lines about jobs that start and end go to the log file below `.snakemake/log/`
only.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake.logging import ColorizingTextHandler, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from tqdm import tqdm

from leantune.errors import BadInput
from leantune.files.record import read_record, summary

CELLS = ("cell", "trial")  # the rules that write a record
HIDDEN = (
    LogEvent.JOB_STARTED,
    LogEvent.PROGRESS,
    LogEvent.RESOURCES_INFO,
    LogEvent.WORKFLOW_STARTED,
)


@dataclass(frozen=True)
class Job:
    """A job that was started."""

    rule: str
    words: tuple[str, ...]  # its wildcards, key and model left out
    outputs: tuple[str, ...]
    logs: tuple[str, ...]
    started: float  # by the monotonic clock

    @property
    def name(self) -> str:
        return " ".join(self.words if self.rule in CELLS else (self.rule, *self.words))

    @property
    def progress(self) -> str:
        """Its name, and how much of its training is done where its log says so."""
        try:
            steps = re.findall(
                r"step (\d+) of (\d+)",
                Path(self.logs[0]).read_text(encoding="utf-8", errors="replace"),
            )
        except (OSError, IndexError):
            steps = []
        return (
            f"{self.name} {100 * int(steps[-1][0]) // max(1, int(steps[-1][1]))} %"
            if steps
            else self.name
        )


@dataclass
class Cells:
    """How far the cells of a run are."""

    total: int
    running: dict[int, Job] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)  # of each cell that ended
    failed: set[int] = field(default_factory=set)
    slots: int = 1  # the most that ran side by side

    def started(self, number: int, job: Job) -> None:
        self.failed.discard(number)  # where it is tried again
        self.seconds.pop(number, None)
        self.running[number] = job
        self.slots = max(self.slots, len(self.running))

    def ended(self, number: int, seconds: float, failed: bool) -> None:
        self.running.pop(number, None)
        self.seconds[number] = seconds
        if failed:
            self.failed.add(number)

    def seconds_left(self, now: float) -> float | None:
        """The mean of the cells so far for each that is left, side by side as before; None before
        the first ended."""
        left = self.total - len(self.seconds)
        if not self.seconds or left <= 0:
            return None
        mean = sum(self.seconds.values()) / len(self.seconds)
        running = sum(max(0.0, mean - (now - job.started)) for job in self.running.values())
        return (running + mean * (left - len(self.running))) / min(self.slots, left)

    def line(self, now: float) -> str:
        """`12 of 42 cells done, 2 running, 0 failed, about 9 min left`; the failed ones are among
        the done."""
        done = f"{len(self.seconds)} of {self.total} cells done"
        text = f"{done}, {len(self.running)} running, {len(self.failed)} failed"
        left = self.seconds_left(now)
        return text if left is None else f"{text}, about {_duration(left)} left"


class LogHandler(LogHandlerBase):
    """Turns Snakemake's events into lines; the methods run in the thread that Snakemake gives to
    its loggers."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False  # Snakemake's own, so that --quiet is quiet
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        common = self.common_settings
        self.stream = sys.stdout if common.stdout else sys.stderr
        self.plain = ColorizingTextHandler(common.nocolor, self.stream)
        self.plain.setFormatter(DefaultFormatter(common.quiet, common.show_failed_logs))
        self.cells: Cells | None = None  # from the start of a run on
        self.others: dict[int, Job] = {}  # running jobs of other rules
        self.bar: tqdm | None = None
        self.told = 0  # tenths
        self.closed = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._show(record)
        except (
            Exception
        ):  # a line that cannot be shown must not end the thread that shows the others
            self.handleError(record)

    def _show(self, record: logging.LogRecord) -> None:
        words = record.__dict__  # an event's own words are attributes of its record
        event = words.get("event")
        if self.common_settings.dryrun or self.common_settings.verbose:
            self.plain.emit(record)
        elif event == LogEvent.RUN_INFO:
            self._run(sum(words["stats"].get(rule, 0) for rule in CELLS))
        elif event == LogEvent.JOB_INFO:
            self._started(words)
        elif event == LogEvent.JOB_FINISHED:
            self._finished(words["job_id"])
        elif event == LogEvent.JOB_ERROR:
            self._pass_on(record)
            self._failed(words["jobid"])
        elif event not in HIDDEN and (
            event or record.levelno > logging.INFO or self._wanted(record.getMessage())
        ):
            self._pass_on(record)

    def close(self) -> None:
        self.closed.set()
        self._end_bar()
        super().close()

    def _wanted(self, message: str) -> bool:
        """Of Snakemake's remarks, those before a run (such as `Nothing to be done`) and those of
        its end."""
        return self.cells is None or message.startswith(
            ("Complete log", "Terminating", "Shutting down", "Will exit")
        )

    def _run(self, total: int) -> None:
        self.cells = Cells(total)
        if total and self.stream.isatty():
            self.bar = tqdm(
                total=total,
                bar_format="{desc} |{bar}|",
                dynamic_ncols=True,
                leave=False,
                file=self.stream,
            )
            threading.Thread(target=self._tick, daemon=True).start()
        self._say(f"{total} cells to run")

    def _tick(self) -> None:
        while not self.closed.wait(1.0):
            with self.lock:  # type: ignore[union-attr]  # logging.Handler makes one
                self._draw()

    def _draw(self) -> None:
        if self.bar is not None and self.cells is not None:
            names = ", ".join(
                job.progress for job in [*self.cells.running.values(), *self.others.values()]
            )
            self.bar.n = len(self.cells.seconds)
            self.bar.set_description_str(
                _printable(self.cells.line(time.monotonic()) + (names and f": {names}"))
            )

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _started(self, words: dict[str, Any]) -> None:
        rule, wildcards = words["rule_name"], words["wildcards"]
        job = Job(
            rule,
            tuple(str(value) for key, value in wildcards.items() if key not in ("key", "model")),
            tuple(map(str, words["output"])),
            tuple(map(str, words["log"])),
            time.monotonic(),
        )
        if rule in CELLS and self.cells is not None:
            self.cells.started(words["jobid"], job)
        else:
            self.others[words["jobid"]] = job
        if rule == "all":  # its command prints what was reproduced
            self._end_bar()
        self._draw()

    def _finished(self, number: int) -> None:
        if self.cells is not None and number in self.cells.running:
            job = self.cells.running[number]
            seconds = time.monotonic() - job.started
            failed, line = _outcome(job, seconds)
            self.cells.ended(number, seconds, failed)
            self._say(line)
            self._tell()
        elif number in self.others:
            job = self.others.pop(number)
            if job.rule != "all":
                self._say(f"{'done':>11}  {job.name} ({time.monotonic() - job.started:.0f} s)")
        self._draw()

    def _failed(self, number: int) -> None:
        if self.cells is not None and number in self.cells.running:
            self.cells.ended(
                number, time.monotonic() - self.cells.running[number].started, failed=True
            )
            self._tell()
        self.others.pop(number, None)
        self._draw()

    def _tell(self) -> None:
        """Where there is no terminal, the line over all cells at each tenth of them."""
        assert self.cells is not None
        tenths = 10 * len(self.cells.seconds) // max(1, self.cells.total)
        if self.bar is None and tenths > self.told:
            self.told = tenths
            self._say(self.cells.line(time.monotonic()))

    def _say(self, line: str) -> None:
        tqdm.write(_printable(line), file=self.stream)
        self.stream.flush()

    def _pass_on(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            self.plain.emit(record)


def _outcome(job: Job, seconds: float) -> tuple[bool, str]:
    """Whether the cell failed by its record, and its line."""
    try:
        done = read_record(Path(job.outputs[0]))
    except BadInput as error:
        return True, f"{'damaged':>11}  {job.name}: {error}"
    return done["status"] not in ("ok", "unsupported"), summary(done, seconds)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _printable(text: str) -> str:
    """What a record or a name says must not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
