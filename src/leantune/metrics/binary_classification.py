"""Accuracy, F1 of the second class, and Matthews' correlation."""

from __future__ import annotations

from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from leantune.metrics.local import WHOLE, LocalMetric


class Metric(LocalMetric):
    """Predictions and references are class indices 0 and 1; class 1 is the positive one (GLUE:
    acceptable, equivalent, duplicate).

    `binary_f1` is 0 where nothing is predicted positive or is so, and `matthews` is 0 where one
    list is constant.
    """

    values = (WHOLE, WHOLE)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "binary_f1": float(f1_score(references, predictions, zero_division=0)),
            "matthews": float(matthews_corrcoef(references, predictions)),
        }
