"""What a claim's measure may ask for: predictions at paper scale, and the records of a run.

Whatever is not there raises NotRun with the reason. Torch-free until something is predicted.
"""

from __future__ import annotations

import functools
import math
import operator
import shlex
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.files.record import BYTE_KINDS, value
from leantune.metrics import stats
from leantune.prediction.ask import Ask, answer
from leantune.results import leaderboard, ranking
from leantune.results.claims.expressions import Language, Value
from leantune.results.columns import names
from leantune.results.comparable import Entry, Group, Record, Row, groups
from leantune.spec.settings import parse_settings

FIELDS = (
    *("peak_bytes", "reserved_bytes", "allocated_bytes", "optimizer_state_bytes", "flops_per_step"),
    *("total", "trainable", "head"),  # parameters; `trainable` leaves the head out
    *BYTE_KINDS,
)
# how columns end that another run repeats
EXACT = ("bytes", "parameters", "flops_per_step", "share")


class NotRun(Exception):
    """What a claim needs has not been measured; the message says what is missing."""


def language(predictions: Predictions, records: Records) -> Language:
    """The functions that a measure may call, on these predictions and records."""
    called: dict[str, Callable[..., Value]] = {
        "predicted": predictions.predicted,
        "recorded": records.recorded,
        "gain": records.gain,
        "agreement": records.agreement,
        "ratio": records.ratio,
    }
    reducers = {
        "min_over_tasks": functools.partial(records.extreme, min, "least"),
        "max_over_tasks": functools.partial(records.extreme, max, "greatest"),
    }
    return Language(called, reducers)


# ------------------------------------------------------------------ predictions


class Predictions:
    """Predictions at paper scale, kept in a folder so that a second run makes none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, Row] = {}

    def predicted(
        self,
        model: str,
        stack: str,
        field: str,
        *,
        batch: int,
        seq: int,
        dtype: str = "fp32",
        head: str | None = None,
        set: str = "",
    ) -> Value:
        """One field of `leantune predict`: bytes, FLOPs or a parameter count. `set` holds
        METHOD.PARAM=VALUE words."""
        if field not in FIELDS:
            raise BadInput(
                f"predicted(...) has no field '{field}'; its fields: {', '.join(FIELDS)}"
            )
        words = set.split()
        ask = Ask(model, stack, batch, seq, None, head, dtype, parse_settings(words))
        if ask.hash not in self._rows:  # the hash also says which word is wrong
            self._rows[ask.hash] = answer(ask, self.folder)
        row = self._rows[ask.hash]
        if row["status"] != "ok":
            raise NotRun(row["reason"])
        command = ["leantune", "predict", "--model", model, "--method", stack]
        command += ["--batch", str(batch), "--seq", str(seq), "--dtype", dtype]
        command += ["--head", head] if head else []
        command += [word for setting in words for word in ("--set", setting)]
        numbers = {**row, **row["parameters"], **row["by_kind"]}
        return Value(numbers[field], commands=(shlex.join(command),))


# ------------------------------------------------------------------ records


class Records:
    """The records of a run as the leaderboard groups them: only those that may be compared, `ok`
    and not stale."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.level = stats.LEVEL
        self._groups: dict[str, list[Group]] = defaultdict(list)
        for group in groups(entries):
            self._groups[group.task].append(group)

    def recorded(self, task: str, method: str, column: str, model: str | None = None) -> Value:
        """A column of the leaderboard, or a dotted path of the record, over the seeds."""
        (one,), notes, commands = self._shared(task, [method], model)
        return self._sample(_numbers(one, column), column, notes, commands)

    def ratio(self, task: str, a: str, b: str, column: str, model: str | None = None) -> Value:
        """Column of `a` over that of `b`, seed by seed; of `time_vs_full` round by round, as every
        seed has the same."""
        (one, two), notes, commands = self._shared(task, [a, b], model)
        pairs = list(zip(_numbers(one, column), _numbers(two, column), strict=True))
        if any(y == 0 for _, y in pairs):
            raise NotRun(f"'{column}' of '{b}' on '{task}' is 0")
        return self._sample([x / y for x, y in pairs], column, notes, commands)

    def gain(self, task: str, a: str, b: str, model: str | None = None) -> Value:
        """How much better `a` scores than `b`, positive where it does, with its interval: from
        seeds (paired t), or with one shared seed from the test examples (paired bootstrap)."""
        (one, two), notes, commands = self._shared(task, [a, b], model)
        quality = [record["quality"] for record in (*one, *two)]
        if any(q is None for q in quality):
            raise NotRun(f"a record of '{a}' or '{b}' on '{task}' has no quality")
        sign = 1 if quality[0]["higher_is_better"] else -1
        if len(one) > 1:
            scores = [[record["quality"]["value"] for record in found] for found in (one, two)]
            found, sample = stats.paired_t(scores[0], scores[1], self.level), f"{len(one)} seeds"
        else:
            paired = ranking.example_difference(quality[0], quality[1], self.level)
            if paired is None:
                raise NotRun(
                    f"one seed of '{a}' and '{b}' on '{task}', and their test predictions cannot "
                    "be paired"
                )
            count = len(quality[0]["predictions"])
            found, sample = paired, f"{count:,} test examples of one seed"
        low, high = sorted((sign * found.low, sign * found.high))
        return Value(sign * found.mean, low, high, (*notes, f"interval from {sample}"), commands)

    def agreement(self, task: str, a: str, b: str, model: str | None = None) -> Value:
        """The share of test predictions that are equal, over all shared seeds."""
        (one, two), notes, commands = self._shared(task, [a, b], model)
        pairs: list[tuple[Any, Any]] = []
        for records in zip(one, two, strict=True):
            left, right = (value(record, "quality.predictions") or [] for record in records)
            if not left or len(left) != len(right):
                raise NotRun(
                    f"the test predictions of '{a}' and '{b}' on '{task}' cannot be paired"
                )
            pairs += zip(left, right, strict=True)
        equal = sum(left == right for left, right in pairs)
        return Value(
            equal / len(pairs),
            notes=(*notes, f"{len(pairs):,} test predictions"),
            commands=commands,
        )

    def extreme(
        self,
        pick: Callable[..., Any],
        word: str,
        evaluate: Callable[[str], Value],
        tasks: Sequence[str],
    ) -> Value:
        """The smallest or largest value over the tasks that have it (`pick` is min or max); its
        intervals hold together (Bonferroni)."""
        asked = list(tasks) or sorted(self._groups)
        missing = {}
        for task in asked:
            try:
                evaluate(task)
            except NotRun as error:
                missing[task] = str(error)
        there = [task for task in asked if task not in missing]
        if not there:
            raise NotRun("; ".join(dict.fromkeys(missing.values())) or "there are no records")
        self.level = 1 - (1 - stats.LEVEL) / len(there)
        found = {task: evaluate(task) for task in there}
        self.level = stats.LEVEL  # reducers do not nest
        name = pick(there, key=lambda task: found[task].mean)
        notes = [
            *found[name].notes,
            f"{name} is the {word} of {len(there)} tasks ({', '.join(there)})",
        ]
        notes += [f"not measured on {', '.join(missing)}"] if missing else []
        commands = tuple(dict.fromkeys(c for task in there for c in found[task].commands))
        low, high = map(pick, zip(*(value.bounds for value in found.values()), strict=True))
        if all(value.exact for value in found.values()):
            low = high = None
        return Value(found[name].mean, low, high, tuple(notes), commands)

    def _shared(
        self, task: str, methods: Sequence[str], model: str | None
    ) -> tuple[list[list[Record]], tuple[str, ...], tuple[str, ...]]:
        """The methods' records over their shared seeds, in the group that has most of these (then
        by name), a note that names it, and the commands of the lowest seed."""
        candidates = []
        for group in sorted(self._groups.get(task, ()), key=lambda group: (group.model, group.key)):
            found = [
                {record["cell"]["seed"]: record for record in group.ok.get(method, ())}
                for method in methods
            ]
            seeds = sorted(set.intersection(*map(set, found)))
            if seeds and model in (None, group.model):
                candidates.append((group, found, seeds))
        if not candidates:
            names = " and ".join(f"'{method}'" for method in methods)
            on = f"'{task}'" + (f" with '{model}'" if model else "")
            raise NotRun(f"no valid record of {names} on {on} with the same key and seed")
        group, found, seeds = max(candidates, key=lambda one: len(one[2]))
        chosen = [[records[seed] for seed in seeds] for records in found]
        commands = tuple(records[0]["provenance"]["command"] for records in chosen)
        return chosen, (f"{task} with {group.model}, {group.key}",), commands

    def _sample(
        self,
        values: Sequence[float],
        column: str,
        notes: tuple[str, ...],
        commands: tuple[str, ...],
    ) -> Value:
        """The values of seeds, or of rounds, as one: exact where every run repeats it, else with
        Student's interval; unbounded for one."""
        if len(set(values)) == 1 and column.endswith(EXACT):
            return Value(values[0], notes=notes, commands=commands)
        found = stats.t_interval(values, self.level)
        low, high, note = -math.inf, math.inf, "one seed gives no interval"
        if found.low is not None and found.high is not None:
            unit = "rounds" if column == "time_vs_full" else "seeds"
            low, high, note = found.low, found.high, f"interval from {len(values)} {unit}"
        return Value(found.mean, low, high, (*notes, note), commands)


