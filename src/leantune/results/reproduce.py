"""Whether a record can be reproduced: its own command is run again, and what comes out compared
field by field."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.files.record import Record, read_record, value
from leantune.files.text import text_table
from leantune.machine.gpus import resolve_device
from leantune.metrics import stats
from leantune.results.comparison import Pair, compare
from leantune.results.load import changed
from leantune.spec.cells import cell_of_record

COLUMNS = ("field", "recorded", "now", "verdict")
BYTES = {
    "tensors peak bytes": "memory.tensors.peak_bytes",
    "headline peak bytes": "memory.peak_bytes",
    "mean peak bytes": "memory.mean_peak_bytes",
    "predicted peak bytes": "memory.predicted.peak_bytes",
    "optimizer state bytes": "memory.tensors.optimizer_state_bytes",
}
OF_DEVICE = ("headline peak bytes", "mean peak bytes")  # a GPU need not repeat them to the byte
COUNTS = {
    "trainable parameters": "parameters.trainable",
    "total parameters": "parameters.total",
    "samples": "key.samples",
}
PACKAGES = {name: f"provenance.packages.{name}" for name in ("torch", "transformers")}
Field = dict[str, Any]


def run_again(path: Path) -> tuple[Record, Record]:
    """The record and that of a second run of its command, which leaves nothing behind.

    Raises BadInput where the file is missing or damaged, or its command is not that of the cell it
    describes, or cannot be run here: a plugin is gone, or it needs a GPU.
    """
    if not path.is_file():
        raise BadInput(
            f"{path} does not exist; give the JSON file of a cell, such as one below "
            "results/records"
        )
    original = read_record(path)
    words = command(original, path)
    with tempfile.TemporaryDirectory(prefix="leantune-") as folder:
        out = Path(folder) / "record.json"
        again = [sys.executable, "-m", "leantune", *words, "--out", str(out)]
        done = subprocess.run(again, stdout=sys.stderr, check=False)
        if done.returncode or not out.is_file():
            raise BadInput(
                f"{path}: its command ended with {done.returncode}; see the message above"
            )
        return original, read_record(out)


def command(record: Record, path: Path) -> list[str]:
    """The words after `leantune` that run the record's cell again, without `--out`.

    They are made of the cell, so that a record from elsewhere can write nothing.
    """
    cell = cell_of_record(record)
    words = cell.command()
    if "--trust-remote-code" in words:
        raise BadInput(
            f"{path}: it runs code that lies beside a model's weights; read that code, then run "
            "its command"
        )
    if "settings" not in record["cell"]:
        # An older record has them in its command only, which must then be all of this cell's.
        told = shlex.split(record["provenance"]["command"])
        if sorted(told[:-1]) != sorted(words[:-1]):
            raise BadInput(
                f"{path}: its command is that of another cell than its content; "
                "run the cell by name"
            )
    if cell.device == "cuda" and resolve_device("auto") != "cuda":
        raise BadInput(
            f"{path}: it was measured on a GPU and none answers here; run it on a machine with one"
        )
    return words[1:-2]


# ------------------------------------------------------------------ field by field


def fields(original: Record, again: Record) -> list[Field]:
    """A row per field: what was recorded, what came out now, and a verdict: `equal`, `inside ...`,
    `differs...`, `not compared: ...` or, for times and changed files, what there is to know."""
    rows = _rows(original, again, {"status": "status"})
    hashes = compare(original, again, {"files": "provenance.hashes"})["files"]
    if files := changed(*hashes):
        told = Pair("as recorded", "as they are")
        rows.append(_field("files", told, f"changed since: {', '.join(files)}"))
    if original["status"] == again["status"] == "ok":
        rows += _rows(original, again, _bytes(original, again), _other_versions(original, again))
        rows += _rows(original, again, COUNTS)
        rows += [_quality(original["quality"], again["quality"])] if original["quality"] else []
        rows += _time(original, again)
    return rows


def holds(rows: list[Field]) -> bool:
    """Whether no field differs."""
    return not any(row["verdict"].startswith("differs") for row in rows)


def describe(rows: list[Field]) -> str:
    """The rows as a text table, and one line that sums them up."""
    table = text_table(COLUMNS, ([_text(row[column]) for column in COLUMNS] for row in rows))
    off = [row["field"] for row in rows if not holds([row])]
    return f"{table}\n{'differs: ' + ', '.join(off) if off else 'reproduced'}"


def _rows(
    original: Record, again: Record, paths: Mapping[str, str], why_not: str | None = None
) -> list[Field]:
    """A row for each path that one of the two has."""
    found = compare(original, again, paths)
    return [_field(name, pair, why_not) for name, pair in found.items() if pair != (None, None)]


def _bytes(original: Record, again: Record) -> dict[str, str]:
    source = compare(original, again, {"source": "memory.peak_source"})["source"]
    kinds = value(original, "memory.tensors.by_kind") or {}
    paths = BYTES | {f"{kind} bytes": f"memory.tensors.by_kind.{kind}" for kind in kinds}
    return {n: path for n, path in paths.items() if "cuda" not in source or n not in OF_DEVICE}


def _other_versions(original: Record, again: Record) -> str | None:
    """Why bytes are not compared, None where torch and transformers are the same, builds for other
    devices aside."""
    builds = {
        name: [str(version).partition("+")[0] for version in pair]
        for name, pair in compare(original, again, PACKAGES).items()
    }
    other = [f"{name} {then}, here {now}" for name, (then, now) in builds.items() if then != now]
    return f"not compared: {'; '.join(other)}" if other else None


def _quality(then: Record, now: Record) -> Field:
    """Equal bits, or inside the bootstrap interval of the recorded score over its test examples."""
    name, same_metric = then["metric"], then["metric"] == now["metric"]
    pair = Pair(then["value"], now["value"] if same_metric else f"{now['metric']} {now['value']}")
    if pair.same or not same_metric or not then["predictions"]:
        return _field(name, pair)
    try:
        weighted = stats.weighted_score(name, then["predictions"], then["references"])
    except KeyError:  # a score that cannot be resampled
        return _field(name, pair)
    interval = stats.paired_bootstrap(weighted, len(then["predictions"]))
    inside = "inside" if interval.low <= pair.other <= interval.high else "differs: outside"
    return _field(name, pair, f"{inside} [{interval.low:.4f}, {interval.high:.4f}]")


def _time(original: Record, again: Record) -> list[Field]:
    paths = {"step": "time.step_seconds_median", "hardware": "key.hardware"}
    step, hardware = compare(original, again, paths).values()
    if not all(step):
        return []
    told = f"ratio {step.other / step.one:.2f}"
    verdict = told if hardware.same else f"not compared: {hardware.one}"
    return [_field("step seconds", step, verdict)]


def _field(name: str, pair: Pair, verdict: str | None = None) -> Field:
    """`verdict` where it is more than whether the two are the same."""
    told = verdict or ("equal" if pair.same else "differs")
    return {"field": name, "recorded": pair.one, "now": pair.other, "verdict": told}


def _text(cell: Any) -> str | None:
    if isinstance(cell, float):
        return f"{cell:.6g}"
    return None if cell is None else str(cell)[:40]
