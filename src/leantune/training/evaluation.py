"""Per-example predictions of a model on a split, and what its forward passes take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from leantune.api import LANGUAGE_MODELS, Batch, Data
from leantune.data.collate import batches as batches_of
from leantune.data.generation import prompts
from leantune.data.question_answering import best_spans
from leantune.meter.tensors import TensorMeter
from leantune.training.loop import autocast, now, to_device

if TYPE_CHECKING:
    from datasets import Dataset

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
            with TensorMeter() as meter:
                meter.track(inputs.values(), "inputs")
                meter.watch(self.model)
                meter.mark("forward")
                output = forward(inputs)
            self.peak_bytes = meter.result().peak_bytes
            return output
        started = now(self.device)
        output = forward(inputs)
        seconds = now(self.device) - started
        written = isinstance(output, list)
        tokens = sum(map(len, output)) if written else int(inputs["attention_mask"].sum())
        self.tokens_per_second.append(tokens / seconds)
        return output

    def result(self) -> dict[str, Any]:
        """The `inference` entry of a record; the speed is the median over the timed passes."""
        return {
            "tokens_per_second": statistics.median(self.tokens_per_second),
            "peak_bytes": self.peak_bytes,
            "parameters": sum(p.numel() for p in self.model.parameters()),  # tied ones once
        }


@torch.no_grad()
def passes(
    model: nn.Module,
    batches: Iterable[Batch],
    device: str,
    dtype: str,
    inference: Inference | None = None,
    forward: Callable[[Batch], Any] | None = None,
    hidden: tuple[str, ...] = TARGETS,
) -> Iterator[tuple[Any, Batch]]:
    """Each batch on the device, with what `forward` (default: the model in eval mode) makes of its
    inputs: all but what is `hidden`."""
    model.eval()

    def run(inputs: Batch) -> Any:
        with autocast(device, dtype):
            return forward(inputs) if forward else model(**inputs)

    for batch in batches:
        batch = to_device(batch, device)
        inputs = {k: v for k, v in batch.items() if k not in hidden}
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
    rows, how = getattr(data, split), (device, training["dtype"], inference)
    most = training.get("max_new_tokens")
    if data.kind in ("generation", "seq2seq_lm") and most is not None:
        assert data.tokenizer is not None
        apart = evaluation_batches(data, split) if data.kind == "seq2seq_lm" else None
        return written_answers(model, rows, data.tokenizer, most, _size(data), *how, apart)
    batches = evaluation_batches(data, split)
    if data.kind == "span":
        return span_answers(model, rows, batches, *how)
    return predict_split(model, batches, data.kind, *how)


def evaluation_batches(data: Data, split: str) -> Iterator[Batch]:
    """A split once, in order."""
    assert data.collate is not None
    return batches_of(getattr(data, split), data.collate, _size(data))


def _size(data: Data) -> int:
    """Examples at once. A language model's logits over a full vocabulary are large."""
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
    # an encoder-decoder model makes its decoder's inputs of the targets
    hidden = () if kind == "seq2seq_lm" else TARGETS
    for output, batch in passes(model, batches, device, dtype, inference, hidden=hidden):
        logits, labels = output.logits, batch["labels"]
        if kind == "classification":
            found, right = logits.argmax(-1), labels
        elif kind == "regression":
            found, right = logits.squeeze(-1).float(), labels
        else:
            if kind == "causal_lm":  # the logits at a token are of the next one
                logits, labels = logits[:, :-1], labels[:, 1:]
            scores = logits.transpose(1, 2).float()
            found = nn.functional.cross_entropy(scores, labels, reduction="none").sum(1)
            right = labels.ne(-100).sum(1).float()
        predictions += found.tolist()
        references += right.tolist()
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
        some = rows[at : at + len(output.start_logits)]
        at += len(output.start_logits)
        inside = [torch.tensor(begins) >= 0 for begins in some["begins"]]
        spans = best_spans(
            output.start_logits, output.end_logits, pad_sequence(inside, batch_first=True)
        )
        for i, (score, begin, end) in enumerate(spans):
            example = some["example"][i]
            if example not in best or score > best[example][0]:
                text = some["pair"][i][some["begins"][i][begin] : some["ends"][i][end]]
                best[example] = (score, text, some["references"][i])
    ordered = [best[example] for example in sorted(best)]
    return [text for _, text, _ in ordered], [references for _, _, references in ordered]


@torch.no_grad()
def written_answers(
    model: Any,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    batch: int,
    device: str,
    dtype: str,
    inference: Inference | None,
    apart: Iterable[Batch] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """(texts, references) of each example: what the model writes after its prompt by greedy
    decoding. `apart` are the batches of an encoder-decoder model, which writes after its decoder's
    start token."""
    end = tokenizer.eos_token_id
    settings = {  # all that `generate` would else take from the checkpoint's own settings
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

    def write(inputs: Batch) -> list[list[int]]:
        begun = inputs["input_ids"].shape[1] if apart is None else 1
        written = model.generate(**inputs, **settings)[:, begun:].tolist()
        return [ids[: ids.index(end) + 1] if end in ids else ids for ids in written]

    batches = prompts(rows, tokenizer.pad_token_id, batch) if apart is None else apart
    found: list[str] = []
    for written, _ in passes(model, batches, device, dtype, inference, write):
        found += tokenizer.batch_decode(written, skip_special_tokens=True)
    return [text.strip() for text in found], list(rows["references"])


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
