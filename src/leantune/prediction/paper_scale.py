"""The footprint table: what named stacks take on named models, at the batches and lengths that a
config declares. Torch-free, since the DAG is built with it."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from leantune.errors import BadInput
from leantune.files.record import BYTE_KINDS
from leantune.files.text import csv_text, read_csv, write_text
from leantune.prediction import cards
from leantune.prediction.ask import CACHE, HEADS, Ask, Row, answers, versions
from leantune.spec.stacks import stack_name

if TYPE_CHECKING:
    from leantune.spec.schema import ConfigFile

FILE = Path("tables", "footprint.csv")  # below a run's folder, and below the published results
KEY = ("model", "method", "kind", "batch", "seq", "dtype")
BUDGETS_GIB = (8, 16, 24, 48, 80)  # of a card, its CUDA context included, for `largest_batch`
_LARGEST = [f"largest_batch_{size}gib" for size in BUDGETS_GIB]
COLUMNS = [
    *("model", "method", "point", "kind", "batch", "seq", "dtype"),
    *("status", "reason", "path", "fallback"),
    *("peak_bytes", "peak_phase", "allocated_bytes", "reserved_bytes", "smallest_card"),
    *("optimizer_state_bytes", *(f"{kind}_bytes" for kind in BYTE_KINDS)),
    *("total_parameters", "trainable_parameters", "head_parameters", "flops_per_step"),
    *_LARGEST,
    *("point_source", "measurement", "torch", "transformers"),
]


def expand(config: "ConfigFile") -> list[Ask]:
    """The rows that a validated config asks for, in its order, each once. Raises BadInput naming a
    wrong word."""
    heads = {kinds[0]: head for head, kinds in HEADS.items() if len(kinds) == 1}
    budgets = tuple(size * cards.GIB - cards.CONTEXT_BYTES for size in BUDGETS_GIB)
    found: dict[str, Ask] = {}
    for block in config.footprint:
        searched = block.largest_batch
        if unknown := {*searched} - {*block.methods}:
            raise BadInput(
                f"config: footprint: 'largest_batch' names '{min(unknown)}', "
                "which is none of the methods"
            )
        shapes = (block.models, block.methods, block.batches, block.lengths)
        for model, method, batch, length in itertools.product(*shapes):
            ask = Ask(model, method, batch, length, head=heads[block.kind], dtype=block.dtype)
            whole = replace(ask, budgets=budgets if method in searched else ())
            found.setdefault(ask.hash, whole)
    return list(found.values())


def digest(asks: Sequence[Ask]) -> str:
    """Changes when, and only when, the table must be made again."""
    facts = [[ask.hash, _source(ask)] for ask in asks]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def write(output: Path, asks: Sequence[Ask]) -> None:
    """Make `<output>/tables/footprint.csv`, predicting what is not kept yet."""
    write_text(output / FILE, table(asks, answers(asks, output / CACHE)))


def table(asks: Sequence[Ask], rows: Sequence[Row]) -> str:
    """The rows as CSV. Where nothing was predicted the columns are empty; `reason` says why."""
    return csv_text(list(map(_line, asks, rows)), COLUMNS)


def publish(output: Path, target: Path) -> None:
    """Put the rows of a run's table into the published one, in place of those with the same key."""
    new = read_csv(output / FILE)
    if new:
        rows = {tuple(row[name] for name in KEY): row for row in [*read_csv(target / FILE), *new]}
        write_text(target / FILE, csv_text(list(rows.values()), COLUMNS))


def _source(ask: Ask) -> str | None:
    """Where the values of the stack's points are from."""
    return "; ".join(part.source for part in ask.parts if part.source) or None


def _line(ask: Ask, row: Row) -> Row:
    own = {
        **{"method": stack_name(ask.parts), "kind": ask.kind},
        "point": "+".join(part.point for part in ask.parts if part.point),
        "point_source": _source(ask),
        **versions(),
    }
    if row["status"] != "ok":
        return {**row, **own}
    return {
        **{**row, **own},
        "smallest_card": cards.smallest(row["fits"]),
        **{f"{kind}_bytes": row["by_kind"][kind] for kind in BYTE_KINDS},
        **{f"{name}_parameters": count for name, count in row["parameters"].items()},
        **dict(zip(_LARGEST, row.get("largest_batches", ()), strict=False)),
    }
