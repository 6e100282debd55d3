"""Records from somebody else's machine: each is checked as if nobody could be trusted, and the
sound ones added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leantune import MEASUREMENT_VERSION
from leantune.errors import BadInput
from leantune.files.record import Record, read_record, value, write_record
from leantune.metrics import stats
from leantune.results import build, calibration
from leantune.results.comparable import Entry
from leantune.spec.cells import cell_of_record, short_key
from leantune.spec.config import CALIBRATION_LIMITS

NEEDED = ("allocate_64mib_tensors", "sleep", "train_nothing_parameters", "random", calibration.LEAK)


@dataclass(frozen=True)
class Judged:
    """What became of one file: `added`, `same`, `conflict` or `refused`, and why."""

    file: str  # relative to the folder's records/
    verdict: str
    why: str | None = None

    def __str__(self) -> str:
        line = f"{self.file}: {self.verdict}" + (f": {self.why}" if self.why else "")
        return "".join(letter if letter.isprintable() else "?" for letter in line)


def merge(
    folder: Path, into: Path, *, allow_dirty: bool = False, uncalibrated: bool = False
) -> list[Judged]:
    """Judge every record below `<folder>/records`, add the sound ones to `<into>/records`, rebuild
    the tables there.

    Nothing is written for a record that is refused, nor over one that is there already. A machine's
    records need its control cells among them (unless `uncalibrated`), and none of their checks may
    fail. Raises BadInput where the folder holds no records.
    """
    source = folder / "records"
    paths = sorted(source.rglob("*.json")) if source.is_dir() else []
    if not paths:
        raise BadInput(
            f"{source} holds no records; give the folder that a run wrote, which has records/ in it"
        )
    sound: dict[str, Record] = {}
    judged: dict[str, Judged] = {}
    for path in paths:
        file = path.relative_to(source).as_posix()
        try:
            sound[file] = _checked(path, file, source, allow_dirty)
        except BadInput as error:
            judged[file] = Judged(file, "refused", str(error).replace(f"{path}: ", ""))
    reasons = _machines(sound, uncalibrated)
    for file, record in sound.items():
        reason = reasons[_machine(record)]
        judged[file] = (
            Judged(file, "refused", reason) if reason else _added(file, record, into / "records")
        )
    if any(one.verdict == "added" for one in judged.values()):
        build.write_tables(into)
    return [judged[file] for file in sorted(judged)]


def _added(file: str, record: Record, records: Path) -> Judged:
    target = records / file
    if not target.resolve().is_relative_to(records.resolve()):
        return Judged(file, "refused", "its place leads out of the results")
    if not target.exists():
        write_record(target, record)
        return Judged(file, "added")
    try:
        there = read_record(target)
    except BadInput:
        return Judged(file, "conflict", "the record there is damaged; it was left as it is")
    differing = sorted(
        name for name in record if name != "provenance" and record[name] != there[name]
    )
    if differing:
        return Judged(
            file, "conflict", f"other {', '.join(differing)} than the record there, which was kept"
        )
    return Judged(file, "same")


# ------------------------------------------------------------------ one record


def _checked(path: Path, file: str, source: Path, allow_dirty: bool) -> Record:
    """The record, if it is sound. Raises BadInput with what is wrong."""
    if path.is_symlink() or path.resolve() != source.resolve() / file:
        raise BadInput("it is a link; send the file itself")
    record = read_record(path)
    _check_place(record, file)
    commit, dirty = (record["provenance"][name] for name in ("commit", "dirty"))
    if not allow_dirty and (not commit or dirty is not False):
        what = "files that were not committed" if commit else "an unknown commit"
        raise BadInput(
            f"measured with {what}; measure on a clean checkout, or merge with --allow-dirty"
        )
    if record["status"] == "ok":
        _check_score(record, cell_of_record(record).task.raw["metric"])
    return record


def _check_place(record: Record, file: str) -> None:
    """The cell must be one of the present files, and the path, the key and the hashes what that
    cell gives."""
    cell, key = cell_of_record(record), record["key"]
    recorded = record["provenance"]["hashes"]
    stale = sorted(name for name, digest in cell.hashes.items() if recorded.get(name) != digest)
    if stale:
        raise BadInput(
            f"stale: its {' and '.join(stale)} files or settings are not those here; measure again"
        )
    if key["measurement"] != MEASUREMENT_VERSION:
        raise BadInput(
            f"stale: measured by version {key['measurement']}, here is {MEASUREMENT_VERSION}; measure again"
        )
    if cell.trial is not None:
        raise BadInput(
            "a tuning trial, scored on the validation split; send the records of records/ only"
        )
    told = {
        **{
            name: cell.training[name]
            for name in ("dtype", "batch", "length", "steps", "checkpointing")
        }
    }
    wrong = sorted(name for name, setting in told.items() if key[name] != setting)
    wrong += ["hardware"] if value(record, "provenance.hardware.name") != key["hardware"] else []
    if wrong:
        raise BadInput(
            f"its key does not fit its command or provenance ({', '.join(wrong)}); send the file as written"
        )
    place = f"{short_key(key, cell.hashes['task'])}/{cell.model_name}/{cell.task.name}/{cell.method}/{cell.seed}.json"
    if (
        file != place
        or key["short"] != place.partition("/")[0]
        or record["cell"]["model"] != cell.model_name
    ):
        raise BadInput(f"its content belongs at {place}; send the folder as the run wrote it")


def _check_score(record: Record, metric_of_task: Mapping[str, object]) -> None:
    """The score must be the task's, and follow from the predictions."""
    quality = record["quality"]
    if (
        quality is None
        or not quality["predictions"]
        or len(quality["predictions"]) != len(quality["references"])
    ):
        raise BadInput("it lacks a prediction for each reference; send the file as written")
    metric, predictions = quality["metric"], quality["predictions"]
    if (metric, quality["higher_is_better"]) != (
        metric_of_task["score"],
        metric_of_task["higher_is_better"],
    ):
        raise BadInput(
            f"it is scored by '{metric}', its task by '{metric_of_task['score']}'; send the file as written"
        )
    try:
        score = stats.weighted_score(metric, predictions, quality["references"])
    except KeyError as error:
        raise BadInput(
            f"its score '{metric}' cannot be computed again from its predictions; ask for it to be added"
        ) from error
    with np.errstate(all="ignore"):
        again = float(score(np.ones((1, len(predictions))))[0])
    again = again if math.isfinite(again) else 0.0  # a correlation that is not defined scores 0
    # Counts are exact; other scores lose digits, as predictions are kept to five decimals.
    digits = 1e-9 if metric in stats.CLASS_SCORES else 1e-4
    if not math.isclose(again, quality["value"], rel_tol=digits, abs_tol=digits):
        raise BadInput(
            f"its predictions score {again:.6g}, not {quality['value']:.6g}; send the file as written"
        )


# ------------------------------------------------------------------ the machine


def _machine(record: Record) -> tuple[str, str]:
    return record["key"]["hardware"], record["key"]["device"]


def _machines(sound: Mapping[str, Record], uncalibrated: bool) -> dict[tuple[str, str], str | None]:
    """Per (hardware, device): why its records are refused, or None. The checks are computed anew."""
    reasons: dict[tuple[str, str], str | None] = {}
    for machine in sorted({_machine(record) for record in sound.values()}):
        entries = [
            Entry(file, r["status"], r) for file, r in sound.items() if _machine(r) == machine
        ]
        found = calibration.rows(entries, CALIBRATION_LIMITS)
        wrong = sorted({row["check"] for row in calibration.failed(found)})
        absent = [
            check
            for check in NEEDED
            if all(r["passed"] == "not_run" for r in found if r["check"] == check)
        ]
        reasons[machine] = None
        if wrong:
            reasons[machine] = (
                f"the calibration of its machine failed ({', '.join(wrong)}); measure without other work"
            )
        elif absent and not uncalibrated:
            reasons[machine] = (
                f"its machine has no control cells for {', '.join(absent)}; run those of config/config.yaml there, "
                "or merge with --uncalibrated"
            )
    return reasons
