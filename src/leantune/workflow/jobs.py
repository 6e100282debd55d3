"""What the Snakefile asks: the cells of a config as jobs. Imports little, since the DAG is built
with it."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError

from leantune.errors import BadInput
from leantune.files.record import write_json
from leantune.files.text import read_csv
from leantune.machine import memory as lease
from leantune.prediction import paper_scale
from leantune.spec.cells import Cell, resolve_cell
from leantune.spec.config import expand, load_config, settings_for
from leantune.spec.trials import CHOICE, choice_files, planned_trials

MIB = 2**20
PATTERN = (
    "{key}/{model}/{task}/{method}/{seed}"  # a cell's place below records/, logs/ and benchmarks/
)
TRIAL = PATTERN + "-trial{trial}"  # a trial's, below tuning/ too
Shape = tuple[str, ...]  # what a prediction depends on, as the columns of cells.csv have it
_SHAPE = ("model", "task", "method", "batch", "length", "dtype", "checkpointing")


@dataclass(frozen=True)
class Job:
    """What the cell rule needs to know of one cell."""

    hashes: str  # content of the stack's, task's and model's files, and their settings
    arguments: str  # of `leantune run`, quoted for the shell
    memory_mb: int  # of the host
    gpus: int
    environment: str  # the conda environment: the suite's, or a method's own


class Jobs:
    """The cells of a config as jobs, looked up by the rule's wildcards. Raises WorkflowError for a
    wrong config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        try:
            self.config = load_config(config)
            cells = expand(self.config)
            _check_trust(cells, self.config.get("trust_remote_code", []))
            known = _predicted(Path(self.config["output"]), Path("results"))
            self._jobs = {_name(cell): _job(cell, self.config, known) for cell in cells}
            choices = planned_trials(self.config)
            self._trials = {
                file: [_name(trial) for trial in trials] for file, trials in choices.items()
            }
            self._jobs |= {
                _name(trial): _job(trial, self.config, known)
                for trials in choices.values()
                for trial in trials
            }
            self._choices = (
                {_name(cell): choice_files(cell, choices) for cell in cells} if choices else {}
            )
            self._names = [_name(cell) for cell in cells]
            self.timing = _timing(self.config, choices, known)
            self.footprint = paper_scale.digest(paper_scale.expand(self.config))
            self.claims = _claims_digest() if self.config["claims"] else ""
        except BadInput as error:
            raise WorkflowError(
                str(error)
            ) from None  # printed as one sentence, without a traceback

    def __getitem__(self, wildcards: Any) -> Job:
        words = dict(wildcards.items())
        return self._jobs[(TRIAL if "trial" in words else PATTERN).format(**words)]

    def files(self, pattern: str) -> list[str]:
        """`pattern` with `{cell}` filled in, for every cell in the order of the config."""
        return [pattern.format(cell=name) for name in self._names]

    @property
    def choices(self) -> Any:
        """The input function of the cell rule: the choice files that a cell takes its settings
        from. A config without trials has none: calling a function for each of 10,000 cells would
        cost seconds."""
        if not self._choices:
            return []
        return lambda words: [
            f"{self.config['output']}/{f}"
            for f in self._choices[PATTERN.format(**dict(words.items()))]
        ]

    def trials(self, wildcards: Any) -> list[str]:
        """The records of the trials that a choice is made from."""
        file = CHOICE.format(**dict(wildcards.items()))
        return [f"{self.config['output']}/tuning/{name}.json" for name in self._trials[file]]

    def save_config(self, file: str) -> None:
        """Keep the resolved config beside what it produced, so that the tables know what was asked
        for."""
        write_json(Path(file), self.config)


def _check_trust(cells: Sequence[Cell], named: str | Sequence[str]) -> None:
    """Raises BadInput for a model that runs code of its own and is not named."""
    allowed = {named} if isinstance(named, str) else {*named}
    asking = {cell.model.name for cell in cells if cell.model.spec.trust_remote_code} - allowed
    if asking:
        raise BadInput(
            f"model '{min(asking)}' runs code that lies beside its weights; read that code, then allow it: "
            f"snakemake --config trust_remote_code={min(asking)}"
        )


