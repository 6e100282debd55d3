"""What the worker tells meanwhile: phase marks for its supervisor, a bar or lines for people."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from leantune.files.text import say
from leantune.machine.memory import headroom
from leantune.meter.clocks import Clocks
from leantune.meter.cuda import CudaMemory
from leantune.meter.host import resident_peak_bytes
from leantune.prediction.metered_step import Probe
from leantune.spec.cells import Cell
from leantune.training.loop import Watch


class Marks:
    """Marks the start of each phase in a file, times it, and keeps its memory high-water marks.

    `started` is when the worker's process was, by the monotonic clock that all processes share: a
    clock that is set while a cell runs changes no duration.
    """

    def __init__(self, folder: Path, started: float) -> None:
        self.file = (folder / "phases.jsonl").open("a", buffering=1)  # whole lines, also if killed
        self.current = "import"
        self.seconds = {"import": time.monotonic() - started}
        self.host_before = 0  # the host's peak in earlier attempts
        self.cuda = CudaMemory()
        self.clocks = Clocks(wanted=self.cuda.available)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.mark(name)
        started = time.perf_counter()
        with self.cuda.phase(name):
            try:
                yield
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def mark(self, name: str) -> None:
        self.current = name
        self.file.write(json.dumps({"phase": name, "headroom": headroom()}) + "\n")

    @property
    def host_peak(self) -> int | None:
        peak = resident_peak_bytes()
        return None if peak is None else max(peak, self.host_before)

    def measured(self) -> dict[str, Any]:
        """Seconds and peaks so far, for `go_on` of a later attempt."""
        return {"seconds": self.seconds, "host": self.host_peak, "cuda": self.cuda.peaks}

    def go_on(self, before: dict[str, Any]) -> None:
        """Take over what an earlier attempt measured. Its seconds stand, so that a phase that was
        run again counts once, and training counts on from them; of two peaks the higher stands."""
        self.seconds |= before["seconds"]
        self.host_before = before["host"] or 0
        self.cuda.carry(before["cuda"])


class Progress(Watch):
    """A bar with the time left on a terminal, elsewhere ten plain lines a run. Measures memory
    again whenever a method changed what is trained (SAFE, SoftLMs).

    `first` is the step that an earlier attempt ended with.
    """

    def __init__(
        self, cell: Cell, marks: Marks, terminal: bool, probe: Probe, first: int = 0
    ) -> None:
        self.marks, self.probe, self.first = marks, probe, first
        self.intervals: list[dict[str, Any]] = []  # what the probe found, by the step before it
        self.name, self.total = f"{cell.task.name} {cell.method}", cell.training["steps"]
        self.bar = tqdm(
            desc=self.name,
            total=self.total,
            initial=first,
            unit="step",
            dynamic_ncols=True,
            disable=not terminal,
        )
        self.started = time.monotonic()

    def step(self, step: int, seconds: float, loss: float) -> None:
        if step == self.first + 1:
            self.marks.mark("steady training")
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.bar.update()
        if self.bar.disable and step % max(1, self.total // 10) == 0:
            per_step = (time.monotonic() - self.started) / (step - self.first)
            say(
                f"{self.name}: step {step} of {self.total}, loss {loss:.3f}, "
                f"{per_step * (self.total - step):.0f} s left"
            )

    def changed(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        self.intervals.append({"step": step, **interval(self.probe(model))})


def interval(reading: dict[str, Any]) -> dict[str, Any]:
    """Of a probe's reading, what is told for each part of a run between two changes."""
    return {name: reading[name] for name in ("peak_bytes", "by_kind", "flops_per_step")}
