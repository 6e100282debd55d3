"""A folder of small cells for the fault tests: a model of four thin layers, two dozen sentences,
and a method that fails in the way and at the place that a test chooses. Every process is real; only
the cells are small.

The method is `full` with dropout. Its setting `fault` is what happens and `at` where: the name of a
phase, as the worker marks it, or `step N`. The fault strikes while the file `$FAULT` exists, so
that the same cell is whole without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml
from tests.host import Done, Host
from tests.small import WORDS, small_model

from leantune.files import record

STEPS = 6
METHOD = """
import os, resource, signal, sys, time
from pathlib import Path

import torch

from leantune.api import Method
from leantune.run.progress import Marks


def strike(fault):
    if not Path(os.environ.get("FAULT", "/nothing")).exists():
        return
    if fault == "kill worker":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "kill supervisor":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if fault.startswith("stop"):  # SIGTERM or SIGUSR1, as a scheduler sends it to the command
        os.kill(os.getppid(), getattr(signal, fault.split()[1]))
        time.sleep(0.5)
    if fault == "tell gpu":  # which device the worker has, and whether its lease was handed on
        device = os.environ["CUDA_VISIBLE_DEVICES"]
        lease = f"{os.environ['LEANTUNE_LEASES']}/{device}.gpu"
        files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        held = [os.readlink(file) for file in files if os.path.exists(file)]
        Path(os.environ["FAULT"]).write_text(f"{device} {lease in held}")
    if fault == "hang":
        time.sleep(600)
    if fault == "address space":  # an rlimit, as `ulimit -v` sets it
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        Faulty.marks.mark("steady training")  # the next mark sees the limit
        held = [torch.zeros(2**24) for _ in range(40)]
    if fault == "fill disk":  # that of the scratch folder
        with open(Path(os.environ["TMPDIR"]) / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
    if fault == "fill memory":
        held = [torch.ones(2**22) for _ in range(2000)]


class Faulty(Method):
    def __init__(self, params):
        super().__init__(params)
        mark, at, fault = Marks.mark, params["at"], params["fault"]

        def marked(marks, name):
            mark(marks, name)
            Faulty.marks = marks
            if name == at:
                strike(fault)

        Marks.mark = marked

    def attach(self, model, data, ctx):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        return model, data

    def on_step(self, model, step, ctx):
        time.sleep(0 if ctx.probe else self.params["pause"])
        if self.params["at"] == f"step {step}" and not ctx.probe:
            if self.params["fault"] == "nan" and Path(os.environ.get("FAULT", "/nothing")).exists():
                with torch.no_grad():
                    model.classifier.bias.fill_(float("nan"))
            strike(self.params["fault"])
"""
SPEC = {
    "name": "faulty",
    "summary": "Full fine-tuning that fails where a test says.",
    "slot": "adaptation",
    "resumable": True,
    "params": {"lr": 1.0e-3, "fault": "none", "at": "none", "pause": 0.0},
}
TASK = {
    "name": "words",
    "summary": "Says in which half of the alphabet the first word is.",
    "kind": "classification",
    "source": {"local": "."},
    "splits": {"train": 24, "validation": 8, "test": 16, "seed": 0},
    "training": {"steps": STEPS, "batch": 4, "length": 12, "dtype": "fp32", "evaluations": 1},
    "metric": {"module": "classification", "score": "accuracy", "higher_is_better": True},
}
LOADER = """
import random
from datasets import Dataset

def load(folder):
    draw, rows = random.Random(0), {"text": [], "label": []}
    for _ in range(60):
        words = [draw.randrange(59) for _ in range(draw.randrange(3, 9))]
        rows["text"].append(" ".join(f"w{word}" for word in words))
        rows["label"].append("low" if words[0] < 30 else "high")
    return {"all": Dataset.from_dict(rows)}
"""


class Cells:
    """Plugins, a run's output folder and the environment that the processes get."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.host = host
        self.folder, self.output, self.fault = folder, folder / "out", folder / "fault"
        plugins = folder / "plugins"
        for name in ("methods/faulty", "tasks/words", "models"):
            (plugins / name).mkdir(parents=True)
        (plugins / "methods/faulty/method.yaml").write_text(yaml.safe_dump(SPEC))
        (plugins / "methods/faulty/method.py").write_text(METHOD)
        (plugins / "tasks/words/task.yaml").write_text(yaml.safe_dump(TASK))
        (plugins / "tasks/words/task.py").write_text(LOADER)
        self._save_model(plugins / "models")
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.environment = {
            **os.environ,
            "LEANTUNE_PLUGINS": str(plugins),
            "TMPDIR": str(self.temporary),
            "FAULT": str(self.fault),
            "LEANTUNE_CACHE": str(folder / "cache"),
            "LEANTUNE_LEASES": str(folder / "leases"),
        }

    @staticmethod
    def _save_model(folder: Path) -> None:
        from transformers.models.bert import BertTokenizer

        model = small_model()
        weights = folder / "weights"
        model.save_pretrained(weights)
        (folder / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizer(str(folder / "vocab.txt")).save_pretrained(weights)
        known = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        )
        spec = {
            "name": "tiny",
            "summary": "Four thin layers with random weights.",
            "family": "bert",
            "source": {"local": "weights"},
            "kinds": ["classification"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "architecture": {
                "model_type": "bert",
                "max_position_embeddings": 32,
                **{k: getattr(model.config, k) for k in known},
            },
        }
        (folder / "tiny.yaml").write_text(yaml.safe_dump(spec))

    def words(
        self,
        *,
        method: str = "faulty",
        seed: int = 0,
        at: str = "none",
        fault: str = "none",
        device: str = "cpu",
        **more: Any,
    ) -> list[str]:
        """The command of a cell without `--out`."""
        settings = {"at": at, "fault": fault, **more} if method == "faulty" else more
        sets = [
            w
            for k, v in settings.items()
            for w in ("--set", f"{k if '.' in k else 'faulty.' + k}={v}")
        ]
        cell = [
            "--model",
            "tiny",
            "--task",
            "words",
            "--method",
            method,
            "--seed",
            str(seed),
            "--device",
            device,
        ]
        return ["run", *cell, *sets]

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """The command in an interpreter of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "leantune", *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, words: list[str], **environment: str) -> Done:
        """The finished command, forked from the host."""
        return self.host.run(
            words, environment={**self.environment, **environment}, folder=self.folder
        )

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """While it is open, faults strike."""
        self.fault.touch()
        try:
            yield
        finally:
            self.fault.unlink()

    def record(self, out: Path) -> dict[str, Any] | None:
        return record.read_record(out) if out.exists() else None

    def finished(self) -> dict[Path, str]:
        """The finished records of the output folder, each with its bytes' digest."""
        found = {}
        for path, row in record.read_records(self.output / "records"):
            if isinstance(row, dict) and row["status"] == "ok":
                found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def checkpoint(self, out: Path) -> Path:
        return out.with_name(f".{out.name}.checkpoint")

    def configure(self, *cells: dict[str, Any], **more: Any) -> Path:
        """A config file of these blocks."""
        blocks = [{"models": ["tiny"], "tasks": ["words"], **block} for block in cells]
        file = self.folder / "config" / "config.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            json.dumps({"output": str(self.output), "device": "cpu", "cells": blocks, **more})
        )
        return file


def workers_in(folder: Path) -> list[int]:
    """The living workers whose working folder is this one."""
    found = []
    for process in psutil.process_iter():
        try:
            is_worker = "leantune.run.worker" in [process.name(), *process.cmdline()]
            if is_worker and process.status() != "zombie" and process.cwd() == str(folder):
                found.append(process.pid)
        except psutil.Error:  # ended meanwhile
            continue
    return found


def wait_for(what: Any, seconds: float = 60.0) -> bool:
    """Whether `what()` came true in time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
