"""What the Snakefile asks: the cells of a config as jobs. Imports little, since the DAG is built
with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake.exceptions import WorkflowError

from leantune.errors import BadInput, naming_extras
from leantune.files.record import write_json
from leantune.files.text import read_csv
from leantune.machine import memory
from leantune.prediction import paper_scale
from leantune.spec.cells import Cell, resolve_cell
from leantune.spec.config import expand, load_config, settings_for
from leantune.spec.trials import CHOICE, choice_files, planned_trials

if TYPE_CHECKING:
    from leantune.spec.schema import ConfigFile

PATTERN = "{key}/{model}/{task}/{method}/{seed}"  # of a cell, below records/, logs/, benchmarks/
TRIAL = PATTERN + "-trial{trial}"  # of a trial, below tuning/ too
# What a prediction depends on, as the columns of cells.csv have it.
SHAPE = ("model", "task", "method", "batch", "length", "dtype", "checkpointing")
Peaks = Mapping[tuple[str, ...], int]  # predicted bytes by shape


@dataclass(frozen=True)
class Job:
    """What a rule needs to know of a cell, or of the cells whose step times it compares."""

    arguments: str  # of `leantune run` or `leantune compare`, quoted for the shell
    hashes: str  # content of the stacks', task's and model's files, and their settings
    memory_mb: int  # of the host
    gpus: int
    choices: list[str]  # the files below the output that settings are taken from
    environment: str  # the conda environment: the suite's, or a method's own


class Jobs:
    """The cells of a config as jobs, looked up by the rule's wildcards. Raises WorkflowError for a
    wrong config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        try:
            self.config = load_config(config)
            cells = expand(self.config)
            _check_trust(cells, self.config.trust_remote_code)
            self._names = [_name(cell) for cell in cells]
            self._trials = planned_trials(self.config)
            known = _predicted(Path(self.config.output), Path("results"))
            self._jobs = {}
            for cell in chain(cells, *self._trials.values()):
                words = cell.command()[2:-2]  # without `leantune run` and the record's place
                if self.config.hardware:
                    words += ["--hardware", self.config.hardware]
                self._jobs[_name(cell)] = _job(words, [cell], known, self._trials)
            self.timing = _timing(self.config, known, self._trials)
            self.footprint = paper_scale.digest(paper_scale.expand(self.config))
            self.claims = ""
            if self.config.claims:
                with naming_extras("`claims: true`"):
                    # Not at the top: it imports scipy, which takes longer than most configs' cells.
                    from leantune.results.claims import ledger
                self.claims = ledger.digest()
        except BadInput as error:
            # Snakemake prints it as one sentence, without a traceback.
            raise WorkflowError(str(error)) from None

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
        output = self.config.output
        return self._trials and (lambda words: [f"{output}/{file}" for file in self[words].choices])

    def trials(self, wildcards: Any) -> list[str]:
        """The records of the trials that a choice is made from."""
        trials = self._trials[CHOICE.format(**dict(wildcards.items()))]
        return [f"{self.config.output}/tuning/{_name(trial)}.json" for trial in trials]

    def save_config(self, file: str) -> None:
        """Keep the resolved config beside what it produced, so that the tables know what was asked
        for."""
        write_json(Path(file), self.config.resolved())


def _name(cell: Cell) -> str:
    return cell.record_path.partition("/")[2].removesuffix(".json")


def _job(words: list[str], cells: list[Cell], known: Peaks, trials: Collection[str]) -> Job:
    """The job that runs these cells, one after the other."""
    own = [part.plugin.folder / "env.yaml" for cell in cells for part in cell.parts]
    return Job(
        shlex.join(words),
        " ".join(cell.hashes[name] for cell in cells for name in sorted(cell.hashes)),
        max(_memory_mb(cell, known) for cell in cells),
        max(int(cell.device == "cuda" and cell.model_name != "none") for cell in cells),
        [*dict.fromkeys(file for cell in cells for file in choice_files(cell, trials))],
        next((str(file) for file in own if file.is_file()), "envs/leantune.yaml"),
    )


def _timing(config: ConfigFile, known: Peaks, trials: Collection[str]) -> dict[str, Job]:
    """A config's comparisons of step times, by model/task."""
    jobs = {}
    for block in config.timing:
        methods = [*dict.fromkeys(["full", *block.methods])]
        words = ["--methods", *methods, "--rounds", str(block.rounds)]
        words += ["--device", config.device]
        for key, value in {**config.set, **block.set}.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        for model, task in product(block.models, block.tasks):
            cells = [
                resolve_cell(
                    model,
                    task,
                    method,
                    device=config.device,
                    overrides=settings_for(config, block, method, task),
                    on=config.hardware,
                )
                for method in methods
            ]
            first = cells[0].model
            place = ["--model", first.word, "--task", task]
            if first.spec.trust_remote_code:
                place += ["--trust-remote-code", model]
            jobs[f"{first.name}/{task}"] = _job([*place, *words], cells, known, trials)
    return jobs


def _check_trust(cells: Iterable[Cell], named: str | list[str]) -> None:
    """Raises BadInput for a model that runs code of its own and is not named."""
    asking = {cell.model.name for cell in cells if cell.model.spec.trust_remote_code}
    asking -= {named} if isinstance(named, str) else {*named}
    if asking:
        raise BadInput(
            f"model '{min(asking)}' runs code that lies beside its weights; "
            f"read that code, then allow it: snakemake --config trust_remote_code={min(asking)}"
        )


def _predicted(*outputs: Path) -> Peaks:
    """Peaks that were predicted for the cells in the outputs' tables; of several alike the
    largest."""
    peaks: dict[tuple[str, ...], int] = {}
    for output in outputs:
        with suppress(BadInput, ValueError, KeyError):  # a table of another version is no help
            for row in read_csv(output / "tables" / "cells.csv"):
                shape = tuple(row[name] for name in SHAPE)
                if row["predicted_peak_bytes"]:
                    peaks[shape] = max(int(row["predicted_peak_bytes"]), peaks.get(shape, 0))
    return peaks


def _memory_mb(cell: Cell, known: Peaks) -> int:
    """Host memory to ask a scheduler for. On the CPU it is what a cell like this one leased, where
    one has run: its predicted peak and a margin. Else, and on a GPU, whose own memory no scheduler
    hands out, a coarse bound."""
    names = (cell.model_name, cell.task.name, cell.method)
    shape = (*names, *(str(cell.training[name]).lower() for name in SHAPE[3:]))
    predicted = known.get(shape) if cell.device == "cpu" else None
    need = memory.need_bytes(predicted) if predicted else cell.memory_estimate
    return -(-need // 2**20)  # rounded up
