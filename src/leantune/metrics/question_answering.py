"""Exact match and token F1 of answers, by SQuAD's rules."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Predictions are texts, references lists of right answers. Both scores are means over the
    examples, 0 to 1."""
    pairs = list(zip(predictions, references, strict=True))
    return {name: sum(score(*pair) for pair in pairs) / len(pairs) for name, score in EACH.items()}


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """The harmonic mean of precision and recall over the normalised words, repeated ones counted as
    often as they occur; of several references the best. Two answers without words are the same."""
    return max(_f1(_words(prediction), _words(reference)) for reference in references)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the normalised words are those of one reference, in order, else 0."""
    return float(any(_words(prediction) == _words(reference) for reference in references))


EACH = {"token_f1": token_f1, "exact_match": exact_match}  # the score of one example


def _words(text: str) -> list[str]:
    """SQuAD's normalisation (arXiv 1606.05250, section 6.1): lower case, no punctuation, no
    articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(predicted: list[str], right: list[str]) -> float:
    if not predicted or not right:
        return float(predicted == right)
    shared = sum((Counter(predicted) & Counter(right)).values())
    return 2 * shared / (len(predicted) + len(right))
