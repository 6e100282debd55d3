"""Accuracy and macro F1."""

from __future__ import annotations

from sklearn.metrics import accuracy_score, f1_score

from leantune.metrics.local import WHOLE, LocalMetric


class Metric(LocalMetric):
    """Predictions and references are class indices.

    `accuracy` is the share that agrees. `macro_f1` is the unweighted mean of F1 over the classes
    that occur in either list; a class that is never predicted, or never right, counts 0.
    """

    values = (WHOLE, WHOLE)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
        }
