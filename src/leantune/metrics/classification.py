"""Accuracy and macro F1."""

from collections.abc import Sequence

from sklearn.metrics import accuracy_score, f1_score


def scores(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Predictions and references are class indices.

    `accuracy` is the share that agrees. `macro_f1` is the unweighted mean of F1 over the classes
    that occur in either list; a class that is never predicted, or never right, counts 0.
    """
    predicted, truth = [int(p) for p in predictions], [int(r) for r in references]
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
    }
