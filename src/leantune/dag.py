"""What the Snakefile asks: the cells of a config as jobs. Imports little, since the DAG is built with it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError

from leantune import claims, footprint, plan
from leantune.errors import BadInput
from leantune.record import write_json

MIB = 2**20
PATTERN = "{key}/{model}/{task}/{method}/{seed}"  # a cell's place below records/, logs/ and benchmarks/


@dataclass(frozen=True)
class Job:
    """What the cell rule needs to know of one cell."""

    hashes: str  # content of the stack's, task's and model's files, and their settings
    arguments: str  # of `leantune run`, quoted for the shell
    memory_mb: int
    environment: str  # the conda environment: the suite's, or a method's own


class Jobs:
    """The cells of a config as jobs, looked up by the rule's wildcards. Raises WorkflowError for a wrong config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        try:
            self.config = plan.load_config(config)
            self._jobs = {_name(cell): _job(cell) for cell in plan.expand(self.config)}
            self.footprint = footprint.digest(footprint.expand(self.config))
            self.claims = claims.digest() if self.config["claims"] else ""
        except BadInput as error:
            raise WorkflowError(str(error)) from None  # printed as one sentence, without a traceback

    def __getitem__(self, wildcards: Any) -> Job:
        return self._jobs[PATTERN.format(**dict(wildcards.items()))]

    def files(self, pattern: str) -> list[str]:
        """`pattern` with `{cell}` filled in, for every cell in the order of the config."""
        return [pattern.format(cell=name) for name in self._jobs]

    def save_config(self, file: str) -> None:
        """Keep the resolved config beside what it produced, so that the tables know what was asked for."""
        write_json(Path(file), self.config)


def _name(cell: plan.Cell) -> str:
    return cell.record_path.removeprefix("records/").removesuffix(".json")


def _job(cell: plan.Cell) -> Job:
    own = [part.plugin.folder / "env.yaml" for part in cell.parts]
    environment = next((str(file) for file in own if file.is_file()), "envs/leantune.yaml")
    words = cell.command()[2:-2]  # without `leantune run` and the place of the record
    hashes = " ".join(cell.hashes[name] for name in sorted(cell.hashes))
    return Job(hashes, shlex.join(words), -(-cell.memory_estimate // MIB), environment)
