"""Per-example predictions of a model on a split, and the task's metrics from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from leantune.api import Batch
from leantune.train import _autocast, _to


@torch.no_grad()
def predict_split(
    model: nn.Module, batches: Iterable[Batch], kind: str, device: str, dtype: str
) -> tuple[list[float], list[float]]:
    """(predictions, references), one of each per example, in order.

    Classification: class indices. Regression: values. Language modelling: the summed negative log-likelihood of
    an example in nats, and the number of tokens it was summed over.
    """
    model.eval()
    predictions: list[float] = []
    references: list[float] = []
    for batch in batches:
        batch = _to(batch, device)
        labels = batch["labels"]
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        with _autocast(device, dtype):
            logits = model(**inputs).logits
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
