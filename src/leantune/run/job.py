"""What the supervisor hands its worker: the resolved cell itself, and how to run it."""

from dataclasses import dataclass
from pathlib import Path

from leantune.spec.cells import Cell

FILE = "job.pickle"  # in the scratch folder of the two, which only their user can write


@dataclass(frozen=True)
class Job:
    """One cell and how to run it. It goes to the worker whole: a worker that resolved the names
    again could run another cell than the record says."""

    cell: Cell
    checkpoint: Path  # where training is kept when it is asked to stop, and goes on from
    terminal: bool  # whether a person watches
    threads: int = 1
    force: bool = False  # start even where the prediction says that it does not fit
    limit: int | None = None  # bytes that the cell may be predicted to need
    export: Path | None = None  # a folder that gets the trained model
