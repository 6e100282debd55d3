"""Pearson and Spearman correlation."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr


def scores(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float | None]:
    """Predictions and references are real numbers.

    `pearson` and `spearman` lie in -1 ... 1. Both are None where one list is constant or not
    finite, or holds fewer than two numbers: no correlation is defined there, and 0 would claim one.
    """
    both = np.array([predictions, references], dtype=np.float64)
    if not (np.isfinite(both).all() and np.ptp(both, axis=1).all()):
        return {"pearson": None, "spearman": None}
    found = {"pearson": pearsonr(*both).statistic, "spearman": spearmanr(*both).statistic}
    # of numbers that are nearly constant a correlation may still be no number
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}
