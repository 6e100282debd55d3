"""Pearson and Spearman correlation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from leantune.metrics.local import REAL, LocalMetric


class Metric(LocalMetric):
    """Predictions and references are real numbers.

    `pearson` and `spearman` lie in -1 ... 1. Both are None where one list is constant or not
    finite, or holds fewer than two numbers: no correlation is defined there, and 0 would claim one.
    """

    values = (REAL, REAL)

    def _compute(
        self, predictions: list[float], references: list[float]
    ) -> dict[str, float | None]:
        if not _varies(predictions) or not _varies(references):
            return {"pearson": None, "spearman": None}
        return {
            "pearson": _finite(pearsonr(predictions, references).statistic),
            "spearman": _finite(spearmanr(predictions, references).statistic),
        }


def _varies(values: list[float]) -> bool:
    return bool(np.isfinite(values).all() and np.ptp(values) > 0)


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
