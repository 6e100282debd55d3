"""What the control cells say of the meter: `calibration.csv`, a row per check, a pure function of
the records.

A control holds a known quantity (64 MiB, 200 ms, no training, guesses, a leaked label), so the
difference between what is expected and what was measured is the suite's own error. A check without
records is `not_run`, never passed.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
from scipy import stats

from leantune.files.record import value
from leantune.files.text import text_table
from leantune.metrics.stats import CLASS_SCORES
from leantune.results.columns import measured_over_predicted
from leantune.results.comparable import Entry, Record, Row, usable
from leantune.results.comparison import KEYS, differing

METHODS = ("allocate_64mib", "sleep", "train_nothing", "random")
LEAK = "leak"  # the task whose texts hold their labels
CHANCE = 0.99  # of the scores that chance gives lie within the limit
PREDICTION = "measured_over_predicted"
CHECKS = (
    *("allocate_64mib_tensors", "allocate_64mib_cuda", "sleep"),
    *("train_nothing_parameters", "train_nothing_stored", "train_nothing_score"),
    *("random", LEAK, PREDICTION),
)
# By control: check, path of the number, what the control adds to that of `head`, name of the limit
# of the relative error ("" for none: bytes of tensors are exact).
ABOVE_HEAD = {
    "allocate_64mib": (
        ("allocate_64mib_tensors", "memory.tensors.peak_bytes", 2**26, ""),
        ("allocate_64mib_cuda", "memory.cuda.allocated_peak_bytes", 2**26, "limit"),
    ),
    "sleep": (("sleep", "time.step_seconds_median", 0.2, "sleep_limit"),),
}
# Nothing to store means that the head was not trained either.
ZERO = {
    "train_nothing_parameters": "parameters.trainable",
    "train_nothing_stored": "size.checkpoint_bytes",
}
# `limit`: relative error of memory; `sleep_limit`: that of the slept seconds.
Limits = Mapping[str, float]


def rows(entries: Sequence[Entry], limits: Limits) -> list[Row]:
    """A row per check and control cell, in the order of `CHECKS`; `passed` is true, false or
    `not_run`.

    `error` is relative to what is expected, and absolute where 0 or a score is expected. Of
    `measured_over_predicted` there is one row, for the record that is furthest off. Only records
    that are `ok` and not stale count.
    """
    records = usable(sorted(entries, key=lambda entry: entry.file))
    found = [row for record in records for row in _checked(record, records, limits)]
    found += _prediction(records, limits)
    missing = {*CHECKS} - {row["check"] for row in found}
    found += [_row(check, None, why="no record of this control") for check in missing]
    return sorted(found, key=lambda row: CHECKS.index(row["check"]))


def failed(found: Sequence[Row]) -> list[Row]:
    """The rows of the checks that ran and did not pass."""
    return [row for row in found if row["passed"] is False]


def table(found: Sequence[Row]) -> str:
    """The rows as people read them."""
    columns = ("check", "model", "task", "expected", "measured", "error", "limit", "passed")
    return text_table(columns, ([_short(row[column]) for column in columns] for row in found))


def without_controls(entries: Sequence[Entry]) -> list[Entry]:
    """The entries without the controls of this module, nor `head` where it only stands beside
    them."""
    # A cell without a record is told by its file: <key>/<model>/<task>/<method>/<seed>.json.
    folders = [(entry, PurePosixPath(entry.file).parent) for entry in entries]
    methods = defaultdict(set)
    for _, folder in folders:
        methods[folder.parent].add(folder.name)
    bare = {
        place
        for place, found in methods.items()
        if found & {*METHODS} and found <= {*METHODS, "head"}
    }
    return [
        entry
        for entry, folder in folders
        if folder.name not in METHODS and LEAK not in folder.parts and folder.parent not in bare
    ]


# ------------------------------------------------------------------ checks


def _checked(record: Record, records: Sequence[Record], limits: Limits) -> Iterator[Row]:
    """The rows of a record: none where it is no control."""
    method, quality = record["cell"]["method"], value(record, "quality.value")
    if record["cell"]["task"] == LEAK:
        if method in ("full", "tfidf"):  # others may be too slow to learn it
            yield _exact(LEAK, record, 1.0, quality)
    elif method == "random":
        yield _chance("random", record)
    elif method == "train_nothing":
        for check, path in ZERO.items():
            yield _exact(check, record, 0, value(record, path))
        untrained = _beside(record, records, "zero_shot")
        if untrained is not None:
            yield _exact("train_nothing_score", record, value(untrained, "quality.value"), quality)
        elif _are_classes(record):
            yield _chance("train_nothing_score", record)
        else:
            none = "no record of 'zero_shot' beside it, and no chance level"
            yield _row("train_nothing_score", record, why=none)
    for check, path, added, name in ABOVE_HEAD.get(method, ()):
        if record["cell"]["task"] != LEAK and value(record, path) is not None:
            floor = value(_beside(record, records, "head") or {}, path)
            measured = None if floor is None else value(record, path) - floor
            why = "no record of 'head' beside it to compare with" if floor is None else None
            yield _row(check, record, added, measured, limits.get(name, 0.0), added, why)


def _prediction(records: Sequence[Record], limits: Limits) -> list[Row]:
    found = [(measured_over_predicted(record), record) for record in records]
    ratios = [(ratio, record) for ratio, record in found if ratio is not None]
    if not ratios:
        return []
    ratio, worst = max(ratios, key=lambda found: abs(found[0] - 1))
    why = f"the worst of {len(ratios)} records: {worst['cell']['method']}"
    return [_row(PREDICTION, worst, 1.0, ratio, limits["limit"], why=why)]


def _are_classes(record: Record) -> bool:
    return value(record, "quality.metric") in CLASS_SCORES


def _chance(check: str, record: Record) -> Row:
    """Accuracy against the 99 % binomial interval around how often two such label counts agree by
    chance; of a regression the correlation against the 99 % bound of unrelated normal numbers
    (Student's t)."""
    told = (value(record, f"quality.{name}") or () for name in ("predictions", "references"))
    predictions, references = (np.asarray(numbers, dtype=float) for numbers in told)
    count = len(predictions)
    if not 2 < count == len(references):
        return _row(check, record, why="the record holds no predictions with their references")
    if _are_classes(record):
        classes = np.union1d(predictions, references)
        expected = float(sum(np.mean(predictions == c) * np.mean(references == c) for c in classes))
        measured = float(np.mean(predictions == references))
        low, high = (float(hits) / count for hits in stats.binom.interval(CHANCE, count, expected))
        limit = high - expected if measured >= expected else expected - low
    else:
        expected, measured = 0.0, record["quality"]["value"]
        t = float(stats.t.ppf((1 + CHANCE) / 2, count - 2))
        limit = t / math.sqrt(count - 2 + t * t)
    return _row(check, record, expected, measured, limit)


# ------------------------------------------------------------------ rows


def _beside(record: Record, records: Sequence[Record], method: str) -> Record | None:
    """The record of another method with the same key, model, task, seed and trial."""
    names = ("model", "task", "seed", "trial")
    paths = {**KEYS, **{name: f"cell.{name}" for name in names}}
    others = (other for other in records if other["cell"]["method"] == method)
    same = (other for other in others if not differing(record, other, paths))
    return next(same, None)


def _exact(check: str, record: Record, expected: float, measured: float | None) -> Row:
    why = "the record does not hold the figure" if measured is None else None
    return _row(check, record, expected, measured, 0.0, why=why)


def _row(
    check: str,
    record: Record | None,
    expected: float | None = None,
    measured: float | None = None,
    limit: float | None = None,
    unit: float | None = None,
    why: str | None = None,
) -> Row:
    """A row; the error is relative to `unit`, where there is one. Without a measured value nothing
    was checked."""
    error = None if measured is None or expected is None else abs(measured - expected)
    error = error if error is None or unit is None else error / unit
    return {
        "check": check,
        **{name: value(record or {}, f"cell.{name}") for name in ("model", "task", "seed")},
        **{"expected": expected, "measured": measured, "error": error, "limit": limit},
        "passed": "not_run" if error is None or limit is None else bool(error <= limit),
        "key": value(record or {}, "key.short"),
        "why": why,
    }


def _short(cell: object) -> object:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return f"{cell:.4g}" if isinstance(cell, float) else cell