def _numbers(records: Sequence[Record], column: str) -> list[float]:
    """A column of each record; of `time_vs_full` what each round said, which stands in all of them
    alike."""
    if column == "time_vs_full":
        return list(value(records[0], "time.vs_full_rounds") or [_number(records[0], column)])
    return [_number(record, column) for record in records]


def _number(record: Record, column: str) -> float:
    if column in DERIVED:
        number = DERIVED[column](record)
    elif "." in column:
        number = value(record, column)
    elif column in names("leaderboard"):
        number = leaderboard.aggregate([record]).get(column)
    else:
        known = ", ".join([*DERIVED, *names("leaderboard")])
        raise BadInput(
            f"'{column}' is no column; known: {known}, "
            "or a path of the record such as quality.value"
        )
    if number is None:
        cell = record["cell"]
        raise NotRun(f"the record of '{cell['method']}' on '{cell['task']}' holds no {column}")
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise BadInput(f"'{column}' is {number!r}, which is no number")
    return number


def _mean_flops(record: Record) -> float | None:
    """FLOPs of a step, each interval of the method's structure weighed by its steps."""
    intervals, steps = value(record, "memory.tensors.intervals"), record["key"]["steps"]
    if not intervals:
        return value(record, "memory.tensors.flops_per_step")
    if not steps or any("flops_per_step" not in interval for interval in intervals):
        return None
    ends = [*(interval["step"] for interval in intervals[1:]), steps]
    lengths = [end - one["step"] for one, end in zip(intervals, ends, strict=True)]
    flops = [interval["flops_per_step"] for interval in intervals]
    return sum(map(operator.mul, lengths, flops)) / steps


# Columns that no table has: name to its value in a record, or None.
DERIVED: dict[str, Callable[[Record], float | None]] = {
    "flops_per_step": lambda record: value(record, "memory.tensors.flops_per_step"),
    "mean_flops_per_step": _mean_flops,
}
