"""Per-example predictions of a model on a split, and its mean loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from leantune import generation, spans
from leantune.api import Batch, Data
from leantune.data import batches as batches_of
from leantune.inference import Inference, passes
from leantune.train import _autocast, _to

LANGUAGE_MODELS = ("causal_lm", "masked_lm", "generation")  # scored over the full vocabulary, whose logits are large


def predict(
    model: nn.Module,
    data: Data,
    split: str,
    training: Mapping[str, Any],
    device: str,
    inference: Inference | None = None,
) -> tuple[list[Any], list[Any]]:
    """(predictions, references) on a split, one of each per example, in order: numbers (see `predict_split`), or the
    model's answer and all the right ones, texts. `training` are the task's settings."""
    rows, dtype = getattr(data, split), training["dtype"]
    if data.kind == "span":
        return spans.answers(model, rows, evaluation_batches(data, split), device, dtype, inference)
    if data.kind == "generation":
        assert data.tokenizer is not None
        most, size = training["max_new_tokens"], _size(data)
        return generation.answers(model, rows, data.tokenizer, most, size, device, dtype, inference)
    return predict_split(model, evaluation_batches(data, split), data.kind, device, dtype, inference)


def evaluation_batches(data: Data, split: str) -> Iterator[Batch]:
    """A split once, in order. A language model's logits over a full vocabulary are large: 8 at once keep them small."""
    assert data.collate is not None
    return batches_of(getattr(data, split), data.collate, _size(data))


def _size(data: Data) -> int:
    return 8 if data.kind in LANGUAGE_MODELS else 32


def predict_split(
    model: nn.Module,
    batches: Iterable[Batch],
    kind: str,
    device: str,
    dtype: str,
    inference: Inference | None = None,
) -> tuple[list[float], list[float]]:
    """(predictions, references), one of each per example, in order.

    Classification: class indices. Regression: values. Language modelling: the summed negative log-likelihood of
    an example in nats, and the number of tokens it was summed over. Texts are predicted in spans.py and generation.py.
    """
    predictions: list[float] = []
    references: list[float] = []
    for output, batch in passes(model, batches, device, dtype, inference):
        logits, labels = output.logits, batch["labels"]
        if kind == "classification":
            predictions += logits.argmax(-1).tolist()
            references += labels.tolist()
        elif kind == "regression":
            predictions += logits.squeeze(-1).float().tolist()
            references += labels.tolist()
        else:
            shift = 1 if kind == "causal_lm" else 0
            scores = logits[:, : logits.shape[1] - shift]
            targets = labels[:, shift:]
            losses = nn.functional.cross_entropy(scores.transpose(1, 2).float(), targets, reduction="none")
            predictions += losses.sum(1).tolist()
            references += targets.ne(-100).sum(1).float().tolist()
    return predictions, references


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Batch], device: str, dtype: str) -> float:
    """The training loss in eval mode, averaged over the batches by their number of sequences."""
    model.eval()
    total, sequences = 0.0, 0
    for batch in batches:
        batch = _to(batch, device)
        with _autocast(device, dtype):
            loss = model(**batch).loss
        total += loss.item() * len(batch["input_ids"])
        sequences += len(batch["input_ids"])
    return total / sequences
