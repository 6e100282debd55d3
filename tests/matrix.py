"""The matrix: every method on a tiny model of every architecture. `make matrix` runs it.

A cell is attach, memory without values equal to that of real tensors, two training steps, export,
and a reload with plain transformers that gives equal outputs. Its result is one JSON line in
runs/matrix/cells.jsonl, named by a hash of all that it depends on, so a second run goes on where
the first one ended. What all cells say is published as docs/matrix.md.

    python -m tests.matrix [--method NAME ...] [--architecture NAME ...] [--publish]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import peft
import torch
import transformers
import yaml
from tests.test_every_method import SETTINGS
from torch import Tensor, nn

from leantune.api import Context, Data, Unsupported, mark_head
from leantune.data.collate import Collate, batches
from leantune.models import export
from leantune.models.load import load_model
from leantune.prediction.metered_step import Probe
from leantune.prediction.one import build
from leantune.spec import plugins
from leantune.spec.hashes import stack_hash
from leantune.spec.kinds import KINDS
from leantune.spec.plugins import Plugin
from leantune.spec.schema import ModelFile
from leantune.spec.stacks import Part, parse_stack, plugin_names, unsupported_reason
from leantune.testing import easy_data
from leantune.training.loop import Schedule, train
from leantune.training.stack import Stack

ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT / "runs" / "matrix" / "cells.jsonl"
# Beside every method of methods/ alone: points with another way through the code, and stacks.
STACKS: dict[str, dict[str, Any]] = {
    "safe@prefix3": {"safe.prefix": 1},  # of two layers
    "softlms@stage2": {},
    "vocab_pruning+svfit": {},
    "vocab_pruning+lora+came": {},
}
GROUPS = {
    "decoders": ("causal_lm",),
    "encoders": ("classification", "masked_lm"),
    "encoder_decoders": ("seq2seq_lm",),
}
STEPS, BATCH, LENGTH = 2, 8, 14
RUN = 40  # steps of a method that follows a schedule over the whole run, whose ends are two steps
PROBE_SHAPE = (3, 12)
LIMIT = 60  # seconds of a cell, far above what any takes
# Packages of src/leantune that no cell runs.
_ELSEWHERE = {"cli", "workflow", "report", "results", "run", "metrics", "fetch", "machine"}


class Refused(Exception):
    """The method does not do this model, and says why."""


@dataclass(frozen=True)
class Cell:
    """A stack of methods on a tiny model of an architecture, trained for a kind of task."""

    architecture: str
    kind: str
    method: str

    @property
    def model_spec(self) -> dict[str, Any]:
        """As a models/*.yaml would say it."""
        settings = {"model_type": self.architecture, **architectures()[self.architecture]}
        return {
            "name": self.architecture,
            "kinds": [self.kind],
            "traits": ["from_scratch"],
            "architecture": settings,
        }

    @property
    def parts(self) -> tuple[Part, ...]:
        return parts_of(self.method, self.kind)

    @property
    def key(self) -> str:
        """A hash of all that the result depends on."""
        said = [self.kind, self.model_spec, stack_hash(self.parts), engine()]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def parts_of(method: str, kind: str) -> tuple[Part, ...]:
    """A stack with the settings that suit matrices of width 32 and two steps."""
    settings = {
        f"{name}.{key}": value
        for name in plugin_names(method)
        for key, value in SETTINGS.get(name, {}).items()
    }
    return parse_stack(method, kind, {**settings, **STACKS.get(method, {})})


@functools.cache
def architectures() -> dict[str, dict[str, Any]]:
    """Settings of the configuration of each model type."""
    said = yaml.safe_load((ROOT / "tests" / "matrix.yaml").read_text(encoding="utf-8"))
    shared = said["settings"]
    return {
        name: {**shared, **own} for group in GROUPS for name, own in said.get(group, {}).items()
    }


@functools.cache
def columns() -> dict[str, list[str]]:
    """Kind of task to the architectures that are made for it."""
    said = yaml.safe_load((ROOT / "tests" / "matrix.yaml").read_text(encoding="utf-8"))
    return {
        kind: [*said.get(group, {})]
        for group, kinds in GROUPS.items()
        for kind in kinds
        if kind in KINDS and said.get(group)
    }


def methods() -> list[str]:
    """Every method that takes a model, then the stacks."""
    found = {
        name: plugins.get("methods", name).spec for name in sorted(plugins.discover("methods"))
    }
    alone = [n for n, spec in found.items() if spec.slot != "control" and spec.disabled is None]
    return [*alone, *STACKS]


def cells() -> list[Cell]:
    asked = methods()
    return [
        Cell(architecture, kind, method)
        for kind, names in columns().items()
        for architecture in names
        for method in asked
    ]


@functools.cache
def engine() -> str:
    """A hash of the code that a cell runs beside its method's, and of the libraries' versions."""
    sha = hashlib.sha256(
        f"{torch.__version__} {transformers.__version__} {peft.__version__}".encode()
    )
    source = ROOT / "src" / "leantune"
    for file in [Path(__file__), *sorted(source.rglob("*.py"))]:
        if file.is_relative_to(source) and file.relative_to(source).parts[0] in _ELSEWHERE:
            continue
        sha.update(file.read_bytes())
    return sha.hexdigest()


# ------------------------------------------------------------------ one cell


def result(cell: Cell) -> dict[str, Any]:
    """What the cell says: `works`, `refused` with the method's reason, or `fault` with the error
    and where it was raised."""
    began = time.perf_counter()
    status, reason = "works", ""
    with tempfile.TemporaryDirectory() as folder:
        life, place = _life(cell, Path(folder)), ""
        try:
            while following := next(life, ""):
                place = following
        except Refused as refused:
            status, reason = "refused", str(refused)
        except Exception as error:  # whatever it is, it is the cell's result
            what = str(error).strip().splitlines() or [""]
            status, reason = "fault", f"{place}: {type(error).__name__}: {what[0][:200]}"
    seconds = round(time.perf_counter() - began, 2)
    return row(cell, status, reason, seconds)


def row(cell: Cell, status: str, reason: str, seconds: float) -> dict[str, Any]:
    return {
        "architecture": cell.architecture,
        "kind": cell.kind,
        "method": cell.method,
        "status": status,
        "reason": reason,
        "seconds": seconds,
        "key": cell.key,
    }


def _life(cell: Cell, scratch: Path) -> Iterator[str]:
    """Runs the cell, and yields the name of each part of it before it begins."""
    stack, data = Stack(cell.parts), easy_data(cell.kind)
    ctx = Context(
        kind=cell.kind,
        family=cell.architecture,
        steps=RUN if stack.overrides("on_progress") or stack.overrides("on_step") else STEPS,
        head_lr=1e-3,
        seed=0,
        device="cpu",
        batch=BATCH,
        length=LENGTH,
        cache=scratch,
    )
    yield "attach"
    model, data = _attached(cell, stack, data, ctx)
    if stack.trains:
        yield "memory"
        _check_memory(cell, stack, model, ctx)
        yield "training"
        model = _trained(stack, model, data, ctx)
    yield "export"
    trained = _logits(model, data)
    exported: Any = stack.export(model, ctx)
    expected = _logits(exported, data)
    _check_same(trained, expected)
    yield "reload"
    export.save(exported, scratch / "exported")
    plain: Any = getattr(transformers, type(exported).__name__)
    reloaded = plain.from_pretrained(scratch / "exported")
    saved, found = exported.state_dict(), reloaded.state_dict()
    assert saved.keys() == found.keys(), "other tensors came back from the folder"
    changed = [name for name, tensor in saved.items() if not torch.equal(tensor, found[name])]
    assert not changed, f"{changed[0]} came back with other values"
    # not to the bit: where a tensor lies in memory may change the order of a sum
    torch.testing.assert_close(_logits(reloaded, data), expected, rtol=1e-5, atol=1e-5)


def _attached(cell: Cell, stack: Stack, data: Data, ctx: Context) -> tuple[nn.Module, Data]:
    facts = ModelFile.model_construct(family=cell.architecture, kinds=[cell.kind])
    plugin = Plugin("models", cell.architecture, Path(), facts, cell.model_spec)
    if reason := unsupported_reason(cell.parts, plugin, cell.kind, "cpu"):
        raise Refused(reason)
    model = load_model(cell.model_spec, cell.kind, 2, seed=0)
    mark_head(model, cell.kind)
    torch.manual_seed(0)
    try:
        model, changed = stack.attach(model, data, ctx)
    except Unsupported as error:
        raise Refused(str(error)) from error
    assert changed is not None, "attach gave no data back"
    return model, changed


def _check_memory(cell: Cell, attached: Stack, model: nn.Module, ctx: Context) -> None:
    """Memory without values is, to the byte and the operation, that of real tensors."""
    stack, data = Stack(cell.parts), easy_data(cell.kind)
    try:
        built = build(cell.model_spec, stack, ctx, 2, data)
    except Unsupported:  # attaching needs values, and a prediction then takes real ones
        built = build(cell.model_spec, stack, ctx, 2, data, "cpu")
    schedule = Schedule(steps=ctx.steps)
    predicted = Probe(stack, schedule, ctx, PROBE_SHAPE).fake(built, cuda=False)
    real = Probe(attached, schedule, ctx, PROBE_SHAPE).real(model)
    numbers = ("peak_bytes", "by_kind", "by_phase", "optimizer_state_bytes", "flops_per_step")
    for number in numbers:
        assert predicted[number] == real[number], (
            f"{number}: predicted {predicted[number]}, real {real[number]}"
        )


def _trained(stack: Stack, model: nn.Module, data: Data, ctx: Context) -> nn.Module:
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert data.collate is not None
    order = batches(data.train, data.collate, BATCH, ctx.steps, seed=0, shuffle=True)
    trained = train(model, stack, order, Schedule(steps=ctx.steps), ctx).model
    after = dict(trained.named_parameters())
    moved = [n for n, p in before.items() if n not in after or not torch.equal(after[n], p)]
    assert moved, "no parameter has moved in training"
    return trained


def _logits(model: nn.Module, data: Data) -> Tensor:
    """Of the first examples, none of whose words is masked or made another. The decoder of an
    encoder-decoder model reads their targets."""
    assert isinstance(data.collate, Collate)
    two_sides = data.kind == "seq2seq_lm"
    plain = data.collate if two_sides else dataclasses.replace(data.collate, kind="classification")
    batch = next(batches(data.train, plain, BATCH, seed=0))
    inputs = {name: t for name, t in batch.items() if name != "labels" or two_sides}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def _check_same(trained: Tensor, exported: Tensor) -> None:
    """Export changed no logit; of a pruned vocabulary those of the rows that were kept."""
    if trained.shape != exported.shape:
        whole, kept = exported.flatten(0, -2).T, trained.flatten(0, -2).T
        nearest = torch.cdist(kept, whole).argmin(1)
        assert (nearest.diff() > 0).all(), "export changed the order of the tokens"
        exported = exported[..., nearest]
    torch.testing.assert_close(
        exported,
        trained,
        rtol=1e-4,
        atol=1e-5,
        msg=lambda m: f"export changed it: {' '.join(m.split())}",
    )


# ------------------------------------------------------------------ many cells


def _worker(line: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)  # the result says what is wrong
    warnings.simplefilter("ignore")
    transformers.logging.disable_progress_bar()
    while (cell := line.recv()) is not None:
        line.send(result(cell))


class Worker:
    """A process that runs one cell after the other. One that dies or hangs costs its cell only."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")  # torch is imported once for all
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_worker, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.cell: Cell | None = None
        self.began = 0.0

    def give(self, cell: Cell) -> None:
        self.cell, self.began = cell, time.monotonic()
        self.line.send(cell)

    def taken(self) -> dict[str, Any] | None:
        """The result of its cell, or None while there is none and it is in time."""
        assert self.cell is not None
        seconds = round(time.monotonic() - self.began, 2)
        if self.line.poll():
            try:
                found: dict[str, Any] = self.line.recv()
                return found
            except EOFError:
                self.process.join()
                return row(self.cell, "fault", f"exit {self.process.exitcode}", seconds)
        if seconds > LIMIT:
            self.end()
            return row(self.cell, "fault", f"took more than {LIMIT} s", seconds)
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def run(
    todo: Iterable[Cell], workers: int, seconds: float = float("inf")
) -> Iterator[dict[str, Any]]:
    """The results of the cells as they come; after `seconds` no further one is begun."""
    waiting, began = iter(todo), time.monotonic()
    busy: list[Worker] = []
    idle = [Worker() for _ in range(workers)]
    try:
        while True:
            while idle and time.monotonic() - began < seconds:
                if (cell := next(waiting, None)) is None:
                    break
                worker = idle.pop()
                worker.give(cell)
                busy.append(worker)
            if not busy:
                return
            multiprocessing.connection.wait([w.line for w in busy], timeout=1)
            for worker in [*busy]:
                if (found := worker.taken()) is not None:
                    busy.remove(worker)
                    idle.append(worker if worker.process.is_alive() else Worker())
                    yield found
    finally:
        for worker in [*busy, *idle]:
            worker.end()


def finished() -> dict[str, dict[str, Any]]:
    """Results by key. A line that was cut off, which ends without a newline, is taken away."""
    if not CELLS.exists():
        return {}
    text = CELLS.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        CELLS.write_text(whole, encoding="utf-8")
    rows = [json.loads(line) for line in whole.splitlines()]
    return {row["key"]: row for row in rows}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", nargs="*", help="run only these")
    parser.add_argument("--architecture", nargs="*", help="run only these")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--publish", action="store_true", help="write docs/matrix.md at the end")
    given = parser.parse_args(words)
    done = finished()
    todo = [
        cell
        for cell in cells()
        if cell.key not in done
        and (given.method is None or cell.method in given.method)
        and (given.architecture is None or cell.architecture in given.architecture)
    ]
    print(f"{len(todo)} cells to run, {len(done)} results there")
    CELLS.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    faults = 0
    with CELLS.open("a", encoding="utf-8") as lines:
        for found in run(todo, given.workers):
            lines.write(json.dumps(found) + "\n")
            lines.flush()
            if found["status"] == "fault":
                faults += 1
                print("fault", *(found[k] for k in ("architecture", "kind", "method", "reason")))
    print(f"{len(todo)} cells in {time.monotonic() - began:.0f} s, {faults} faults")
    if given.publish:
        from tests import matrix_page

        matrix_page.write(finished())
    return 1 if faults else 0


if __name__ == "__main__":
    from tests import matrix  # so that a cell is of one class, whoever makes it

    sys.exit(matrix.main(sys.argv[1:]))
