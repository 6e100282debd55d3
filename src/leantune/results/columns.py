"""The columns of every table, as data: `columns.csv` has a line for each.

A new number is one line there. With a `path` it stands in cells.csv, with a word for `seeds` also
in leaderboard.csv, and the page of the report shows both. A name such as `claims/measured` is the
column `measured` of that table alone.
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leantune.files.record import Record, value
from leantune.files.text import read_csv

# The columns of each CSV file, in the order that others rely on; new ones come after these.
ORDER = {
    "cells": "key model task method seed trial status hardware device dtype batch length steps "
    "checkpointing torch samples measurement phase reason quality_metric quality steps_to_target "
    "seconds_to_target peak_to_target_bytes peak_memory_bytes peak_source mean_peak_bytes "
    "tensors_peak_bytes tensors_peak_phase weights_bytes buffers_bytes gradients_bytes "
    "optimizer_bytes activations_bytes temporaries_bytes inputs_bytes cuda_peak_bytes "
    "host_peak_bytes predicted_peak_bytes measured_over_predicted step_seconds_median "
    "step_seconds_p95 train_seconds_total hook_seconds_total attach_seconds_cold time_vs_full "
    "throttled_share total_parameters trainable_parameters head_parameters checkpoint_bytes "
    "deployed_parameters deployed_bytes inference_tokens_per_second inference_peak_bytes "
    "commit dirty command",
    "leaderboard": "key model task method status seeds tier quality_metric quality_mean "
    "quality_low quality_high peak_memory_bytes peak_source peak_vs_full mean_peak_bytes "
    "step_seconds_median time_vs_full trainable_parameters checkpoint_bytes deployed_parameters "
    "inference_tokens_per_second higher_is_better tier_from failed_seeds train_seconds_total "
    "attach_seconds_cold seconds_to_target deployed_bytes inference_peak_bytes "
    "measured_over_predicted interval_from noise_floor steps_to_target peak_to_target_bytes "
    "hook_seconds_total tuning_trials tuned_settings tuning_at_edge",
    "failures": "status key model task method seed trial phase reason file",
    "decisions": "key model task quality_metric methods seeds noise_floor noise_from best "
    "runner_up gap difference_low difference_high difference_from tier_1 more_seeds says "
    "not_ranked_with",
    "overall": "model method tasks mean iqm peak_vs_full task_names left_out",
    "pareto": "key model task method quality_metric quality_mean noise_floor peak_memory_bytes "
    "peak_source step_seconds_median time_vs_full on_front dominated_by",
    "calibration": "check model task expected measured error limit passed key seed why",
    "budgets": "key model task budget_kind peak_source budget method quality_mean",
    "claims": "method paper claim published measured scope setting by_construction verdict why "
    "name source expected low high command",
}


def measured_over_predicted(record: Record) -> float | None:
    """The peak that was measured over the one predicted before the cell started, of the same kind:
    CUDA's allocated bytes over the simulated allocator's, else the attached model's exact bytes
    over the declared one's."""
    on_gpu = value(record, "memory.cuda.allocated_peak_bytes")
    measured = on_gpu or value(record, "memory.tensors.peak_bytes")
    predicted = value(record, f"memory.predicted.{'allocated' if on_gpu else 'peak'}_bytes")
    return measured / predicted if measured and predicted else None


def peak_to_target_bytes(record: Record) -> int | None:
    """The peak over the part of the run until the target was reached; None where it was not.

    A method whose memory changed has a peak for each interval, told by the step it begins after;
    CUDA's counter and all other methods have one peak for the whole run.
    """
    steps = value(record, "quality.steps_to_target")
    intervals = value(record, "memory.tensors.intervals")
    if steps is None or not intervals or value(record, "memory.peak_source") != "tensors-cpu":
        return None if steps is None else value(record, "memory.peak_bytes")
    return max((part["peak_bytes"] for part in intervals if part["step"] < steps), default=None)


def _choices(record: Record) -> list[Any]:
    """What tuning chose for the method or its parts. One choice serves every seed."""
    return list((record["tuning"] or {}).values())


def _tuned_settings(record: Record) -> str | None:
    chosen = {key: to for one in _choices(record) for key, to in one["settings"].items()}
    return " ".join(f"{key}={to}" for key, to in sorted(chosen.items())) or None


# Numbers that follow from several places of a record, by the name that `path` gives.
DERIVED: dict[str, Callable[[Record], Any]] = {
    "measured_over_predicted": measured_over_predicted,
    "peak_to_target_bytes": peak_to_target_bytes,
    "tuning_trials": lambda record: sum(len(one["trials"]) for one in _choices(record)),
    "tuned_settings": _tuned_settings,
    "tuning_at_edge": lambda record: (
        " ".join(sorted(key for one in _choices(record) for key in one["at_edge"])) or None
    ),
}


def _of_known(how: Callable[[Any], Any]) -> Callable[[Sequence[Any]], Any]:
    """`how` of the values that are there, None where there is none."""
    return lambda values: how(found) if (found := [v for v in values if v is not None]) else None


# How the values of several seeds become one, by the word under `seeds`. `of all`: None unless
# every seed has a value.
JOINED: dict[str, Callable[[Sequence[Any]], Any]] = {
    "first": lambda values: values[0],
    "largest": _of_known(max),
    "median": _of_known(statistics.median),
    "largest of all": lambda values: None if None in values else max(values),
    "median of all": lambda values: None if None in values else statistics.median(values),
    "names": lambda values: "/".join(sorted({name for name in values if name})) or None,
}


@dataclass(frozen=True)
class Column:
    """A column of a table, and what people are told of it."""

    name: str
    path: str  # of its value in a record, dotted, or a name of DERIVED; empty: from elsewhere
    seeds: str  # a name of JOINED; empty: the leaderboard has it not, or from elsewhere
    shown: str  # a unit or number of digits of report.views.FORMATS; wide: a text that may break
    title: str
    help: str

    @property
    def timed(self) -> bool:
        """Whether it depends on how fast the machine is."""
        return self.path.startswith("time.") or "second" in self.path

    def value(self, record: Record) -> Any:
        """Its value in a record, None where the record has none."""
        found = DERIVED.get(self.path)
        return value(record, self.path) if found is None else found(record)

    def joined(self, records: Sequence[Record]) -> Any:
        """What the records of several seeds say together."""
        return JOINED[self.seeds]([self.value(record) for record in records])


@functools.cache
def known() -> dict[str, Column]:
    """Every column by its name in `columns.csv`, which may begin with its table."""
    lines = read_csv(Path(__file__).with_name("columns.csv"))
    return {
        line["name"]: Column(**line | {"name": line["name"].rpartition("/")[2]}) for line in lines
    }


def column(name: str, *tables: str) -> Column:
    """The column of that name as it is in the first of the tables that has one of its own."""
    own = [f"{table}/{name}" for table in tables if f"{table}/{name}" in known()]
    return known()[own[0] if own else name]


def of_table(table: str) -> list[Column]:
    """The columns of a CSV file, in its order."""
    ordered = ORDER[table].split()
    measured = [name for name, one in known().items() if one.path and "/" not in name]
    if table == "leaderboard":
        measured = [name for name in measured if known()[name].seeds]
    new = [name for name in measured if table in ("cells", "leaderboard") and name not in ordered]
    return [column(name, table) for name in (*ordered, *new)]


def names(table: str) -> list[str]:
    """The header of a CSV file."""
    return [one.name for one in of_table(table)]
