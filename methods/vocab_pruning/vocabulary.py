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
from transformers import PreTrainedTokenizerBase

from leantune.errors import BadInput

COLUMNS = ("input_ids", "decoder_input_ids", "labels")  # every column that may hold lists of token ids
BATCH = 10_000  # examples counted at a time
IGNORED = -100  # a label that no loss counts


@dataclass(frozen=True)
class Vocabulary:
    """The kept ids, ascending, of a vocabulary of `full` tokens. Row i of a pruned matrix is token `keep[i]`."""

    keep: np.ndarray  # int64 [V']
    full: int  # V
    tokenizer: PreTrainedTokenizerBase | None = None  # to name tokens in errors

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
                    f"token {token} does not occur in the data that vocab_pruning counted; "
                    "attach with all the data that will be fed, or set vocab_pruning.unk=true"
                )
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Vocabulary:
        return self  # immutable, and a tokenizer is slow to copy


def count_tokens(splits: Iterable[Dataset], full: int) -> np.ndarray:
    """Occurrences [V] of each id in `splits`, ragged or padded. Raises BadInput for an id outside the vocabulary."""
    counts = np.zeros(full, dtype=np.int64)
    for split in splits:
        if "input_ids" not in split.column_names:
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
    for name in COLUMNS:
        if name not in split.column_names:
            continue
        column = split.data.column(name)
        if not (_is_list(column.type) and pa.types.is_integer(column.type.value_type)):
            continue
        for start in range(0, len(split), BATCH):
            at = slice(start, start + BATCH)
            rows = column[at] if chosen is None else column.take(pa.array(chosen[at]))
            for chunk in rows.chunks:
                yield chunk.flatten().drop_null().to_numpy(zero_copy_only=False)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def special_ids(config: Any, tokenizer: PreTrainedTokenizerBase | None, full: int) -> set[int]:
    """Ids that are always kept: the tokenizer's special tokens and every `*_token_id` of the model's config."""
    found = set(tokenizer.all_special_ids) if tokenizer is not None else set()
    for name, value in config.to_dict().items():
        if name.endswith("_token_id"):
            found.update(value if isinstance(value, list | tuple) else [value])
    return {i for i in found if isinstance(i, int) and 0 <= i < full}
