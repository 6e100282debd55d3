"""Which token ids a task uses, and the table from ids to the rows that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from leantune.errors import BadInput

# columns, and the ends of their names, that hold token ids if they hold lists of integers
COLUMNS = ("input_ids", "labels", "prompt", "completion", "chosen", "rejected")
ENDINGS = ("_input_ids", "_labels")
SPECIAL = ("_token_id", "_token_ids", "_token_index")
GENERATION = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
BATCH = 10_000  # examples counted at a time
IGNORED = -100  # a label that no loss counts


@dataclass(frozen=True)
class Vocabulary:
    """The kept ids, ascending, of a vocabulary of `full` tokens. Row i of a pruned matrix is token `keep[i]`."""

    keep: np.ndarray  # int64 [V']
    full: int  # V
    tokenizer: PreTrainedTokenizerBase | None = None  # to name tokens in errors
    unknown: int | None = None  # the row that tokens without one read, if the user chose so

    def table(self, device: torch.device, unseen: np.ndarray | int = -1) -> Tensor:
        """int32 [V]: the row of each id; `unseen` (a row, or one row per id) for those that were not kept."""
        if device.type == "meta":
            return torch.empty(self.full, dtype=torch.int32, device=device)
        rows = np.empty(self.full, dtype=np.int32)
        rows[:] = unseen
        rows[self.keep] = np.arange(len(self.keep), dtype=np.int32)
        return torch.from_numpy(rows).to(device)

    def explain(self, ids: Tensor) -> str | None:
        """What is wrong with the first id that has no row; None if all have one. -100 is skipped."""
        for i in ids.unique().tolist():
            if i == IGNORED:
                continue
            if not 0 <= i < self.full:
                return f"token id {i} is outside the vocabulary of {self.full}; was another tokenizer used?"
            if not np.isin(i, self.keep):
                token = f"'{self.tokenizer.convert_ids_to_tokens(i)}' (id {i})" if self.tokenizer else f"id {i}"
                return (
                    f"token {token} does not occur in the data that vocab_pruning counted; what is trained on belongs "
                    "in the split data['train'] when the method is attached (or set vocab_pruning.unk=true); "
                    "data that is only evaluated needs model.eval()"
                )
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Vocabulary:
        return self  # immutable, and a tokenizer is slow to copy


class Unseen:
    """Looks for ids without a row in what is trained on.

    To read a value of a GPU is to wait for it, so there the id is copied to the host meanwhile and reported by a
    later call: the next forward pass, or what saves or exports the model. No step is taken in silence.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._copies: list[tuple[Any, Tensor, str]] = []  # what says that a copy is there, the id or -1, its kind

    def check(self, ids: Tensor, rows: Tensor, kind: str = "") -> Tensor:
        """Rows that an embedding or a loss may index with; raises BadInput, at the latest in the next call."""
        if rows.is_meta or isinstance(rows, FakeTensor) or not rows.numel():
            return rows
        self.report()
        found = ids.where(rows < 0, -1).amax()
        if not self._waits(rows):
            self._raise(found, kind)
            return rows
        self._copies.append((*self._copy(found), kind))
        return rows.clamp(min=0)  # a bad index would end the CUDA context

    def report(self, wait: bool = False) -> None:
        """Raise BadInput for an id that an earlier call found."""
        for copied in list(self._copies):
            event, found, kind = copied
            if wait:
                event.synchronize()
            elif not event.query():
                continue
            self._copies.remove(copied)
            self._raise(found, kind)

    def _raise(self, found: Tensor, kind: str) -> None:
        if int(found) >= 0:
            raise BadInput(f"{kind}{self.vocabulary.explain(found)}")

    def _waits(self, rows: Tensor) -> bool:
        return rows.is_cuda

    def _copy(self, found: Tensor) -> tuple[Any, Tensor]:
        """A copy to the host that nobody waits for, and the event of its end."""
        host = torch.empty((), dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return event, host

    def __deepcopy__(self, memo: dict[int, Any]) -> Unseen:
        return Unseen(self.vocabulary)


def count_tokens(splits: Iterable[Dataset], full: int) -> np.ndarray:
    """Occurrences [V] of each id in `splits`, ragged or padded. Raises BadInput for an id outside the vocabulary."""
    counts = np.zeros(full, dtype=np.int64)
    for split in splits:
        if len(split) and not any(_holds_tokens(name, split.data.column(name).type) for name in split.column_names):
            raise BadInput("vocab_pruning counts token ids, but a split has no column 'input_ids'; tokenize it first")
        for values in _token_chunks(split):
            values = values[values != IGNORED]
            if len(values) and not (values.min() >= 0 and values.max() < full):
                wrong = values[(values < 0) | (values >= full)][0]
                raise BadInput(
                    f"token id {wrong} is outside the embedding of {full} rows; use the model's own tokenizer"
                )
            counts += np.bincount(values, minlength=full)
    return counts


def _token_chunks(split: Dataset) -> Iterator[np.ndarray]:
    """The ids of every list column that may hold tokens, flat, a batch of examples at a time."""
    # a selected or shuffled Dataset holds indices into its table; its own way to follow them is 100 times slower
    chosen = split._indices.column(0).to_numpy() if split._indices is not None else None
    for name in split.column_names:
        column = split.data.column(name)
        if not _holds_tokens(name, column.type):
            continue
        for start in range(0, len(split), BATCH):
            at = slice(start, start + BATCH)
            rows = column[at] if chosen is None else column.take(pa.array(chosen[at]))
            for chunk in rows.chunks:
                yield from _flat(name, chunk)


def _named_tokens(name: str) -> bool:
    return name in COLUMNS or name.endswith(ENDINGS)


def _holds_tokens(name: str, kind: pa.DataType) -> bool:
    """Whether there are lists of token ids in a column: `input_ids`, `chosen_input_ids`, `chosen: {input_ids: ...}`."""
    if pa.types.is_struct(kind):
        return any(_holds_tokens(field.name, field.type) for field in kind)
    if not _is_list(kind):
        return False
    inner = kind.value_type
    if pa.types.is_integer(inner):
        return _named_tokens(name)
    return _holds_tokens(name, inner)


def _flat(name: str, values: pa.Array) -> Iterator[np.ndarray]:
    """The ids inside of lists of lists and structs."""
    if pa.types.is_struct(values.type):
        for i, field in enumerate(values.type):
            if _holds_tokens(field.name, field.type):
                yield from _flat(field.name, values.flatten()[i])
    elif _is_list(values.type):
        yield from _flat(name, values.flatten())
    else:
        yield values.drop_null().to_numpy(zero_copy_only=False)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, full: int) -> set[int]:
    """Ids that are always kept: the tokenizer's special tokens, and what the model's config, its parts and its
    generation config name as tokens (also to force, to suppress and to forbid)."""
    found = set(tokenizer.all_special_ids) if tokenizer is not None else set()
    configs = [model.config, getattr(model, "generation_config", None)]
    for config in configs:
        found.update(_named_ids(config.to_dict() if config is not None else {}))
    return {i for i in found if type(i) is int and 0 <= i < full}


def _named_ids(values: dict[str, Any]) -> Iterator[Any]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _named_ids(value)
        elif str(name).endswith(SPECIAL) or name in GENERATION:
            yield from _leaves(value)
        elif name == "forced_decoder_ids":  # pairs of a position and an id
            yield from (pair[1] for pair in value or [])


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    else:
        yield value
