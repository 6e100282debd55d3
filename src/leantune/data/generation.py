"""Texts written for a text: by a decoder (kind `generation`), which is trained on the answer alone
and then asked to go on, or by an encoder-decoder model (kind `seq2seq_lm`), which reads the text in
its encoder.

A decoder's example is `prompt, line end, answer, end token`; the loss counts the answer's tokens
and the end token. An encoder-decoder model's example is two sequences, `input_ids` and `labels`,
each framed as its tokenizer frames sources and targets; the loss counts all of the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from leantune.api import Batch
from leantune.data.splits import Rows, frame
from leantune.errors import BadInput

if TYPE_CHECKING:
    from datasets import Dataset

SEPARATOR = "\n"


def encode(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, length: int, max_new_tokens: int, answered: bool
) -> dict[str, list[Any]]:
    """`input_ids` of the examples' `text` and, where `answered`, of the first of their
    `references`.

    `prompt` says how many of them are not the answer's. An answer has at most `max_new_tokens`, its
    end token among them, a prompt what is left of `length`; both are cut at their end. Without
    `answered` (a test split) nothing of the references is in the tokens, so that a vocabulary
    counted on them does not know the answers. Raises BadInput where no room is left for a prompt,
    or for a tokenizer without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise BadInput("generation needs a tokenizer with an end token; take another model")
    begin, _ = frame(tokenizer)
    separator = tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]
    room = length - max_new_tokens - len(begin) - len(separator)
    if room < 1:
        raise BadInput(
            f"length {length} leaves no room for a prompt before max_new_tokens {max_new_tokens}; "
            "raise it"
        )

    def tokens(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    prompts = [[*begin, *ids[:room], *separator] for ids in tokens(rows["text"])]
    ids = prompts
    if answered:
        wanted = tokens([references[0] for references in rows["references"]])
        ends = [[*answer, tokenizer.eos_token_id][:max_new_tokens] for answer in wanted]
        ids = [prompt + end for prompt, end in zip(prompts, ends, strict=True)]
    return {
        "input_ids": ids,
        "attention_mask": [[1] * len(i) for i in ids],
        "prompt": [len(p) for p in prompts],
    }


def encode_apart(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    max_new_tokens: int | None,
    answered: bool,
) -> dict[str, list[Any]]:
    """`input_ids` of the examples' `text`, cut to `length`, and as `labels` the tokens of the first
    of their `references`, cut to `max_new_tokens` (without it to `length`).

    Without `answered` (a test split whose answers are written) there are no `labels`: a vocabulary
    counted on them would know the answers. Raises BadInput for a tokenizer without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise BadInput("an answer is written up to an end token; take a model whose tokenizer has")
    cut = {"truncation": True, "verbose": False}
    ids = tokenizer(rows["text"], max_length=length, **cut)["input_ids"]
    made = {"input_ids": ids, "attention_mask": [[1] * len(i) for i in ids]}
    if answered:
        first = [references[0] for references in rows["references"]]
        targets = tokenizer(text_target=first, max_length=max_new_tokens or length, **cut)
        made["labels"] = targets["input_ids"]
    return made


def prompts(rows: Dataset, pad_id: int, size: int) -> Iterator[Batch]:
    """The examples' prompts, `size` at once, padded on the left, where no token is written after
    padding."""
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        ids = [
            torch.tensor(i[:prompt])
            for i, prompt in zip(some["input_ids"], some["prompt"], strict=True)
        ]
        input_ids = pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side="left")
        mask = pad_sequence(
            [torch.ones_like(i) for i in ids], batch_first=True, padding_side="left"
        )
        yield {"input_ids": input_ids, "attention_mask": mask}
