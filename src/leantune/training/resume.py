"""Where a training run stands, so that a cell that was asked to stop goes on later and ends
bit-equal on a CPU.

Kept are: every parameter that is or was trained, the buffers, which parameters are trained now, the
optimizer's groups and states in their own dtypes, the generators of random numbers, and what was
measured so far. The model and the data themselves are made again: they follow from the cell. So a
run whose method has replaced modules cannot be resumed.
"""

import hashlib
import json
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leantune.errors import RETRY, BadInput
from leantune.files.record import replacing
from leantune.files.text import say
from leantune.spec.cells import Cell

State = dict[str, Any]
FORM = 2  # of what a checkpoint holds; counts up where a reader of the form before would fail


class Preempted(Exception):
    """Training was asked to stop and did, after step `step`. `state` goes on from there; None: it
    starts over."""

    def __init__(self, step: int, state: State | None) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.state = step, state


class Stop:
    """Handles SIGTERM and SIGUSR1: ends the worker at once before training, after the step at hand
    during it, and lets it finish after it, since what then is left is short."""

    def __init__(self) -> None:
        self.asked = self.deferred = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self.asked = True
        if not self.deferred:
            raise SystemExit(RETRY)


def structure(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, int]:
    """Every parameter's shape by name, and how many groups the optimizer has. Only a run whose
    methods left both as they were can be resumed."""
    return {n: tuple(p.shape) for n, p in model.named_parameters()}, len(optimizer.param_groups)


def capture(model: nn.Module, optimizer: torch.optim.Optimizer, trained: set[str]) -> State:
    """What training has changed: `trained` names the parameters that were trained at its start."""
    named = dict(model.named_parameters())
    names = {id(p): name for name, p in named.items()}
    trains = [name for name, p in named.items() if p.requires_grad]
    return {
        "tensors": {name: named[name].detach() for name in sorted(trained.union(trains))},
        "buffers": _buffers(model),
        "trains": trains,
        "groups": [
            {**g, "params": [names[id(p)] for p in g["params"]]} for g in optimizer.param_groups
        ],
        "optimizer": {
            names[id(p)]: dict(state) for p, state in optimizer.state.items() if id(p) in names
        },
        "random": _random_state(),
    }


def restore(state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a `capture` back into the attached model and a fresh optimizer of it, where both have its
    structure.

    Call `restore_random` last, when nothing else is drawn before the next step. Raises BadInput,
    with nothing changed, where the structure differs.
    """
    named = dict(model.named_parameters())
    places = {**named, **_buffers(model)}
    tensors = {**state["tensors"], **state["buffers"]}
    groups, saved = optimizer.param_groups, state["groups"]
    wanted = {*state["trains"], *state["optimizer"], *(n for g in saved for n in g["params"])}
    same = len(saved) == len(groups) and wanted <= named.keys() and tensors.keys() <= places.keys()
    if not same or any(places[name].shape != t.shape for name, t in tensors.items()):
        raise BadInput(
            "the checkpoint is of a model of another structure; "
            "delete the .checkpoint file beside the record"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            places[name].copy_(tensor)
    for name, p in named.items():
        p.requires_grad_(name in state["trains"])
    for group, kept in zip(groups, saved, strict=True):
        group.update({**kept, "params": [named[name] for name in kept["params"]]})
    optimizer.state.clear()
    for name, values in state["optimizer"].items():
        optimizer.state[named[name]] = dict(values)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a checkpoint carries; the others follow from the frozen weights."""
    carried = model.state_dict()
    return {name: tensor for name, tensor in model.named_buffers() if name in carried}


def _random_state() -> State:
    """Plain values and tensors only: whoever reads a checkpoint runs no code that it holds."""
    of_numpy: Any = np.random.get_state(legacy=False)
    of_numpy["state"]["key"] = of_numpy["state"]["key"].tolist()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": of_numpy,
    }


def restore_random(state: State) -> None:
    """Every generator of random numbers as it was when the state was captured."""
    torch.set_rng_state(state["random"]["torch"])
    if state["random"]["cuda"]:
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    random.setstate(state["random"]["python"])
    np.random.set_state(state["random"]["numpy"])


# ------------------------------------------------------------------ the file


def identity(cell: Cell, samples: str) -> str:
    """A digest of all that a run's numbers depend on; a checkpoint of another is of no use."""
    known = [
        FORM,
        cell.hashes,
        cell.key,
        cell.model_name,
        cell.task.name,
        cell.method,
        cell.seed,
        cell.trial,
        cell.flatness,
        samples,
        torch.__version__,
        torch.get_num_threads(),
    ]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def write(file: Path, digest: str, state: State, measured: Mapping[str, Any]) -> bool:
    """Keep a state with what was measured so far (plain values). Says on stderr, and returns False,
    where the file cannot be written: the cell then starts over."""
    try:
        with replacing(file) as opened:
            torch.save({"cell": digest, "state": state, "measured": dict(measured)}, opened)
    except (BadInput, RuntimeError) as error:  # torch's writer has no other error for a full disk
        say(f"the checkpoint was not kept, so the cell will start over: {error}")
        return False
    return True


def read(file: Path, digest: str) -> tuple[State, dict[str, Any]] | None:
    """(state, measured) of a checkpoint of this very cell. A damaged one, or one of other code or
    settings, is named on stderr and removed, and is None like one that is not there."""
    if not file.is_file():
        return None
    try:
        found = torch.load(file, weights_only=True)
        if found["cell"] == digest:
            return found["state"], found["measured"]
        why = "it is of other code, data or settings"
    except Exception as error:  # whatever a damaged file makes torch's reader raise
        words = str(error).splitlines() or [type(error).__name__]
        why = f"it is damaged: {words[0][:120]}"
    say(f"checkpoint {file} is not used, {why}; the cell starts over")
    file.unlink(missing_ok=True)
    return None
