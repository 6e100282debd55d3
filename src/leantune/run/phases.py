"""What the worker tells while it runs: phase marks for the supervisor, a bar or lines for people."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from leantune.machine import memory
from leantune.meter.clocks import Clocks
from leantune.meter.cuda import CudaMemory
from leantune.meter.host import HostMemory
from leantune.prediction.metered_step import Probe
from leantune.spec.cells import Cell
from leantune.training.loop import Watch


class Phases:
    """Marks the start of each phase in a file, times it, and keeps its memory high-water marks.

    `started` is when the worker's process was, by the monotonic clock that all processes share: a
    clock that is set while a cell runs changes no duration.
    """

    def __init__(self, folder: Path, started: float) -> None:
        self.file = (folder / "phases.jsonl").open("a", buffering=1)
        self.current = "import"
        self.seconds = {"import": time.monotonic() - started}
        self.host = HostMemory()
        self.cuda = CudaMemory()
        self.clocks = Clocks(wanted=self.cuda.available)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.mark(name)
        started = time.perf_counter()
        with self.host.phase(name), self.cuda.phase(name):
            try:
                yield
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def mark(self, name: str) -> None:
        self.current = name
        self.file.write(json.dumps({"phase": name, "headroom": memory.headroom()}) + "\n")

    def measured(self) -> dict[str, Any]:
        """Seconds and peaks so far, for `go_on` of a later attempt."""
        return {"seconds": self.seconds, "host": self.host.peaks, "cuda": self.cuda.peaks}

    def go_on(self, before: dict[str, Any]) -> None:
        """Take over what an earlier attempt measured. Its seconds stand, so that a phase that was
        run again counts once, and training counts on from them; of two peaks the higher stands."""
        self.seconds = {**self.seconds, **before["seconds"]}
        self.host.carry(before["host"])
        self.cuda.carry(before["cuda"])


class Progress(Watch):
    """The cell's bar with the time left on a terminal; elsewhere ten plain lines a run."""

    def __init__(self, cell: Cell, phases: Phases, terminal: bool) -> None:
        self.phases = phases
        self.total = cell.training["steps"]
        self.name = f"{cell.task.name} {cell.method}"
        self.every = max(1, self.total // 10)
        self.bar = (
            tqdm(total=self.total, desc=self.name, unit="step", dynamic_ncols=True)
            if terminal
            else None
        )
        self.started = time.monotonic()
        self.first = 0  # steps that were done before, in an attempt that this one goes on from

    def step(self, step: int, seconds: float, loss: float) -> None:
        if step == self.first + 1:
            self.phases.mark("steady training")
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self.bar.update(step - self.bar.n)
        elif step % self.every == 0:
            elapsed = time.monotonic() - self.started
            left = elapsed / (step - self.first) * (self.total - step)
            print(
                f"{self.name}: step {step} of {self.total}, loss {loss:.3f}, {left:.0f} s left",
                file=sys.stderr,
            )


class Intervals(Progress):
    """Also measures memory again whenever a method changed what is trained (SAFE, SoftLMs)."""

    def __init__(self, cell: Cell, phases: Phases, terminal: bool, probe: Probe) -> None:
        super().__init__(cell, phases, terminal)
        self.probe = probe
        self.readings: list[dict[str, Any]] = []

    def changed(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        reading = self.probe(model)
        self.readings.append({"step": step, **interval(reading)})


def interval(reading: dict[str, Any]) -> dict[str, Any]:
    """Of a probe's reading, what is told for each part of a run between two changes."""
    return {name: reading[name] for name in ("peak_bytes", "by_kind", "flops_per_step")}
