"""The rows of the tables: pure functions of the records, the same for the same records in any
order.

`cells` has a row per record, `leaderboard` a row per method inside one comparability key,
`failures` a row per cell that has no usable result, and why. Missing numbers are None.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from leantune.files.record import BYTE_KINDS, value
from leantune.results.comparable import KEY, Entry, Group, Record, Row, groups
from leantune.results.ranking import Standing, standing

# cells.csv: column to the path of its value in the record.
CELLS = {
    "key": "key.short",
    **{field: f"key.{field}" for field in KEY},
    "phase": "phase",
    "reason": "reason",
    "quality_metric": "quality.metric",
    "quality": "quality.value",
    "steps_to_target": "quality.steps_to_target",
    "seconds_to_target": "quality.seconds_to_target",
    "peak_memory_bytes": "memory.peak_bytes",
    "peak_source": "memory.peak_source",
    "mean_peak_bytes": "memory.mean_peak_bytes",
    "tensors_peak_bytes": "memory.tensors.peak_bytes",
    "tensors_peak_phase": "memory.tensors.peak_phase",
    **{f"{kind}_bytes": f"memory.tensors.by_kind.{kind}" for kind in BYTE_KINDS},
    "cuda_peak_bytes": "memory.cuda.allocated_peak_bytes",
    "host_peak_bytes": "memory.host.peak_bytes",
    "predicted_peak_bytes": "memory.predicted.peak_bytes",
    "step_seconds_median": "time.step_seconds_median",
    "step_seconds_p95": "time.step_seconds_p95",
    "train_seconds_total": "time.train_seconds_total",
    "hook_seconds_total": "time.hook_seconds_total",
    "attach_seconds_cold": "time.attach_seconds_cold",
    "time_vs_full": "time.vs_full",
    "throttled_share": "time.clocks.throttled_share",
    "total_parameters": "parameters.total",
    "trainable_parameters": "parameters.trainable",
    "head_parameters": "parameters.head",
    "checkpoint_bytes": "size.checkpoint_bytes",
    "deployed_parameters": "size.deployed_parameters",
    "deployed_bytes": "size.deployed_bytes",
    "inference_tokens_per_second": "inference.tokens_per_second",
    "inference_peak_bytes": "inference.peak_bytes",
    "commit": "provenance.commit",
    "dirty": "provenance.dirty",
    "command": "provenance.command",
}
CELL_COLUMNS = [
    "key",
    "model",
    "task",
    "method",
    "seed",
    "trial",
    "status",
    *[c for c in CELLS if c != "key"],
]
CELL_COLUMNS.insert(CELL_COLUMNS.index("predicted_peak_bytes") + 1, "measured_over_predicted")
CELL_COLUMNS.insert(CELL_COLUMNS.index("seconds_to_target") + 1, "peak_to_target_bytes")
LEADERBOARD_COLUMNS = [
    *["key", "model", "task", "method", "status", "seeds", "tier"],
    *["quality_metric", "quality_mean", "quality_low", "quality_high"],
    *["peak_memory_bytes", "peak_source", "peak_vs_full", "mean_peak_bytes"],
    *["step_seconds_median", "time_vs_full"],
    *[
        "trainable_parameters",
        "checkpoint_bytes",
        "deployed_parameters",
        "inference_tokens_per_second",
    ],
    # The columns above are relied on by others; new ones go below.
    *[
        "higher_is_better",
        "tier_from",
        "failed_seeds",
        "train_seconds_total",
        "attach_seconds_cold",
    ],
    *["seconds_to_target", "deployed_bytes", "inference_peak_bytes", "measured_over_predicted"],
    *["interval_from", "noise_floor", "steps_to_target", "peak_to_target_bytes"],
    *["hook_seconds_total", "tuning_trials", "tuned_settings", "tuning_at_edge"],
]
# Not compared where a group was merged across machines.
TIMES = (
    *(
        "step_seconds_median",
        "time_vs_full",
        "train_seconds_total",
        "hook_seconds_total",
        "attach_seconds_cold",
    ),
    *("seconds_to_target", "inference_tokens_per_second"),
)
FAILURE_COLUMNS = [
    "status",
    "key",
    "model",
    "task",
    "method",
    "seed",
    "trial",
    "phase",
    "reason",
    "file",
]


@dataclass(frozen=True)
class Board:
    """One group, how its methods stand, and its leaderboard rows, best first."""

    group: Group
    standing: Standing
    rows: list[Row]


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
    if steps is None:
        return None
    by_interval = value(record, "memory.peak_source") == "tensors-cpu" and value(
        record, "memory.tensors.intervals"
    )
    if not by_interval:
        return value(record, "memory.peak_bytes")
    return max((part["peak_bytes"] for part in by_interval if part["step"] < steps), default=None)


# ------------------------------------------------------------------ rows


def cells(entries: Sequence[Entry]) -> list[Row]:
    """A row per readable record, tuning trials and stale ones included."""
    rows = []
    for entry in entries:
        if entry.record is None:
            continue
        cell = entry.record["cell"]
        row = {column: value(entry.record, path) for column, path in CELLS.items()}
        row["measured_over_predicted"] = measured_over_predicted(entry.record)
        row["peak_to_target_bytes"] = peak_to_target_bytes(entry.record)
        names = {"model": cell["model"], "task": cell["task"], "method": cell["method"]}
        rows.append(
            {**row, **names, "seed": cell["seed"], "trial": cell["trial"], "status": entry.status}
        )
    return sorted(rows, key=_order)


def failures(entries: Sequence[Entry]) -> list[Row]:
    """A row per cell without a result that counts: failed, unsupported, stale, damaged or missing."""
    rows = []
    for entry in entries:
        if entry.status == "ok":
            continue
        if entry.record is not None:
            cell = entry.record["cell"]
            row = {
                "key": entry.record["key"]["short"],
                **{name: cell[name] for name in ("model", "task", "method", "seed", "trial")},
                "phase": entry.record.get("phase"),
                "reason": entry.record.get("reason"),
            }
        else:
            # An expected file's name says which cell it is:
            # <key>/<model>/<task>/<method>/<seed>.json
            names = entry.file.removesuffix(".json").split("/")
            row = (
                dict(zip(("key", "model", "task", "method", "seed"), names, strict=False))
                if len(names) == 5
                else {}
            )
            row["reason"] = entry.problem
        if entry.status == "stale":
            row["reason"] = "the method's, task's or model's files changed since this was measured"
        rows.append({**row, "status": entry.status, "file": entry.file})
    return sorted(rows, key=lambda row: (_order(row), row["file"]))


def boards(entries: Sequence[Entry], across: Sequence[str] = ()) -> list[Board]:
    """Every set of methods that may be ranked together, ranked. `across`: key fields to merge
    groups over."""
    return [_board(group) for group in groups(entries, across)]


def leaderboard(entries: Sequence[Entry], across: Sequence[str] = ()) -> list[Row]:
    """A row per method inside one key, model and task: aggregated over seeds, ranked in tiers, best
    first."""
    return ranked(boards(entries, across))


def ranked(found: Iterable[Board]) -> list[Row]:
    """The leaderboard's rows of boards, in its order."""
    return sorted((row for board in found for row in board.rows), key=_leaderboard_order)


