"""Whether a record can be reproduced: its own command is run again, and what comes out compared
field by field."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.files.record import Record, read_record, value
from leantune.files.text import text_table
from leantune.machine.gpus import resolve_device
from leantune.metrics import stats
from leantune.spec.cells import cell_of_record

COLUMNS = ("field", "recorded", "now", "verdict")
EQUAL, DIFFERS = "equal", "differs"
BYTES = {
    "tensors peak bytes": "memory.tensors.peak_bytes",
    "headline peak bytes": "memory.peak_bytes",
    "mean peak bytes": "memory.mean_peak_bytes",
    "predicted peak bytes": "memory.predicted.peak_bytes",
    "optimizer state bytes": "memory.tensors.optimizer_state_bytes",
}
OF_DEVICE = (
    "headline peak bytes",
    "mean peak bytes",
)  # what a GPU reports need not repeat to the byte
COUNTS = {"trainable parameters": "parameters.trainable", "total parameters": "parameters.total"}
Field = dict[str, Any]


def run_again(path: Path) -> tuple[Record, Record]:
    """The record and that of a second run of its command, which leaves nothing behind.

    Raises BadInput where the file is missing or damaged, or its command is not that of the cell it
    describes, or cannot be run here: a plugin is gone, or it needs a GPU.
    """
    if not path.is_file():
        raise BadInput(
            f"{path} does not exist; give the JSON file of a cell, such as one below results/records"
        )
    original = read_record(path)
    words = command(original, path)
    with tempfile.TemporaryDirectory(prefix="leantune-") as folder:
        out = Path(folder) / "record.json"
        done = subprocess.run(
            [sys.executable, "-m", "leantune", *words, "--out", str(out)],
            stdout=sys.stderr,
            check=False,
        )
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
            f"{path}: it runs code that lies beside a model's weights; read that code, then run its command"
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


# ------------------------------------------------------------------ comparison


def compare(original: Record, again: Record) -> list[Field]:
    """A row per field: what was recorded, what came out now, and a verdict: `equal`, `inside ...`,
    `differs...`, `not compared: ...` or, for times and changed files, what there is to know."""
    rows = [_same("status", original["status"], again["status"])]
    changed = [
        n
        for n, h in again["provenance"]["hashes"].items()
        if original["provenance"]["hashes"].get(n) != h
    ]
    if changed:
        rows.append(
            _field(
                "files",
                "as recorded",
                "as they are",
                f"changed since: {', '.join(sorted(changed))}",
            )
        )
    if original["status"] == again["status"] == "ok":
        rows += _memory(original, again)
        rows += [
            _same(n, value(original, p), value(again, p))
            for n, p in COUNTS.items()
            if value(original, p) is not None
        ]
        rows.append(_same("samples", original["key"]["samples"], again["key"]["samples"]))
        rows += [_quality(original["quality"], again["quality"])] if original["quality"] else []
        rows += _time(original, again)
    return rows


def holds(fields: list[Field]) -> bool:
    """Whether no field differs."""
    return not any(field["verdict"].startswith(DIFFERS) for field in fields)


def describe(fields: list[Field]) -> str:
    """The rows as a text table, and one line that sums them up."""
    rows = [[_text(field[column]) for column in COLUMNS] for field in fields]
    off = [field["field"] for field in fields if field["verdict"].startswith(DIFFERS)]
    return f"{text_table(COLUMNS, rows)}\n{'differs: ' + ', '.join(off) if off else 'reproduced'}"


def _memory(original: Record, again: Record) -> list[Field]:
    """Bytes are compared where torch and transformers are the same, builds for other devices aside."""
    on_gpu = "cuda" in (value(original, "memory.peak_source"), value(again, "memory.peak_source"))
    paths = {n: p for n, p in BYTES.items() if not (on_gpu and n in OF_DEVICE)}
    for kind in value(original, "memory.tensors.by_kind") or {}:
        paths[f"{kind} bytes"] = f"memory.tensors.by_kind.{kind}"
    versions = []
    for name in ("torch", "transformers"):
        then, now = (
            str(value(r, f"provenance.packages.{name}")).partition("+")[0]
            for r in (original, again)
        )
        versions += [f"{name} {then}, here {now}"] if then != now else []
    rows = [(name, value(original, path), value(again, path)) for name, path in paths.items()]
    rows = [row for row in rows if row[1:] != (None, None)]
    if versions:
        return [_field(*row, f"not compared: {'; '.join(versions)}") for row in rows]
    return [_same(*row) for row in rows]


def _quality(then: Record, now: Record) -> Field:
    """Equal bits, or inside the bootstrap interval of the recorded score over its test examples."""
    name, score, again = then["metric"], then["value"], now["value"]
    if score == again or name != now["metric"]:
        return _same(name, score, again if name == now["metric"] else f"{now['metric']} {again}")
    try:
        weighted = stats.weighted_score(name, then["predictions"], then["references"])
    except KeyError:
        return _same(name, score, again)
    if not then["predictions"]:
        return _same(name, score, again)
    interval = stats.paired_bootstrap(weighted, len(then["predictions"]))
    inside = interval.low <= again <= interval.high
    return _field(
        name,
        score,
        again,
        f"{'inside' if inside else 'differs: outside'} [{interval.low:.4f}, {interval.high:.4f}]",
    )


def _time(original: Record, again: Record) -> Iterator[Field]:
    then, now = (value(record, "time.step_seconds_median") for record in (original, again))
    if then and now:
        same = original["key"]["hardware"] == again["key"]["hardware"]
        verdict = (
            f"ratio {now / then:.2f}" if same else f"not compared: {original['key']['hardware']}"
        )
        yield _field("step seconds", then, now, verdict)


def _same(name: str, then: Any, now: Any) -> Field:
    return _field(name, then, now, EQUAL if then == now else DIFFERS)


def _field(name: str, then: Any, now: Any, verdict: str) -> Field:
    return {"field": name, "recorded": then, "now": now, "verdict": verdict}


def _text(cell: Any) -> str | None:
    if isinstance(cell, float):
        return f"{cell:.6g}"
    return None if cell is None else str(cell)[:40]