def _claims_digest() -> str:
    from leantune.results.claims import (
        ledger,  # here, since it imports scipy, which takes longer than the cells of most configs
    )

    return ledger.digest()


@dataclass(frozen=True)
class Timing:
    """What the timing rule needs to know of one model and task."""

    arguments: str  # of `leantune compare`, quoted for the shell
    hashes: str
    choices: list[str]  # files below the output
    memory_mb: int  # of the host
    gpus: int


def _timing(
    config: Mapping[str, Any], choices: Collection[str], known: Mapping[Shape, int]
) -> dict[str, Timing]:
    """A config's comparisons of step times, by model/task."""
    found = {}
    for block in config["timing"]:
        methods = ["full", *(method for method in block["methods"] if method != "full")]
        words = [
            "--methods",
            *methods,
            "--rounds",
            str(block.get("rounds", 3)),
            "--device",
            config["device"],
        ]
        settings = {**config.get("set", {}), **block.get("set", {})}
        for key, value in settings.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        for model, task in itertools.product(block["models"], block["tasks"]):
            cells = [
                resolve_cell(
                    model,
                    task,
                    method,
                    device=config["device"],
                    overrides=settings_for(config, block, method, task),
                    on=config["hardware"],
                )
                for method in methods
            ]
            files = {file for cell in cells for file in choice_files(cell, choices)}
            place = ["--model", model, "--task", task]
            place += ["--trust-remote-code", model] if cells[0].model.spec.trust_remote_code else []
            hashes = " ".join(cell.hashes[name] for cell in cells for name in sorted(cell.hashes))
            memory = max(_memory_mb(cell, known) for cell in cells)
            arguments = shlex.join([*place, *words])
            found[f"{model}/{task}"] = Timing(
                arguments, hashes, sorted(files), memory, max(map(_gpus, cells))
            )
    return found


def _name(cell: Cell) -> str:
    return cell.record_path.partition("/")[2].removesuffix(".json")


def _job(cell: Cell, config: Mapping[str, Any], known: Mapping[Shape, int]) -> Job:
    own = [part.plugin.folder / "env.yaml" for part in cell.parts]
    environment = next((str(file) for file in own if file.is_file()), "envs/leantune.yaml")
    words = cell.command()[2:-2]  # without `leantune run` and the place of the record
    words += ["--hardware", config["hardware"]] if config["hardware"] else []
    hashes = " ".join(cell.hashes[name] for name in sorted(cell.hashes))
    return Job(hashes, shlex.join(words), _memory_mb(cell, known), _gpus(cell), environment)


def _gpus(cell: Cell) -> int:
    return 1 if cell.device == "cuda" and cell.model_name != "none" else 0


def _memory_mb(cell: Cell, known: Mapping[Shape, int]) -> int:
    """Host memory to ask a scheduler for. On the CPU it is what a cell like this one leased, where
    one has run: its predicted peak and a margin. Else, and on a GPU, whose own memory no scheduler
    hands out, a coarse bound."""
    training = cell.training
    shape = (
        *(cell.model_name, cell.task.name, cell.method),
        *(str(training[name]).lower() for name in ("batch", "length", "dtype", "checkpointing")),
    )
    predicted = known.get(shape) if cell.device == "cpu" else None
    return -(-(lease.need_bytes(predicted) if predicted else cell.memory_estimate) // MIB)


def _predicted(*outputs: Path) -> dict[Shape, int]:
    """Peaks in bytes that were predicted for the cells in the outputs' tables; of several alike the
    largest."""
    found: dict[Shape, int] = {}
    for output in outputs:
        try:
            for row in read_csv(output / "tables" / "cells.csv"):
                shape = tuple(row[name] for name in _SHAPE)
                if row["predicted_peak_bytes"]:
                    found[shape] = max(int(row["predicted_peak_bytes"]), found.get(shape, 0))
        except (BadInput, ValueError, KeyError):  # a table of another version is no help
            continue
    return found
