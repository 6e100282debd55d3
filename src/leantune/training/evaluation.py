"""Per-example predictions of a model on a split, and what its forward passes take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from leantune.api import LANGUAGE_MODELS, Batch, Data
from leantune.data import generation, question_answering
from leantune.data.collate import batches as batches_of
from leantune.meter.tensors import TensorMeter
from leantune.training.loop import autocast, now, to_device

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
        """What `forward` gives for `inputs`. Its tokens are those of the inputs, or those that it
        gives (in lists)."""
        if self.peak_bytes is None:
            meter = TensorMeter()
            with meter:
                meter.track(inputs.values(), "inputs")
                meter.watch(self.model)
                meter.mark("forward")
                output = forward(inputs)
            self.peak_bytes = meter.result().peak_bytes
            return output
        started = now(self.device)
        output = forward(inputs)
        seconds = now(self.device) - started
        tokens = (
            sum(map(len, output))
            if isinstance(output, list)
            else int(inputs["attention_mask"].sum())
        )
        self.tokens_per_second.append(tokens / seconds)
        return output

    def result(self) -> dict[str, Any]:
        """The `inference` entry of a record; the speed is the median over the timed passes."""
        return {
            "tokens_per_second": statistics.median(self.tokens_per_second),
            "peak_bytes": self.peak_bytes,
            "parameters": sum(
                p.numel() for p in {id(p): p for p in self.model.parameters()}.values()
            ),
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
    """Each batch on the device, with what `forward` (default: the model in eval mode) makes of its
    inputs."""
    model.eval()

    def run(inputs: Batch) -> Any:
        with autocast(device, dtype):
            return forward(inputs) if forward else model(**inputs)

    for batch in batches:
        batch = to_device(batch, device)
        inputs = {k: v for k, v in batch.items() if k not in TARGETS}
        yield (inference(run, inputs) if inference else run(inputs)), batch
    if inference and not inference.tokens_per_second:  # a single batch: once more, to be timed
        inference(run, inputs)


def predict(
    model: nn.Module,
    data: Data,
    split: str,
    training: Mapping[str, Any],
    device: str,
    inference: Inference | None = None,
) -> tuple[list[Any], list[Any]]:
    """(predictions, references) on a split, one of each per example, in order: numbers (see
    `predict_split`), or the model's answer and all the right ones, texts. `training` are the task's
    settings."""
    rows, dtype = getattr(data, split), training["dtype"]
    if data.kind == "span":
        return span_answers(model, rows, evaluation_batches(data, split), device, dtype, inference)
    if data.kind == "generation":
        assert data.tokenizer is not None
        most, size = training["max_new_tokens"], _size(data)
        return written_answers(model, rows, data.tokenizer, most, size, device, dtype, inference)
    return predict_split(
        model, evaluation_batches(data, split), data.kind, device, dtype, inference
    )


def evaluation_batches(data: Data, split: str) -> Iterator[Batch]:
    """A split once, in order. A language model's logits over a full vocabulary are large: 8 at once
    keep them small."""
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

    Classification: class indices. Regression: values. Language modelling: the summed negative
    log-likelihood of an example in nats, and the number of tokens it was summed over.
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
            losses = nn.functional.cross_entropy(
                scores.transpose(1, 2).float(), targets, reduction="none"
            )
            predictions += losses.sum(1).tolist()
            references += targets.ne(-100).sum(1).float().tolist()
    return predictions, references


def span_answers(
    model: nn.Module,
    rows: Dataset,
    batches: Iterable[Batch],
    device: str,
    dtype: str,
    inference: Inference | None,
) -> tuple[list[str], list[list[str]]]:
    """(answers, references) of each example, in order; `batches` are those of the windows `rows`.

    The answer is the span of the context with the highest sum of start and end score over the
    example's windows.
    """
    best: dict[int, tuple[float, str, list[str]]] = {}
    at = 0
    for output, _ in passes(model, batches, device, dtype, inference):
        count, width = output.start_logits.shape
        some = rows[at : at + count]
        at += count
        inside = torch.zeros(count, width, dtype=torch.bool)
        for i, begins in enumerate(some["begins"]):
            inside[i, : len(begins)] = torch.tensor(begins) >= 0
        for i, (score, begin, end) in enumerate(
            question_answering.best_spans(output.start_logits, output.end_logits, inside)
        ):
            example = some["example"][i]
            if example not in best or score > best[example][0]:
                text = some["pair"][i][some["begins"][i][begin] : some["ends"][i][end]]
                best[example] = (score, text, some["references"][i])
    ordered = [best[example] for example in sorted(best)]
    return [text for _, text, _ in ordered], [references for _, _, references in ordered]


@torch.no_grad()
def written_answers(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    batch: int,
    device: str,
    dtype: str,
    inference: Inference | None,
) -> tuple[list[str], list[list[str]]]:
    """(texts, references) of each example: what the model writes after its prompt by greedy
    decoding."""
    end = tokenizer.eos_token_id
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "min_length": 0,
        "use_cache": True,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }

    def generate(inputs: Batch) -> list[list[int]]:
        written = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :].tolist()  # type: ignore[operator]
        return [ids[: ids.index(end) + 1] if end in ids else ids for ids in written]

    found: list[str] = []
    for written, _ in passes(
        model,
        generation.prompts(rows, tokenizer.pad_token_id, batch),
        device,
        dtype,
        inference,
        generate,
    ):
        found += [
            text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)
        ]
    return found, list(rows["references"])


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Batch], device: str, dtype: str) -> float:
    """The training loss in eval mode, averaged over the batches by their number of sequences."""
    model.eval()
    total, sequences = 0.0, 0
    for batch in batches:
        batch = to_device(batch, device)
        with autocast(device, dtype):
            loss = model(**batch).loss
        total += loss.item() * len(batch["input_ids"])
        sequences += len(batch["input_ids"])
    return total / sequences
