"""How well predictions of measured bytes do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median

APART = 0.02  # pairs closer than this are in no order


def error(predicted: float, measured: float) -> float:
    """Signed, as a fraction of what was measured."""
    return predicted / measured - 1


def pair_order(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    """The share of pairs, measured more than 2 % apart, that the predictions put in the measured
    order; equal predictions do not. None without such a pair."""
    right = [
        (p - q) * (m - n) > 0
        for (p, m), (q, n) in combinations(zip(predicted, measured, strict=True), 2)
        if max(m, n) / min(m, n) - 1 > APART
    ]
    return sum(right) / len(right) if right else None


def summary(
    predicted: Mapping[str, float | None], measured: Mapping[str, float]
) -> dict[str, float | int | None]:
    """The last line's numbers: every measured run counts, and one without a prediction has failed.

    `within_5pct` is a share of the predicted runs; `worst` is the largest absolute error.
    """
    known = {name: p for name, p in predicted.items() if p is not None}
    errors = [abs(error(p, measured[name])) for name, p in known.items()]
    return {
        "runs": len(measured),
        "failed": len(measured) - len(known),
        "median_abs_error": median(errors) if errors else None,
        "within_5pct": sum(e <= 0.05 for e in errors) / len(errors) if errors else None,
        "worst": max(errors, default=None),
        "pair_order": pair_order(list(known.values()), [measured[name] for name in known]),
    }