def _board(group: Group) -> Board:
    ok, stand = group.ok, standing(group)
    numbers = {method: aggregate(found) for method, found in ok.items()}
    full = numbers.get("full", {})
    rows = []
    for method, entries in group.methods.items():
        low, high, interval_from = (
            stand.interval(method) if method in stand.scores else (None, None, None)
        )
        row = {
            **{"key": group.key, "model": group.model, "task": group.task, "method": method},
            "status": "ok" if method in ok else min(entry.status for entry in entries),
            "seeds": len({record["cell"]["seed"] for record in ok.get(method, ())}),
            "failed_seeds": len(entries) - len(ok.get(method, ())),
            "tier": stand.tiers.get(method),
            **numbers.get(method, {}),
            "quality_mean": stand.mean(method) if method in stand.scores else None,
            **{"quality_low": low, "quality_high": high, "interval_from": interval_from},
        }
        if method in stand.scores:
            row["tier_from"] = "seeds" if len(stand.scores[method]) > 1 else "examples"
            row["noise_floor"] = stand.noise[0]
        source, peak, of_full = (
            row.get("peak_source"),
            row.get("peak_memory_bytes"),
            full.get("peak_memory_bytes"),
        )
        if source and source == full.get("peak_source") and "/" not in source and peak and of_full:
            row["peak_vs_full"] = peak / of_full
        if not group.one_machine:
            row.update(dict.fromkeys(TIMES))
        rows.append(row)
    return Board(group, stand, sorted(rows, key=_leaderboard_order))


