"""BLEU of written texts, by sacrebleu."""

import itertools
from collections.abc import Sequence

from sacrebleu.metrics import BLEU


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Predictions are texts, references lists of right ones. Scores are 0 to 100, as sacrebleu
    gives them.

    `bleu` is that of the whole corpus, which papers report (case kept, tokenizer 13a, exponential
    smoothing). `sentence_bleu` is the mean over the examples of BLEU with the n-gram orders that a
    text has: unlike `bleu` it follows from one number of each example, so that two methods can be
    compared on resampled examples.
    """
    # sacrebleu takes the i-th references of all examples; None where an example has fewer
    streams = list(itertools.zip_longest(*references))
    each = [sentence_bleu(text, right) for text, right in zip(predictions, references, strict=True)]
    return {
        "bleu": BLEU().corpus_score(predictions, streams).score,
        "sentence_bleu": sum(each) / len(each),
    }


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """BLEU of one text against all its references, 0 to 100; a text of fewer than four words by its
    shorter n-grams."""
    return float(BLEU(effective_order=True).sentence_score(prediction, references).score)


EACH = {"sentence_bleu": sentence_bleu}  # the score of one example
