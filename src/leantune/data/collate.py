"""Batches of examples: padding, labels, masks and their order."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from leantune.api import Batch

if TYPE_CHECKING:
    from datasets import Dataset

_FOR_BATCHES = ("input_ids", "token_type_ids", "label", "labels", "prompt")


@dataclass(frozen=True)
class Collate:
    """Pads examples on the right to the longest and adds `labels`; other columns are left out.

    A method that renumbers tokens gives its data `dataclasses.replace(data.collate, pad_id=...)`.
    """

    kind: str
    pad_id: int
    mask_id: int = -1  # masked_lm only
    special_ids: frozenset[int] = frozenset()  # masked_lm only: never predicted
    vocabulary: int = 0  # masked_lm only: random replacements are drawn below this

    @classmethod
    def of(cls, kind: str, tokenizer: PreTrainedTokenizerBase) -> Collate:
        if kind != "masked_lm":
            return cls(kind, tokenizer.pad_token_id)
        special = frozenset(tokenizer.all_special_ids)
        return cls(kind, tokenizer.pad_token_id, tokenizer.mask_token_id, special, len(tokenizer))

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        """`input_ids`, `attention_mask` (batch, length) int64; `labels` (batch,) int64 or float32,
        or (batch, length) int64 with -100 where nothing is predicted (padding is known by the mask
        alone). Spans have `start_positions` and `end_positions` (batch,) int64 in their place. Of
        an encoder-decoder model `labels` are (batch, tokens of the longest target), with -100 on
        padding: the model makes its decoder's inputs of them, and needs no mask of theirs.
        Examples that have `token_type_ids` (which of two texts a token is of) keep them, 0 on
        padding."""
        ids = [torch.tensor(example["input_ids"]) for example in examples]
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self.pad_id)
        attention = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
        labels: Batch = {}
        if self.kind == "masked_lm":
            input_ids, predicted = self._masked(input_ids, attention)
            labels = {"labels": predicted}
        elif self.kind in ("causal_lm", "generation"):
            # of a text that is written for a prompt, the prompt is not predicted
            prompts = torch.tensor([[example.get("prompt", 0)] for example in examples])
            place = torch.arange(input_ids.shape[1])
            labels = {"labels": input_ids.masked_fill((attention == 0) | (place < prompts), -100)}
        elif self.kind == "seq2seq_lm":
            if "labels" in examples[0]:
                targets = [torch.tensor(example["labels"]) for example in examples]
                labels = {"labels": pad_sequence(targets, batch_first=True, padding_value=-100)}
        elif self.kind == "span":
            places = torch.tensor([example["label"] for example in examples]).unbind(1)
            labels = dict(zip(("start_positions", "end_positions"), places, strict=True))
        elif "label" in examples[0]:
            dtype = torch.float32 if self.kind == "regression" else torch.int64
            given = [example["label"] for example in examples]
            labels = {"labels": torch.tensor(given, dtype=dtype)}
        types: Batch = {}
        if "token_type_ids" in examples[0]:
            rows = [torch.tensor(example["token_type_ids"]) for example in examples]
            types = {"token_type_ids": pad_sequence(rows, batch_first=True)}
        return {"input_ids": input_ids, "attention_mask": attention, **types, **labels}

    def _masked(
        self, input_ids: torch.Tensor, attention: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """BERT's masking: 15 % are predicted, of these 80 % masked, 10 % random, 10 % left as they
        are.

        The draw depends on the batch's content only, so evaluation asks the same questions every
        time.
        """
        seed = int.from_bytes(hashlib.sha256(input_ids.numpy().tobytes()).digest()[:7])
        generator = torch.Generator().manual_seed(seed)
        chance, action = torch.rand(2, *input_ids.shape, generator=generator)
        plain = (attention == 1) & ~torch.isin(input_ids, torch.tensor(sorted(self.special_ids)))
        chosen = plain & (chance < 0.15)
        labels = input_ids.masked_fill(~chosen, -100)
        other = torch.randint(self.vocabulary, input_ids.shape, generator=generator)
        shown = torch.where(chosen & (action < 0.8), self.mask_id, input_ids)
        return torch.where(chosen & (action >= 0.9), other, shown), labels


def batches(
    split: Dataset,
    collate: Callable[[list[dict[str, Any]]], Batch],
    batch: int,
    steps: int | None = None,
    seed: int = 0,
    shuffle: bool = False,
) -> Iterator[Batch]:
    """`steps` batches of `batch` examples, going on into the next epoch; without `steps` one pass,
    in which the last batch may be smaller. With `shuffle` every epoch has its own order, all of
    them fixed by `seed`."""
    kept = [column for column in _FOR_BATCHES if column in split.column_names]
    rows = split.select_columns(kept).to_list()
    epochs = range(1) if steps is None or not rows else itertools.count()
    orders = (_order(len(rows), seed, epoch, shuffle) for epoch in epochs)
    wanted = None if steps is None else steps * batch
    numbers = itertools.islice(itertools.chain.from_iterable(orders), wanted)
    while some := list(itertools.islice(numbers, batch)):
        yield collate([rows[i] for i in some])


def _order(count: int, seed: int, epoch: int, shuffle: bool) -> list[int]:
    order = list(range(count))
    if shuffle:
        random.Random(f"{seed}-{epoch}").shuffle(order)
    return order


def longest_batch_shape(split: Dataset, batch: int) -> tuple[int, ...]:
    """(sequences, tokens) of the longest training batch that can occur, and the tokens of the
    longest target where examples have one of their own (seq2seq_lm)."""
    sides = [name for name in ("input_ids", "labels") if name in split.column_names]
    return batch, *(max(map(len, split[side])) for side in sides)
