"""The footprint table: what named stacks take on named models, at the batches and lengths that a
config declares.

`<output>/footprint/` keeps every prediction beside the hash of what it depends on, so that a
changed method costs its own rows only and a run that was stopped goes on where it was. Torch-free,
since the DAG is built with it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leantune import MEASUREMENT_VERSION
from leantune.errors import BadInput
from leantune.files.record import write_json
from leantune.files.text import csv_text, read_csv, write_text
from leantune.prediction import cards, many
from leantune.prediction.many import Row
from leantune.spec import plugins
from leantune.spec.hashes import model_hash, stack_hash
from leantune.spec.plugins import Plugin
from leantune.spec.stacks import Part, merged_spec, parse_stack, stack_name

if TYPE_CHECKING:
    from leantune.spec.schema import ModelFile

FILE = Path("tables", "footprint.csv")  # below a run's folder, and below the published results
KEY = ("model", "method", "kind", "batch", "seq", "dtype")
BUDGETS_GIB = (
    8,
    16,
    24,
    48,
    80,
)  # of a card, its CUDA context included, for a block's `largest_batch`
KINDS = ("weights", "buffers", "gradients", "optimizer", "activations", "temporaries", "inputs")
_LARGEST = [f"largest_batch_{size}gib" for size in BUDGETS_GIB]
COLUMNS = [
    *[
        "model",
        "method",
        "point",
        "kind",
        "batch",
        "seq",
        "dtype",
        "status",
        "reason",
        "path",
        "fallback",
    ],
    *["peak_bytes", "peak_phase", "allocated_bytes", "reserved_bytes", "smallest_card"],
    *["optimizer_state_bytes", *(f"{kind}_bytes" for kind in KINDS)],
    *["total_parameters", "trainable_parameters", "head_parameters", "flops_per_step"],
    *_LARGEST,
    *["point_source", "measurement", "torch", "transformers"],
]


@dataclass(frozen=True)
class Entry:
    """One row of the table: a stack on a model, for a kind of task, at a shape and dtype."""

    model: Plugin[ModelFile]
    parts: tuple[Part, ...]
    kind: str
    batch: int
    length: int
    dtype: str
    largest_batch: bool = False  # whether to search the largest batch for each of the budgets too

    @property
    def method(self) -> str:
        return stack_name(self.parts)

    @property
    def source(self) -> str | None:
        """Where the values of the stack's points are from."""
        return "; ".join(p.source for p in self.parts if p.source) or None

    @property
    def file(self) -> str:
        """Where the prediction is kept, below the run's folder."""
        return f"footprint/{self.model.name}/{self.method}/{self.kind}-{self.dtype}-b{self.batch}-l{self.length}.json"

    @functools.cached_property
    def hash(self) -> str:
        """What the prediction depends on: the stack's and the model's files, the shape, what it is
        computed with."""
        supports = [
            {"supports": s.supports and s.supports.given(), "disabled": s.disabled}
            for s in [merged_spec(part.plugin) for part in self.parts]
        ]
        facts = [
            stack_hash(self.parts),
            model_hash(self.model),
            self.model.spec.kinds,
            supports,
            self.kind,
            self.batch,
            self.length,
            self.dtype,
            self.largest_batch and [*BUDGETS_GIB, cards.CONTEXT_BYTES],
            versions(),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@functools.cache
def versions() -> dict[str, Any]:
    """What the figures are computed with; another version of one of these may change them."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"measurement": MEASUREMENT_VERSION, **libraries}


def expand(config: Mapping[str, Any]) -> list[Entry]:
    """The rows that a validated config asks for, in its order, each once. Raises BadInput naming a
    wrong word."""
    found: dict[str, Entry] = {}
    for block in config["footprint"]:
        kind, dtype = block["kind"], block["dtype"]
        if unknown := set(block.get("largest_batch", ())) - set(block["methods"]):
            raise BadInput(
                f"config: footprint: 'largest_batch' names '{min(unknown)}', which is none of the methods"
            )
        asked = itertools.product(
            block["models"], block["methods"], block["batches"], block["lengths"]
        )
        for model, method, batch, length in asked:
            parts = parse_stack(method, kind)
            searched = method in block.get("largest_batch", ())
            entry = Entry(plugins.get("models", model), parts, kind, batch, length, dtype, searched)
            found.setdefault(entry.file, entry)
    return list(found.values())


def digest(entries: Sequence[Entry]) -> str:
    """Changes when, and only when, the table must be made again."""
    facts = [[entry.file, entry.hash, entry.source] for entry in entries]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def write(output: Path, entries: Sequence[Entry]) -> None:
    """Make `<output>/tables/footprint.csv`, predicting what is not kept yet."""
    found = {entry.file: kept for entry in entries if (kept := _kept(output, entry)) is not None}
    missing = [entry for entry in entries if entry.file not in found]
    if missing:
        found |= _predict(output, missing)
    write_text(output / FILE, table([(entry, found[entry.file]) for entry in entries]))


def table(predictions: Sequence[tuple[Entry, Row]]) -> str:
    """The rows as CSV. Without figures (unsupported) their columns are empty and `reason` says why."""
    return csv_text([_line(entry, found) for entry, found in predictions], COLUMNS)


def publish(output: Path, target: Path) -> None:
    """Put the rows of a run's table into the published one, in place of those with the same key."""
    new = read_csv(output / FILE)
    if new:
        rows = {tuple(row[name] for name in KEY): row for row in [*read_csv(target / FILE), *new]}
        write_text(target / FILE, csv_text(list(rows.values()), COLUMNS))


def _predict(output: Path, entries: Sequence[Entry]) -> dict[str, Row]:
    from leantune.prediction import one

    rows = {}
    heads = {kind: head for head, kind in one.KINDS.items()}
    with many.progress(len(entries)) as told:
        for entry in entries:
            words = {"head": heads[entry.kind], "dtype": entry.dtype}
            found = many.answer(
                many.Ask(entry.model.name, entry.method, entry.batch, entry.length, words)
            )
            if entry.largest_batch and found["status"] == "ok":
                budgets = [size * cards.GIB - cards.CONTEXT_BYTES for size in BUDGETS_GIB]
                batches = one.largest_batches(
                    budgets, entry.model.name, entry.method, length=entry.length, **words
                )
                found["largest_batches"] = batches
            write_json(output / entry.file, {"hash": entry.hash, "prediction": found})
            rows[entry.file] = found
            told(found)
    return rows


def _kept(output: Path, entry: Entry) -> Row | None:
    """The prediction that an earlier run left, if it is whole and of the same hash."""
    try:
        kept = json.loads((output / entry.file).read_text(encoding="utf-8"))
        return dict(kept["prediction"]) if kept["hash"] == entry.hash else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _line(entry: Entry, prediction: Mapping[str, Any]) -> Row:
    own = {
        "model": entry.model.name,
        "method": entry.method,
        "kind": entry.kind,
        "batch": entry.batch,
        "seq": entry.length,
        "dtype": entry.dtype,
        "point": "+".join(p.point for p in entry.parts if p.point),
        "point_source": entry.source,
        **versions(),
    }
    if prediction["status"] != "ok":
        return {**own, "status": prediction["status"], "reason": prediction["reason"]}
    return {
        **prediction,
        **own,
        "smallest_card": cards.smallest(prediction["fits"]),
        **{f"{kind}_bytes": prediction["by_kind"][kind] for kind in KINDS},
        **{f"{name}_parameters": count for name, count in prediction["parameters"].items()},
        **dict(zip(_LARGEST, prediction.get("largest_batches", ()), strict=False)),
    }