def aggregate(records: Sequence[Record]) -> Row:
    """What several seeds of one method say together, quality apart. The peak is the worst one,
    times are medians."""

    def reduced(
        numbers: Sequence[float | None], how: Callable[[list[float]], float]
    ) -> float | None:
        return (
            how(found) if (found := [number for number in numbers if number is not None]) else None
        )

    def numbers(path: str) -> list[float | None]:
        return [value(record, path) for record in records]

    def at_target(
        numbers: Sequence[float | None], how: Callable[[list[float]], float]
    ) -> float | None:
        return None if None in numbers else reduced(numbers, how)  # every seed has to reach it

    sources = sorted({s for r in records if (s := value(r, "memory.peak_source"))})
    return {
        "quality_metric": value(records[0], "quality.metric"),
        "higher_is_better": value(records[0], "quality.higher_is_better"),
        "peak_memory_bytes": reduced(numbers("memory.peak_bytes"), max),
        "peak_source": "/".join(sources) or None,
        "mean_peak_bytes": reduced(numbers("memory.mean_peak_bytes"), max),
        "step_seconds_median": reduced(numbers("time.step_seconds_median"), statistics.median),
        "time_vs_full": reduced(numbers("time.vs_full"), statistics.median),
        "train_seconds_total": reduced(numbers("time.train_seconds_total"), statistics.median),
        "hook_seconds_total": reduced(numbers("time.hook_seconds_total"), statistics.median),
        "attach_seconds_cold": reduced(numbers("time.attach_seconds_cold"), max),
        "steps_to_target": at_target(numbers("quality.steps_to_target"), statistics.median),
        "seconds_to_target": at_target(numbers("quality.seconds_to_target"), statistics.median),
        "peak_to_target_bytes": at_target(
            [peak_to_target_bytes(record) for record in records], max
        ),
        "trainable_parameters": reduced(numbers("parameters.trainable"), max),
        "checkpoint_bytes": reduced(numbers("size.checkpoint_bytes"), max),
        "deployed_parameters": reduced(numbers("size.deployed_parameters"), max),
        "deployed_bytes": reduced(numbers("size.deployed_bytes"), max),
        "inference_tokens_per_second": reduced(
            numbers("inference.tokens_per_second"), statistics.median
        ),
        "inference_peak_bytes": reduced(numbers("inference.peak_bytes"), max),
        "measured_over_predicted": reduced(
            [measured_over_predicted(record) for record in records], max
        ),
        **_tuning(records[0]),
    }


def _tuning(record: Record) -> Row:
    """How many trials the method or its parts had, what they chose in place of the defaults, and
    which of the chosen values were the smallest or largest tried. One choice serves every seed."""
    choices = list((record["tuning"] or {}).values())
    settings = {key: setting for one in choices for key, setting in one["settings"].items()}
    return {
        "tuning_trials": sum(len(one["trials"]) for one in choices),
        "tuned_settings": " ".join(f"{key}={setting}" for key, setting in sorted(settings.items()))
        or None,
        "tuning_at_edge": " ".join(sorted(key for one in choices for key in one["at_edge"]))
        or None,
    }


# ------------------------------------------------------------------ order


def _order(row: Row) -> tuple:
    names = [str(row.get(name) or "") for name in ("model", "task", "key", "method")]
    return (*names, int(row.get("seed") or 0), -1 if row.get("trial") is None else row["trial"])


def _leaderboard_order(row: Row) -> tuple:
    quality = row.get("quality_mean")
    best_first = math.inf if quality is None else (-quality if row["higher_is_better"] else quality)
    return (row["model"], row["task"], row["key"], best_first, row["method"])
