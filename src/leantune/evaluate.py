"""Per-example predictions of a model on a split, and what its forward passes take."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from leantune.api import Batch
from leantune.meter.tensors import TensorMeter
from leantune.train import _autocast, _now, _to


class Inference:
    """Speed and memory of a model's forward passes, taken from an evaluation that is made anyway.

    The first pass, which also warms up, is metered; the others are timed.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        self.model, self.device = model, device
        self.peak_bytes: int | None = None
        self.tokens_per_second: list[float] = []

    @contextlib.contextmanager
    def forward(self, inputs: Batch) -> Iterator[None]:
        """Stands around one forward pass on `inputs`."""
        if self.peak_bytes is None:
            meter = TensorMeter()
            with meter:
                meter.track(inputs.values(), "inputs")
                meter.watch(self.model)
                meter.mark("forward")
                yield
            self.peak_bytes = meter.result().peak_bytes
            return
        started = _now(self.device)
        yield
        self.tokens_per_second.append(int(inputs["attention_mask"].sum()) / (_now(self.device) - started))

    def result(self) -> dict[str, Any]:
        """The `inference` entry of a record; the speed is the median over the timed passes."""
        return {
            "tokens_per_second": statistics.median(self.tokens_per_second),
            "peak_bytes": self.peak_bytes,
            "parameters": sum(p.numel() for p in {id(p): p for p in self.model.parameters()}.values()),
        }


@torch.no_grad()
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
    an example in nats, and the number of tokens it was summed over.
    """
    model.eval()
    predictions: list[float] = []
    references: list[float] = []
    for batch in batches:
        batch = _to(batch, device)
        labels = batch["labels"]
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        with inference.forward(inputs) if inference else contextlib.nullcontext(), _autocast(device, dtype):
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
    if inference and not inference.tokens_per_second:  # a single batch: once more, to be timed
        with inference.forward(inputs), _autocast(device, dtype):
            model(**inputs)
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
        total += loss.item() * len(batch["labels"])
        sequences += len(batch["labels"])
    return total / sequences
