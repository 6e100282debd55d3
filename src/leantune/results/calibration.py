"""What the control cells say of the meter: `calibration.csv`, a row per check, a pure function of
the records.

A control holds a known quantity (64 MiB, 200 ms, no training, guesses, a leaked label), so the
difference between what is expected and what was measured is the suite's own error. A check without
records is `not_run`, never passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from leantune.files.record import value
from leantune.files.text import text_table
from leantune.metrics.stats import CLASS_SCORES
from leantune.results.comparable import KEY, Entry, Record, Row
from leantune.results.leaderboard import measured_over_predicted

COLUMNS = [
    "check",
    "model",
    "task",
    "expected",
    "measured",
    "error",
    "limit",
    "passed",
    "key",
    "seed",
    "why",
]
METHODS = ("allocate_64mib", "sleep", "train_nothing", "random")
LEAK = "leak"  # the task whose texts hold their labels
BALLAST_BYTES = 2**26
SLEEP_SECONDS = 0.2
CHANCE = 0.99  # of the scores that chance gives lie within the limit
PREDICTION = "measured_over_predicted"
CHECKS = (
    "allocate_64mib_tensors",
    "allocate_64mib_cuda",
    "sleep",
    "train_nothing_parameters",
    "train_nothing_stored",
    "train_nothing_score",
    "random",
    LEAK,
    PREDICTION,
)
Limits = Mapping[
    str, float
]  # `limit`: relative error of the memory figures; `sleep_limit`: that of the slept seconds


def rows(entries: Sequence[Entry], limits: Limits) -> list[Row]:
    """A row per check and control cell, in the order of `CHECKS`; `passed` is true, false or
    `not_run`.

    `error` is relative to what is expected, and absolute where 0 or a score is expected. Of
    `measured_over_predicted` there is one row, for the record that is furthest off. Only records
    that are `ok` and not stale count.
    """
    records = [
        e.record
        for e in sorted(entries, key=lambda e: e.file)
        if e.status == "ok" and e.record is not None
    ]
    found = list(_found(records, limits))
    missing = sorted(set(CHECKS) - {row["check"] for row in found})
    found += [_row(check, None, why="no record of this control") for check in missing]
    return sorted(found, key=lambda row: CHECKS.index(row["check"]))


def failed(found: Sequence[Row]) -> list[Row]:
    """The rows of the checks that ran and did not pass."""
    return [row for row in found if row["passed"] is False]


def table(found: Sequence[Row]) -> str:
    """The rows as people read them."""
    columns = COLUMNS[:8]
    return text_table(columns, ([_short(row[column]) for column in columns] for row in found))


def without_controls(entries: Sequence[Entry]) -> list[Entry]:
    """The entries without the controls of this module, nor `head` where it only stands beside them."""
    methods: dict[tuple[str, ...], set[str]] = {}
    for entry in entries:
        methods.setdefault(_place(entry), set()).add(_method(entry))
    return [
        entry
        for entry in entries
        if _method(entry) not in METHODS
        and LEAK not in _place(entry)
        and not (
            methods[_place(entry)] & {*METHODS} and methods[_place(entry)] <= {*METHODS, "head"}
        )
    ]


def _place(entry: Entry) -> tuple[str, ...]:
    """Key, model and task, also of a cell without a record:
    <key>/<model>/<task>/<method>/<seed>.json."""
    return tuple(entry.file.split("/")[:3])


def _method(entry: Entry) -> str:
    return entry.file.split("/")[-2] if "/" in entry.file else ""


def _found(records: Sequence[Record], limits: Limits) -> Iterator[Row]:
    checks: dict[str, Callable[[Record, Sequence[Record], Limits], Iterator[Row]]] = {
        "allocate_64mib": _allocate,
        "sleep": _sleep,
        "train_nothing": _train_nothing,
        "random": _random,
    }
    for record in records:
        check = checks.get(record["cell"]["method"])
        if record["cell"]["task"] == LEAK:
            if record["cell"]["method"] in ("full", "tfidf"):
                yield _exact(LEAK, record, 1.0, value(record, "quality.value"))
        elif check is not None:
            yield from check(record, records, limits)
    yield from _prediction(records, limits)


# ------------------------------------------------------------------ checks


def _allocate(record: Record, records: Sequence[Record], limits: Limits) -> Iterator[Row]:
    """Bytes above `head`'s peak: exact for tensors, within the limit for what a GPU's allocator
    reports."""
    for kind, path, limit in (
        ("tensors", "memory.tensors.peak_bytes", 0.0),
        ("cuda", "memory.cuda.allocated_peak_bytes", limits["limit"]),
    ):
        if value(record, path) is not None:
            yield _above_head(f"allocate_64mib_{kind}", record, records, path, BALLAST_BYTES, limit)


def _sleep(record: Record, records: Sequence[Record], limits: Limits) -> Iterator[Row]:
    path = "time.step_seconds_median"
    yield _above_head("sleep", record, records, path, SLEEP_SECONDS, limits["sleep_limit"])


def _above_head(
    check: str, record: Record, records: Sequence[Record], path: str, expected: float, limit: float
) -> Row:
    """The difference to the `head` cell that shares everything else, against what the control adds."""
    own, floor = value(record, path), value(_beside(record, records, "head") or {}, path)
    if own is None or floor is None:
        return _row(
            check,
            record,
            expected=expected,
            limit=limit,
            why="no record of 'head' beside it to compare with",
        )
    measured = own - floor
    return _row(check, record, expected, measured, abs(measured - expected) / expected, limit)


def _train_nothing(record: Record, records: Sequence[Record], limits: Limits) -> Iterator[Row]:
    """No trainable parameter, nothing to store (so the head was not trained either), and the
    untrained score."""
    yield _exact("train_nothing_parameters", record, 0, value(record, "parameters.trainable"))
    yield _exact("train_nothing_stored", record, 0, value(record, "size.checkpoint_bytes"))
    untrained = _beside(record, records, "zero_shot")
    if untrained is not None:
        expected, measured = (value(r, "quality.value") for r in (untrained, record))
        yield _exact("train_nothing_score", record, expected, measured)
    elif _are_classes(record):
        yield _chance("train_nothing_score", record)
    else:
        yield _row(
            "train_nothing_score",
            record,
            why="no record of 'zero_shot' beside it, and no chance level",
        )


def _random(record: Record, records: Sequence[Record], limits: Limits) -> Iterator[Row]:
    yield _chance("random", record)


def _prediction(records: Sequence[Record], limits: Limits) -> Iterator[Row]:
    ratios = [
        (ratio, record)
        for record in records
        if (ratio := measured_over_predicted(record)) is not None
    ]
    if ratios:
        ratio, worst = max(ratios, key=lambda found: abs(found[0] - 1))
        why = f"the worst of {len(ratios)} records: {worst['cell']['method']}"
        yield _row(PREDICTION, worst, 1.0, ratio, abs(ratio - 1), limits["limit"], why)


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
    return _row(check, record, expected, measured, abs(measured - expected), limit)


# ------------------------------------------------------------------ rows


def _beside(record: Record, records: Sequence[Record], method: str) -> Record | None:
    """The record of another method with the same key, model, task, seed and trial."""

    def place(r: Record) -> tuple:
        cell = r["cell"]
        return (
            *(r["key"][name] for name in KEY),
            *(cell[name] for name in ("model", "task", "seed", "trial")),
        )

    here = place(record)
    return next((r for r in records if r["cell"]["method"] == method and place(r) == here), None)


def _exact(check: str, record: Record, expected: float, measured: float | None) -> Row:
    if measured is None:
        return _row(
            check, record, expected=expected, limit=0.0, why="the record does not hold the figure"
        )
    return _row(check, record, expected, measured, abs(measured - expected), 0.0)


def _row(
    check: str,
    record: Record | None,
    expected: float | None = None,
    measured: float | None = None,
    error: float | None = None,
    limit: float | None = None,
    why: str | None = None,
) -> Row:
    """A row; without an error nothing was checked."""
    cell = record["cell"] if record is not None else {}
    return {
        "check": check,
        **{name: cell.get(name) for name in ("model", "task", "seed")},
        **{"expected": expected, "measured": measured, "error": error, "limit": limit},
        "passed": "not_run" if error is None or limit is None else bool(error <= limit),
        "key": record["key"]["short"] if record is not None else None,
        "why": why,
    }


def _short(cell: object) -> object:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return f"{cell:.4g}" if isinstance(cell, float) else cell
