"""The scores of each kind of task, one module each, and the statistics that compare them."""

import importlib
from collections.abc import Sequence
from typing import Any

from leantune.errors import BadInput

MODULES = (
    "classification",
    "binary_classification",
    "regression",
    "language_modelling",
    "question_answering",
    "generation",
)
TEXTS = ("question_answering", "generation")  # whose predictions and references are texts


def compute(
    module: str, predictions: Sequence[Any], references: Sequence[Any]
) -> dict[str, float | None]:
    """The scores of a metric module by name; None where a score is not defined (see the modules).

    Raises BadInput for an unknown module, no examples, or lists of different lengths.
    """
    if module not in MODULES:
        raise BadInput(f"unknown metric module '{module}'; known: {', '.join(MODULES)}")
    if not predictions or len(predictions) != len(references):
        raise BadInput(
            f"{module} needs as many predictions as references and at least one; "
            f"got {len(predictions)} and {len(references)}"
        )
    # imported here, since scikit-learn and sacrebleu take a second
    return importlib.import_module(f"leantune.metrics.{module}").scores(predictions, references)


def kept(
    module: str, score: str, predictions: Sequence[Any], references: Sequence[Any]
) -> tuple[list[float], list[float]]:
    """What a record keeps of the examples: numbers as they are; of a text its own score, whose mean
    is the task's, and 1.

    Raises BadInput where the score is not a mean over the examples.
    """
    if module not in TEXTS:
        return list(predictions), list(references)
    each = importlib.import_module(f"leantune.metrics.{module}").EACH
    if score not in each:
        raise BadInput(
            f"a task cannot be scored by '{score}' of {module}; choose {', '.join(each)}"
        )
    scores = [each[score](text, right) for text, right in zip(predictions, references, strict=True)]
    return scores, [1.0] * len(scores)
