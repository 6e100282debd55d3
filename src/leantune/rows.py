"""The rows of the tables: pure functions of the records, the same for the same records in any order.

`cells` has a row per record, `leaderboard` a row per method inside one comparability key, `failures` a row per
cell that has no usable result, and why. Missing numbers are None.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leantune import stats
from leantune.errors import BadInput
from leantune.record import read_record

Row = dict[str, Any]
Record = Mapping[str, Any]

KEY = ("hardware", "device", "dtype", "batch", "length", "steps", "checkpointing", "torch", "samples", "measurement")
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
    **{
        f"{kind}_bytes": f"memory.tensors.by_kind.{kind}"
        for kind in ("weights", "buffers", "gradients", "optimizer", "activations", "temporaries", "inputs")
    },
    "cuda_peak_bytes": "memory.cuda.allocated_peak_bytes",
    "host_peak_bytes": "memory.host.peak_bytes",
    "predicted_peak_bytes": "memory.predicted.peak_bytes",
    "step_seconds_median": "time.step_seconds_median",
    "step_seconds_p95": "time.step_seconds_p95",
    "train_seconds_total": "time.train_seconds_total",
    "attach_seconds_cold": "time.attach_seconds_cold",
    "time_vs_full": "time.vs_full",
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
CELL_COLUMNS = ["key", "model", "task", "method", "seed", "trial", "status", *[c for c in CELLS if c != "key"]]
CELL_COLUMNS.insert(CELL_COLUMNS.index("predicted_peak_bytes") + 1, "measured_over_predicted")
LEADERBOARD_COLUMNS = [
    *["key", "model", "task", "method", "status", "seeds", "tier"],
    *["quality_metric", "quality_mean", "quality_low", "quality_high"],
    *["peak_memory_bytes", "peak_source", "peak_vs_full", "mean_peak_bytes"],
    *["step_seconds_median", "time_vs_full"],
    *["trainable_parameters", "checkpoint_bytes", "deployed_parameters", "inference_tokens_per_second"],
    # The columns above are relied on by others; new ones go below.
    *["higher_is_better", "tier_from", "failed_seeds", "train_seconds_total", "attach_seconds_cold"],
    *["seconds_to_target", "deployed_bytes", "inference_peak_bytes", "measured_over_predicted"],
]
FAILURE_COLUMNS = ["status", "key", "model", "task", "method", "seed", "trial", "phase", "reason", "file"]


@dataclass(frozen=True)
class Entry:
    """One place where a record is or should be. `record` is None when it is `damaged` or `missing`."""

    file: str  # relative to the records' folder, with forward slashes
    status: str  # the record's own, or stale | damaged | missing
    record: Record | None
    problem: str | None = None


def value(record: Record, path: str) -> Any:
    """The value at a dotted path, None where any part of it is absent or null."""
    found: Any = record
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def measured_over_predicted(record: Record) -> float | None:
    """The peak that was measured over the one predicted before the cell started, of the same kind: CUDA's allocated
    bytes over the simulated allocator's, else the attached model's exact bytes over the declared one's."""
    on_gpu = value(record, "memory.cuda.allocated_peak_bytes")
    measured = on_gpu or value(record, "memory.tensors.peak_bytes")
    predicted = value(record, f"memory.predicted.{'allocated' if on_gpu else 'peak'}_bytes")
    return measured / predicted if measured and predicted else None


def _place(record: Record) -> str:
    cell = record["cell"]
    return f"{record['key']['short']}/{cell['model']}/{cell['task']}/{cell['method']}/{cell['seed']}.json"


