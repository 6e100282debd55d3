"""A model's forward passes over batches, and what they take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from leantune.api import Batch
from leantune.meter.tensors import TensorMeter
from leantune.train import _autocast, _now, _to

TARGETS = ("labels", "start_positions", "end_positions")  # what a batch has for its loss


class Inference:
    """Speed and memory of a model's forward passes, taken from an evaluation that is made anyway.

    The first pass, which also warms up, is metered; the others are timed.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        self.model, self.device = model, device
        self.peak_bytes: int | None = None
        self.tokens_per_second: list[float] = []

    def __call__(self, forward: Callable[[Batch], Any], inputs: Batch) -> Any:
        """What `forward` gives for `inputs`. Its tokens are those of the inputs, or those that it gives (in lists)."""
        if self.peak_bytes is None:
            meter = TensorMeter()
            with meter:
                meter.track(inputs.values(), "inputs")
                meter.watch(self.model)
                meter.mark("forward")
                output = forward(inputs)
            self.peak_bytes = meter.result().peak_bytes
            return output
        started = _now(self.device)
        output = forward(inputs)
        seconds = _now(self.device) - started
        tokens = sum(map(len, output)) if isinstance(output, list) else int(inputs["attention_mask"].sum())
        self.tokens_per_second.append(tokens / seconds)
        return output

    def result(self) -> dict[str, Any]:
        """The `inference` entry of a record; the speed is the median over the timed passes."""
        return {
            "tokens_per_second": statistics.median(self.tokens_per_second),
            "peak_bytes": self.peak_bytes,
            "parameters": sum(p.numel() for p in {id(p): p for p in self.model.parameters()}.values()),
        }


@torch.no_grad()
def passes(
    model: nn.Module,
    batches: Iterable[Batch],
    device: str,
    dtype: str,
    inference: Inference | None = None,
    forward: Callable[[Batch], Any] | None = None,
) -> Iterator[tuple[Any, Batch]]:
    """Each batch on the device, with what `forward` (default: the model in eval mode) makes of its inputs."""
    model.eval()

    def run(inputs: Batch) -> Any:
        with _autocast(device, dtype):
            return forward(inputs) if forward else model(**inputs)

    for batch in batches:
        batch = _to(batch, device)
        inputs = {k: v for k, v in batch.items() if k not in TARGETS}
        yield (inference(run, inputs) if inference else run(inputs)), batch
    if inference and not inference.tokens_per_second:  # a single batch: once more, to be timed
        inference(run, inputs)
