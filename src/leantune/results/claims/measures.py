"""What a claim's measure may ask for: predictions at paper scale, and the records of a run.

Whatever is not there raises NotRun with the reason. Torch-free until something is predicted.
"""

from __future__ import annotations

import contextlib
import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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

COUNTS = ("total", "trainable", "head")  # of parameters; `trainable` leaves the head out
FIELDS = (
    *("peak_bytes", "reserved_bytes", "allocated_bytes", "optimizer_state_bytes", "flops_per_step"),
    *COUNTS,
    *BYTE_KINDS,
)
EXACT = (
    "bytes",
    "parameters",
    "flops_per_step",
    "share",
)  # how columns end that another run repeats


class NotRun(Exception):
    """What a claim needs has not been measured; the message says what is missing."""


def language(predictions: Predictions, records: Records) -> Language:
    """The functions that a measure may call, on these predictions and records."""
    functions: dict[str, Callable[..., Value]] = {
        "predicted": predictions.predicted,
        "recorded": records.recorded,
        "gain": records.gain,
        "agreement": records.agreement,
        "ratio": records.ratio,
    }
    return Language(
        functions, {"min_over_tasks": records.least, "max_over_tasks": records.greatest}
    )


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
        flags = {
            "--model": model,
            "--method": stack,
            "--batch": batch,
            "--seq": seq,
            "--dtype": dtype,
            "--head": head,
        }
        command = ["leantune", "predict"]
        command += [str(w) for pair in flags.items() if pair[1] is not None for w in pair]
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
            values = [[r["quality"]["value"] for r in found] for found in (one, two)]
            found = stats.paired_t(values[0], values[1], self.level)
            notes = (*notes, f"interval from {len(one)} seeds")
        else:
            known = ranking.example_difference(quality[0], quality[1], self.level)
            if known is None:
                raise NotRun(
                    f"one seed of '{a}' and '{b}' on '{task}', and their test predictions cannot be paired"
                )
            found = known
            notes = (
                *notes,
                f"interval from {len(quality[0]['predictions']):,} test examples of one seed",
            )
        low, high = sorted((sign * found.low, sign * found.high))
        return Value(sign * found.mean, low, high, notes, commands)

    def agreement(self, task: str, a: str, b: str, model: str | None = None) -> Value:
        """The share of test predictions that are equal, over all shared seeds."""
        (one, two), notes, commands = self._shared(task, [a, b], model)
        equal = total = 0
        for x, y in zip(one, two, strict=True):
            left, right = (value(r, "quality.predictions") or [] for r in (x, y))
            if not left or len(left) != len(right):
                raise NotRun(
                    f"the test predictions of '{a}' and '{b}' on '{task}' cannot be paired"
                )
            equal += sum(p == q for p, q in zip(left, right, strict=True))
            total += len(left)
        return Value(
            equal / total, notes=(*notes, f"{total:,} test predictions"), commands=commands
        )

    def least(self, evaluate: Callable[[str], Value], tasks: Sequence[str]) -> Value:
        """The smallest value over the tasks that have it; its intervals hold together (Bonferroni)."""
        return self._extreme(min, "least", evaluate, tasks)

    def greatest(self, evaluate: Callable[[str], Value], tasks: Sequence[str]) -> Value:
        """The largest value over the tasks that have it; its intervals hold together (Bonferroni)."""
        return self._extreme(max, "greatest", evaluate, tasks)

    def _extreme(
        self,
        pick: Callable[..., Any],
        word: str,
        evaluate: Callable[[str], Value],
        tasks: Sequence[str],
    ) -> Value:
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
        with self._at_level(1 - (1 - stats.LEVEL) / len(there)):
            found = {task: evaluate(task) for task in there}
        name = pick(there, key=lambda task: found[task].mean)
        chosen = found[name]
        notes = (*chosen.notes, f"{name} is the {word} of {len(there)} tasks ({', '.join(there)})")
        if missing:
            notes = (*notes, f"not measured on {', '.join(missing)}")
        commands = tuple(dict.fromkeys(c for task in there for c in found[task].commands))
        if all(value.exact for value in found.values()):
            return Value(chosen.mean, notes=notes, commands=commands)
        ends = [value.bounds for value in found.values()]
        return Value(
            chosen.mean,
            pick(low for low, _ in ends),
            pick(high for _, high in ends),
            notes,
            commands,
        )

    @contextlib.contextmanager
    def _at_level(self, level: float) -> Iterator[None]:
        before, self.level = self.level, level
        try:
            yield
        finally:
            self.level = before

    def _shared(
        self, task: str, methods: Sequence[str], model: str | None
    ) -> tuple[list[list[Record]], tuple[str, ...], tuple[str, ...]]:
        """The methods' records over their shared seeds, in the group that has most of these (then
        by name), a note that names it, and the commands of the lowest seed."""
        best: tuple[Group, list[dict[int, Record]], list[int]] | None = None
        for group in sorted(self._groups.get(task, ()), key=lambda group: (group.model, group.key)):
            if model is not None and model != group.model:
                continue
            found = [
                {record["cell"]["seed"]: record for record in group.ok.get(method, ())}
                for method in methods
            ]
            seeds = sorted(set.intersection(*map(set, found)))
            if seeds and (best is None or len(seeds) > len(best[2])):
                best = (group, found, seeds)
        if best is None:
            names = " and ".join(f"'{method}'" for method in methods)
            on = f"'{task}'" + (f" with '{model}'" if model else "")
            raise NotRun(f"no valid record of {names} on {on} with the same key and seed")
        group, found, seeds = best
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
        interval = stats.t_interval(values, self.level)
        if len(set(values)) == 1 and column.endswith(EXACT):
            return Value(values[0], notes=notes, commands=commands)
        if interval.low is None or interval.high is None:
            return Value(
                interval.mean, -math.inf, math.inf, (*notes, "one seed gives no interval"), commands
            )
        notes = (
            *notes,
            f"interval from {len(values)} {'rounds' if column == 'time_vs_full' else 'seeds'}",
        )
        return Value(interval.mean, interval.low, interval.high, notes, commands)


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
            f"'{column}' is no column; known: {known}, or a path of the record such as quality.value"
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
    starts = [interval["step"] for interval in intervals]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], steps], strict=True)]
    if not steps or any("flops_per_step" not in interval for interval in intervals):
        return None
    return float(
        sum(n * i["flops_per_step"] for n, i in zip(lengths, intervals, strict=True)) / steps
    )


# Columns that no table has: name to its value in a record, or None.
DERIVED: dict[str, Callable[[Record], float | None]] = {
    "flops_per_step": lambda record: value(record, "memory.tensors.flops_per_step"),
    "mean_flops_per_step": _mean_flops,
}