def read_entries(
    records: Path, expected: Iterable[str] = (), is_stale: Callable[[Record], bool] = lambda _: False
) -> list[Entry]:
    """Every record below the folder, sorted by file, and the `expected` files (relative) that are not there."""
    entries = []
    for path in sorted(records.rglob("*.json")):
        file = path.relative_to(records).as_posix()
        try:
            record = read_record(path)
            if _place(record) != file:  # a copied or renamed record would count one seed twice
                raise BadInput(f"{path}: its content belongs at {_place(record)}; move or delete it")
        except BadInput as error:
            entries.append(Entry(file, "damaged", None, str(error).replace(str(path), file)))
        else:
            entries.append(Entry(file, "stale" if is_stale(record) else record["status"], record))
    present = {entry.file for entry in entries}
    missing = [Entry(file, "missing", None) for file in set(expected) - present]
    return sorted([*entries, *missing], key=lambda entry: entry.file)


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
        names = {"model": cell["model"], "task": cell["task"], "method": cell["method"]}
        rows.append({**row, **names, "seed": cell["seed"], "trial": cell["trial"], "status": entry.status})
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
            # An expected file's name says which cell it is: <key>/<model>/<task>/<method>/<seed>.json
            names = entry.file.removesuffix(".json").split("/")
            row = dict(zip(("key", "model", "task", "method", "seed"), names, strict=False)) if len(names) == 5 else {}
            row["reason"] = entry.problem
        if entry.status == "stale":
            row["reason"] = "the method's, task's or model's files changed since this was measured"
        rows.append({**row, "status": entry.status, "file": entry.file})
    return sorted(rows, key=lambda row: (_order(row), row["file"]))


def leaderboard(entries: Sequence[Entry]) -> list[Row]:
    """A row per method inside one key, model and task: aggregated over seeds, ranked in tiers, best first."""
    rows = []
    for group, methods in _groups(entries):
        ok = {method: sorted(found, key=lambda r: r["cell"]["seed"]) for method, found in _ok(methods).items()}
        tiers, tier_from = _tiers(ok)
        numbers = {method: aggregate(found) for method, found in ok.items()}
        full = numbers.get("full", {})
        for method, found in methods.items():
            row = {
                **dict(zip(("key", "model", "task"), group, strict=True)),
                "method": method,
                "status": "ok" if method in ok else min(e.status for e in found),
                "seeds": len(ok.get(method, ())),
                "failed_seeds": len(found) - len(ok.get(method, ())),
                "tier": tiers.get(method),
                "tier_from": tier_from.get(method),
                **numbers.get(method, {}),
            }
            if row.get("peak_source") and row["peak_source"] == full.get("peak_source"):
                row["peak_vs_full"] = row["peak_memory_bytes"] / full["peak_memory_bytes"]
            rows.append(row)
    return sorted(rows, key=_leaderboard_order)


