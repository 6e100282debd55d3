"""BLEU of written texts, by sacrebleu."""

from __future__ import annotations

import itertools

import datasets
from sacrebleu.metrics import BLEU

from leantune.metrics.local import TEXT, LocalMetric


class Metric(LocalMetric):
    """Predictions are texts, references lists of right ones. Scores are 0 to 100, as sacrebleu
    gives them.

    `bleu` is that of the whole corpus, which papers report (case kept, tokenizer 13a, exponential
    smoothing). `sentence_bleu` is the mean over the examples of BLEU with the n-gram orders that a
    text has: unlike `bleu` it follows from one number of each example, so that two methods can be
    compared on resampled examples.
    """

    values = (TEXT, datasets.List(TEXT))

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        streams = list(
            itertools.zip_longest(*references)
        )  # the i-th references of all examples; None where it has fewer
        each = [
            sentence_bleu(text, right) for text, right in zip(predictions, references, strict=True)
        ]
        return {
            "bleu": BLEU().corpus_score(predictions, streams).score,
            "sentence_bleu": sum(each) / len(each),
        }


def sentence_bleu(prediction: str, references: list[str]) -> float:
    """BLEU of one text against all its references, 0 to 100; a text of fewer than four words by its
    shorter n-grams."""
    return float(BLEU(effective_order=True).sentence_score(prediction, references).score)


EACH = {"sentence_bleu": sentence_bleu}  # the score of one example
