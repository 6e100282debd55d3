"""One prediction to make, its answer as a row, and the folder that keeps answers.

Torch-free until something is predicted, since the DAG is built with it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leantune import MEASUREMENT_VERSION
from leantune.errors import BadInput, Unsupported
from leantune.files.record import write_json
from leantune.files.text import bytes_text, each_told
from leantune.spec import plugins
from leantune.spec.cells import TRAINING_DEFAULTS
from leantune.spec.hashes import model_hash, stack_hash
from leantune.spec.plugins import Plugin
from leantune.spec.stacks import Part, parse_stack, stack_name

if TYPE_CHECKING:
    from leantune.spec.schema import ModelFile, TaskFile

Row = dict[str, Any]

CACHE = Path("predictions")  # below a run's folder, and below the published results
HEADS = {  # the word of --head: kinds of task, the first that the model does is meant
    "classification": ("classification",),
    "mlm": ("masked_lm",),
    "causal-lm": ("causal_lm",),
    "span": ("span",),
    "seq2seq": ("seq2seq_lm",),
    "pretraining": ("causal_lm", "masked_lm"),
    None: ("seq2seq_lm", "causal_lm", "classification", "masked_lm"),
}
# the training settings that bytes and FLOPs depend on, beside the dtype
SHAPE = ("batch", "length", "accumulate", "checkpointing", "clip")


@dataclass(frozen=True)
class Ask:
    """One prediction to make: a stack that trains a model.

    A `task` gives the kind of task and the training settings that are not given here. `dtype` is
    that of the weights (and so of everything): bf16 is pure bf16, not autocast. Without it a task's
    own training is predicted (fp32 weights, under bf16 autocast where the task says so), else fp32.
    """

    model: str
    method: str  # a stack
    batch: int | None = None  # None: the task's
    length: int | None = None
    task: str | None = None
    head: str | None = None  # of HEADS, or `pretraining`
    dtype: str | None = None  # fp32 | bf16
    settings: Mapping[str, Any] = field(default_factory=dict)  # METHOD.PARAM to value
    training: Mapping[str, Any] = field(default_factory=dict)  # in place of the task's own
    budgets: tuple[int, ...] = ()  # reserved bytes; for each the largest batch is searched too

    @property
    def plugin(self) -> Plugin[ModelFile]:
        return plugins.get("models", self.model)

    @property
    def of_task(self) -> Plugin[TaskFile] | None:
        return None if self.task is None else plugins.get("tasks", self.task)

    @property
    def kind(self) -> str:
        """The kind of task. Whether the model does it is for the prediction to say."""
        if self.of_task:
            return self.of_task.spec.kind
        if self.head not in HEADS:
            raise BadInput(f"'{self.head}' is no head; known: {', '.join(filter(None, HEADS))}")
        likely = HEADS[self.head]
        return next((kind for kind in likely if kind in self.plugin.spec.kinds), likely[-1])

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        return parse_stack(self.method, self.kind, self.settings)

    @functools.cached_property
    def resolved(self) -> dict[str, Any]:
        """The training settings; `batch` and `length` are missing where nothing gives them."""
        shape = {"batch": self.batch, "length": self.length}
        given = {name: size for name, size in shape.items() if size is not None}
        of_task = self.of_task.raw["training"] if self.of_task else {}
        return {**TRAINING_DEFAULTS, **of_task, **self.training, **given}

    @property
    def target(self) -> int | None:
        """Tokens of a target that is apart from the input (seq2seq_lm): the task's most, else as
        many as the input has."""
        if self.kind != "seq2seq_lm":
            return None
        return self.resolved.get("max_new_tokens") or self.resolved.get("length")

    @property
    def precision(self) -> str:
        """fp32, bf16 or bf16-autocast, which keeps the weights in fp32."""
        autocast = self.task and self.dtype is None and self.resolved["dtype"] == "bf16"
        return "bf16-autocast" if autocast else self.dtype or "fp32"

    @property
    def two_texts(self) -> bool:
        """Whether an example has two texts, and the model's file does not say that it cannot tell
        them apart."""
        dataset = self.of_task and self.of_task.spec.dataset
        pairs = self.kind == "span" or bool(dataset and dataset.pair)
        return pairs and self.plugin.raw["architecture"].get("type_vocab_size") != 1

    @functools.cached_property
    def hash(self) -> str:
        """Of all that the answer depends on: the stack's and the model's files, the kind of task,
        the shape, and what it is computed with. Raises BadInput for a word that is wrong."""
        specs = [part.plugin.spec for part in self.parts]
        supports = [[spec.supports and spec.supports.given(), spec.disabled] for spec in specs]
        facts = [
            [self.plugin.name, model_hash(self.plugin), self.plugin.spec.kinds],
            [stack_hash(self.parts), supports],
            [self.kind, self.head == "pretraining", self.two_texts, self.precision],
            [*(self.resolved.get(name) for name in SHAPE), *filter(None, [self.target])],
            self.budgets,
            versions(),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@functools.cache
def versions() -> dict[str, Any]:
    """What predictions are computed with; another version of one of these may change them."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"measurement": MEASUREMENT_VERSION, **libraries}


def answer(ask: Ask, cache: Path | None = None) -> Row:
    """The answer that the folder `cache` keeps, or a prediction, kept there from then on.

    A row is what `one.predict` says and `status` ok. What cannot be predicted is a row too: model,
    method, batch, seq, dtype, `status` unsupported and the `reason`. It is not kept, as it may
    depend on the memory that is free here.
    """
    try:
        file = cache and cache / ask.plugin.name / stack_name(ask.parts) / f"{ask.hash}.json"
        if file and (kept := _kept(file)):
            return kept
        from leantune.prediction import one  # here, since it imports torch

        row = {**one.predict(ask), "status": "ok", "reason": None}
        if ask.budgets:
            row["largest_batches"] = one.largest_batches(ask)
    except (BadInput, Unsupported) as error:
        shape = {"batch": ask.batch, "seq": ask.length, "dtype": ask.dtype or "fp32"}
        row = {"model": ask.plugin.name, "method": ask.method, **shape}
        return {**row, "status": "unsupported", "reason": str(error)}
    if file:
        write_json(file, row)
    return row


def _kept(file: Path) -> Row | None:
    """The row that an earlier run left, if it is whole. The file's name says what it depends on."""
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("status") == "ok" else None


def answers(asks: Sequence[Ask], cache: Path | None = None) -> list[Row]:
    """`answer` for each, and on stderr a line each."""

    def name(row: Row) -> str:
        peak = bytes_text(row["peak_bytes"]) if row["status"] == "ok" else row["status"]
        return f"{row['model']} {row['method']}: {peak}"

    return each_told(asks, lambda ask: answer(ask, cache), name)