def _groups(entries: Sequence[Entry]) -> Iterator[tuple[tuple[str, str, str], dict[str, list[Entry]]]]:
    """(key, model, task) and the entries of each method, for every set of rows that may be ranked together.

    The short key says it all but for the samples, which only the worker knows: results on other samples are
    another group. Cells that failed early have none and go with the first group of their key.
    """
    groups: dict[tuple, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for late in (False, True):
        for entry in entries:
            if entry.record is None or (entry.status != "ok") != late:
                continue
            key, cell = entry.record["key"], entry.record["cell"]
            group = (key["short"], cell["model"], cell["task"])
            there = sorted(g for g in groups if g[:3] == group)
            wanted = (*group, key["samples"] or "") if not late or not there else there[0]
            groups[wanted][cell["method"]].append(entry)
    for wanted in sorted(groups):
        yield wanted[:3], groups[wanted]


def _ok(methods: Mapping[str, Sequence[Entry]]) -> dict[str, list[Record]]:
    found = {m: [e.record for e in methods[m] if e.status == "ok" and e.record is not None] for m in sorted(methods)}
    return {method: records for method, records in found.items() if records}


def aggregate(records: Sequence[Record]) -> Row:
    """What several seeds of one method say together. The peak is the worst one, times are medians."""

    def numbers(path: str) -> list[float]:
        return [v for v in (value(r, path) for r in records) if v is not None]

    def reduced(path: str, how: Callable[[list[float]], float]) -> float | None:
        return how(found) if (found := numbers(path)) else None

    sources = sorted({s for r in records if (s := value(r, "memory.peak_source"))})
    quality = numbers("quality.value")
    interval = stats.t_interval(quality) if quality else stats.Interval(math.nan, None, None)
    return {
        "quality_metric": value(records[0], "quality.metric"),
        "higher_is_better": value(records[0], "quality.higher_is_better"),
        "quality_mean": interval.mean if quality else None,
        "quality_low": interval.low,
        "quality_high": interval.high,
        "peak_memory_bytes": reduced("memory.peak_bytes", max),
        "peak_source": "/".join(sources) or None,
        "mean_peak_bytes": reduced("memory.mean_peak_bytes", max),
        "step_seconds_median": reduced("time.step_seconds_median", statistics.median),
        "time_vs_full": reduced("time.vs_full", statistics.median),
        "train_seconds_total": reduced("time.train_seconds_total", statistics.median),
        "attach_seconds_cold": reduced("time.attach_seconds_cold", max),
        "seconds_to_target": reduced("quality.seconds_to_target", statistics.median)
        if len(numbers("quality.seconds_to_target")) == len(records)
        else None,
        "trainable_parameters": reduced("parameters.trainable", max),
        "checkpoint_bytes": reduced("size.checkpoint_bytes", max),
        "deployed_parameters": reduced("size.deployed_parameters", max),
        "deployed_bytes": reduced("size.deployed_bytes", max),
        "inference_tokens_per_second": reduced("inference.tokens_per_second", statistics.median),
        "inference_peak_bytes": reduced("inference.peak_bytes", max),
        "measured_over_predicted": max(filter(None, map(measured_over_predicted, records)), default=None),
    }


# ------------------------------------------------------------------ tiers


def _tiers(records: Mapping[str, Sequence[Record]]) -> tuple[dict[str, int], dict[str, str]]:
    """Tier per method, and what separated it: `seeds` (two or more shared) or `examples` (bootstrap).

    With one shared seed and no per-example predictions nothing can be told apart, so nothing is.
    """
    scored = {m: [r for r in found if value(r, "quality.value") is not None] for m, found in records.items()}
    scored = {m: found for m, found in scored.items() if found}
    if not scored:
        return {}, {}
    sign = 1 if value(next(iter(scored.values()))[0], "quality.higher_is_better") else -1
    means = {m: sign * stats.t_interval([r["quality"]["value"] for r in found]).mean for m, found in scored.items()}
    tier_from = {m: "seeds" if len(found) > 1 else "examples" for m, found in scored.items()}

    def p_value(a: str, b: str) -> float:
        left = {r["cell"]["seed"]: r["quality"] for r in scored[a]}
        right = {r["cell"]["seed"]: r["quality"] for r in scored[b]}
        shared = sorted(left.keys() & right.keys())
        if len(shared) > 1:
            return stats.paired_t([left[s]["value"] for s in shared], [right[s]["value"] for s in shared]).p
        return _example_p(left[shared[0]], right[shared[0]]) if shared else 1.0

    return stats.tiers(means, p_value), tier_from


def _example_p(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """p of a paired bootstrap over the test examples of two records; 1.0 where they cannot be paired."""
    difference = example_difference(a, b)
    return 1.0 if difference is None else difference.p


def example_difference(
    a: Mapping[str, Any], b: Mapping[str, Any], level: float = stats.LEVEL
) -> stats.Difference | None:
    """a - b of two records' `quality` by a paired bootstrap over the test examples; None where they cannot be paired."""
    references = a.get("references")
    one, two = a.get("predictions"), b.get("predictions")
    if not one or not two or len(one) != len(two) or references != b.get("references"):
        return None
    try:
        score_a = stats.weighted_score(a["metric"], one, references)
        score_b = stats.weighted_score(b["metric"], two, references)
    except KeyError:
        return None
    return stats.paired_bootstrap(lambda w: score_a(w) - score_b(w), len(one), level)


# ------------------------------------------------------------------ order


def _order(row: Row) -> tuple:
    names = [str(row.get(name) or "") for name in ("model", "task", "key", "method")]
    return (*names, int(row.get("seed") or 0), -1 if row.get("trial") is None else row["trial"])


def _leaderboard_order(row: Row) -> tuple:
    quality = row.get("quality_mean")
    best_first = math.inf if quality is None else (-quality if row["higher_is_better"] else quality)
    return (row["model"], row["task"], row["key"], best_first, row["method"])
