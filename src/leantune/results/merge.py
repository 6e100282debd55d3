"""Records from somebody else's machine: each is checked as if nobody could be trusted, and the
sound ones added."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leantune import MEASUREMENT_VERSION
from leantune.errors import BadInput
from leantune.files.record import Record, read_record, value, write_record
from leantune.metrics import stats
from leantune.results import calibration
from leantune.results.build import write_tables
from leantune.results.comparable import Entry
from leantune.results.comparison import differing
from leantune.results.load import changed, place_of
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
    machines: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    judged: list[Judged] = []
    for path in paths:
        file = path.relative_to(source).as_posix()
        try:
            record = _checked(path, file, source, allow_dirty)
            machines[record["key"]["hardware"], record["key"]["device"]][file] = record
        except BadInput as error:
            judged.append(Judged(file, "refused", str(error).replace(f"{path}: ", "")))
    for sound in machines.values():
        reason = _uncalibrated(sound, uncalibrated)
        judged += [
            Judged(file, "refused", reason) if reason else _added(file, record, into / "records")
            for file, record in sound.items()
        ]
    if any(one.verdict == "added" for one in judged):
        write_tables(into)
    return sorted(judged, key=lambda one: one.file)


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
    parts = {name: name for name in sorted(record) if name != "provenance"}
    if other := differing(record, there, parts):
        why = f"other {', '.join(other)} than the record there, which was kept"
        return Judged(file, "conflict", why)
    return Judged(file, "same")


# ------------------------------------------------------------------ one record


def _checked(path: Path, file: str, source: Path, allow_dirty: bool) -> Record:
    """The record, if it is sound. Raises BadInput with what is wrong."""
    if path.is_symlink() or path.resolve() != source.resolve() / file:
        raise BadInput("it is a link; send the file itself")
    record = read_record(path)
    _refuse(_place_problems(record, file))
    commit, dirty = (record["provenance"][name] for name in ("commit", "dirty"))
    what = "files that were not committed" if commit else "an unknown commit"
    clean = allow_dirty or (commit and dirty is False)
    advice = "measure on a clean checkout, or merge with --allow-dirty"
    _refuse([(not clean, f"measured with {what}; {advice}")])
    if record["status"] == "ok":
        _check_score(record["quality"] or {}, cell_of_record(record).task.raw["metric"])
    return record


def _refuse(problems: Sequence[tuple[Any, str]]) -> None:
    """Raise BadInput with the text of the first problem that is there."""
    if found := [text for is_there, text in problems if is_there]:
        raise BadInput(found[0])


def _place_problems(record: Record, file: str) -> list[tuple[Any, str]]:
    """The cell must be one of the present files, and the path, the key and the hashes what that
    cell gives."""
    cell, key = cell_of_record(record), record["key"]
    stale = changed(record["provenance"]["hashes"], cell.hashes)
    told = {
        name: cell.training[name] for name in ("dtype", "batch", "length", "steps", "checkpointing")
    }
    told["hardware"] = value(record, "provenance.hardware.name")
    wrong = [name for name, setting in told.items() if key[name] != setting]
    names = {
        "model": cell.model_name,
        "task": cell.task.name,
        "method": cell.method,
        "seed": cell.seed,
    }
    short = short_key(key, cell.hashes["task"])
    place = place_of({"cell": names, "key": {"short": short}})
    return [
        (
            stale,
            f"stale: its {' and '.join(stale)} files or settings are not those here; measure again",
        ),
        (
            key["measurement"] != MEASUREMENT_VERSION,
            f"stale: measured by version {key['measurement']}, here is {MEASUREMENT_VERSION}; "
            "measure again",
        ),
        (
            cell.trial is not None,
            "a tuning trial, scored on the validation split; send the records of records/ only",
        ),
        (
            wrong,
            f"its key does not fit its command or provenance ({', '.join(sorted(wrong))}); "
            "send the file as written",
        ),
        (
            {file, place_of(record)} != {place},
            f"its content belongs at {place}; send the folder as the run wrote it",
        ),
    ]


def _check_score(quality: Mapping[str, Any], metric_of_task: Mapping[str, Any]) -> None:
    """The score must be the task's, and follow from the predictions."""
    predictions, references = (quality.get(name) or [] for name in ("predictions", "references"))
    if not predictions or len(predictions) != len(references):
        raise BadInput("it lacks a prediction for each reference; send the file as written")
    metric, higher = metric_of_task["score"], metric_of_task["higher_is_better"]
    if (quality["metric"], quality["higher_is_better"]) != (metric, higher):
        raise BadInput(
            f"it is scored by '{quality['metric']}', its task by '{metric}'; "
            "send the file as written"
        )
    try:
        score = stats.weighted_score(metric, predictions, references)
    except KeyError as error:
        raise BadInput(
            f"its score '{metric}' cannot be computed again from its predictions; ask for it to "
            "be added"
        ) from error
    with np.errstate(all="ignore"):
        again = float(score(np.ones((1, len(predictions))))[0])
    again = again if math.isfinite(again) else 0.0  # a correlation that is not defined scores 0
    # Counts are exact; other scores lose digits, as predictions are kept to five decimals.
    digits = 1e-9 if metric in stats.CLASS_SCORES else 1e-4
    if not math.isclose(again, quality["value"], rel_tol=digits, abs_tol=digits):
        raise BadInput(
            f"its predictions score {again:.6g}, not {quality['value']:.6g}; "
            "send the file as written"
        )


# ------------------------------------------------------------------ the machine


def _uncalibrated(sound: Mapping[str, Record], allowed: bool) -> str | None:
    """Why the records of a machine are refused, or None. The checks are computed anew."""
    entries = [Entry(file, record["status"], record) for file, record in sound.items()]
    found = calibration.rows(entries, CALIBRATION_LIMITS)
    if wrong := sorted({row["check"] for row in calibration.failed(found)}):
        return (
            f"the calibration of its machine failed ({', '.join(wrong)}); "
            "measure without other work"
        )
    ran = {row["check"] for row in found if row["passed"] != "not_run"}
    absent = [check for check in NEEDED if check not in ran]
    if absent and not allowed:
        return (
            f"its machine has no control cells for {', '.join(absent)}; run those of "
            "config/config.yaml there, or merge with --uncalibrated"
        )
    return None
