"""Accuracy, F1 of the second class, and Matthews' correlation."""

from collections.abc import Sequence

from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def scores(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Predictions and references are class indices 0 and 1; class 1 is the positive one (GLUE:
    acceptable, equivalent, duplicate).

    `binary_f1` is 0 where nothing is predicted positive or is so, and `matthews` is 0 where one
    list is constant.
    """
    predicted, truth = [int(p) for p in predictions], [int(r) for r in references]
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "binary_f1": float(f1_score(truth, predicted, zero_division=0)),
        "matthews": float(matthews_corrcoef(truth, predicted)),
    }
