"""Copy a run's records and tables to the published results; remove records that should be made
again."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from leantune.errors import BadInput
from leantune.results import calibration
from leantune.results.build import write_tables
from leantune.results.comparable import Row
from leantune.results.load import load
from leantune.spec.cells import Cell
from leantune.spec.config import CALIBRATION_LIMITS


def publish(
    output: Path,
    target: Path,
    expected: Iterable[Cell],
    limits: Mapping[str, float] = CALIBRATION_LIMITS,
) -> list[Row]:
    """Copy the records and tables of a run to the published results, replacing what was there of
    each cell; returns the rows of their leaderboard.

    Published records of other keys (another machine) stay. Raises BadInput where there is nothing
    to publish, or where a control cell says that the run's figures are off by more than `limits`.
    """
    entries = load(output, expected).entries
    if wrong := calibration.failed(calibration.rows(entries, limits)):
        names = ", ".join(sorted({row["check"] for row in wrong}))
        raise BadInput(
            f"{output}: the calibration failed ({names}), so nothing is published; "
            "see its tables/calibration.csv, and run again on a machine without other work"
        )
    files = [entry.file for entry in entries if entry.record is not None]
    if not files:
        raise BadInput(f"{output / 'records'} holds no record; run the cells first, then publish")
    for file in files:
        (target / "records" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(output / "records" / file, target / "records" / file)
    if (output / "timing").is_dir():
        shutil.copytree(output / "timing", target / "timing", dirs_exist_ok=True)
    return write_tables(target, limits=limits)


def remove(output: Path, statuses: set[str]) -> list[Path]:
    """Delete the records with these statuses (`stale` and `damaged` among them); returns what was
    deleted."""
    found = [entry.file for entry in load(output).entries if entry.status in statuses]
    paths = [output / "records" / file for file in found]
    for path in paths:
        path.unlink()
    return paths
