"""Statistics of the leaderboard: intervals, paired tests, Holm's correction, and tiers.

Two sources of noise, two tools. Seeds: a t interval (a percentile bootstrap of 3 seeds covers only about
75 % of what it promises). Test examples: a paired bootstrap, both methods scored on the same resample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence bounds; the bounds are None where one value alone gives none."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """What is known of a - b: the estimate, its interval, and a two-sided p value of 'no difference'."""

    mean: float
    low: float
    high: float
    p: float


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of independent values; no bounds for a single one."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return Interval(mean, mean - float(half), mean + float(half))


def paired_t(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Difference:
    """a - b over the same seeds, in the same order; two or more. Raises ValueError otherwise."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError("a paired t interval needs the same two or more seeds of both methods")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = math.fsum(differences) / len(differences)
    spread = float(stats.sem(differences))
    if spread == 0:  # the same difference at every seed: none at all, or one without any noise
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    half = spread * float(stats.t.ppf((1 + level) / 2, len(differences) - 1))
    p = 2 * float(stats.t.sf(abs(mean) / spread, len(differences) - 1))
    return Difference(mean, mean - half, mean + half, p)


def paired_bootstrap(
    score: Callable[[Array], Array], n: int, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Percentile bootstrap over `n` test examples of a difference of two scores.

    `score` maps weights (rows, n), how often each example was drawn, to one difference per row (rows,); a row
    of ones is the sample itself. The p value is twice the smaller tail beyond zero, ties counted in both, with
    the usual + 1, so it is never below 2 / (resamples + 1).
    """
    weights = _weights(n, resamples, seed)
    observed = float(score(np.ones((1, n)))[0])
    drawn = score(weights)
    drawn = drawn[np.isfinite(drawn)]  # a correlation on a constant resample has no value
    if not len(drawn):
        return Difference(observed, -math.inf, math.inf, 1.0)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int(np.sum(drawn <= 0)), int(np.sum(drawn >= 0)))
    return Difference(observed, float(low), float(high), min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))


@functools.lru_cache(maxsize=1)  # the methods of one leaderboard share their test examples
def _weights(n: int, resamples: int, seed: int) -> Array:
    """How often each example is drawn in each resample, (resamples, n)."""
    draws = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    return np.stack([np.bincount(row, minlength=n) for row in draws]).astype(np.float64)


def weighted_score(metric: str, predictions: Sequence[float], references: Sequence[float] | None) -> Callable:
    """The score of one method as a function of example weights (rows, n) -> (rows,).

    `accuracy`, `pearson` and `spearman` compare predictions with references; `loss` is the sum of the examples'
    losses over that of their token counts (the references; one each without them), `perplexity` its exponential. Spearman's ranks are those of the whole test split. Raises KeyError
    for a metric that is not known.
    """
    values = np.asarray(predictions, dtype=np.float64)
    if metric in ("loss", "perplexity"):
        transform = np.exp if metric == "perplexity" else np.asarray
        counts = (
            np.ones_like(values) if references is None or not len(references) else np.asarray(references, np.float64)
        )
        return lambda w: transform(w @ values / (w @ counts))
    truth = np.asarray(references, dtype=np.float64)
    if metric == "accuracy":
        correct = (values == truth).astype(np.float64)
        return lambda w: w @ correct / w.sum(1)
    if metric == "macro_f1":
        return lambda w: _macro_f1(w, values, truth)
    if metric == "spearman":
        values, truth = stats.rankdata(values), stats.rankdata(truth)
    elif metric != "pearson":
        raise KeyError(metric)
    return lambda w: _pearson(w, values, truth)


def _pearson(w: Array, x: Array, y: Array) -> Array:
    x, y = x - x.mean(), y - y.mean()  # nearer to zero, so that the differences of moments keep their digits
    total = w.sum(1)
    mx, my = w @ x / total, w @ y / total
    cov = w @ (x * y) / total - mx * my
    with np.errstate(divide="ignore", invalid="ignore"):
        return cov / np.sqrt((w @ (x * x) / total - mx**2) * (w @ (y * y) / total - my**2))


def _macro_f1(w: Array, predicted: Array, truth: Array) -> Array:
    """The mean of F1 over the labels that occur, among references or predictions, in the resample."""
    total = np.zeros(len(w))
    labels = np.zeros(len(w))
    for label in np.union1d(predicted, truth):
        hit = w @ ((predicted == label) & (truth == label)).astype(np.float64)
        seen = w @ (predicted == label).astype(np.float64) + w @ (truth == label).astype(np.float64)
        total += np.divide(2 * hit, seen, out=np.zeros(len(w)), where=seen > 0)
        labels += seen > 0
    return total / labels


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def tiers(
    scores: Mapping[str, float], p_value: Callable[[str, str], float], alpha: float = 1 - LEVEL
) -> dict[str, int]:
    """Tiers by removal, larger score better: the best and all not separable from it (Holm), then the rest again.

    `p_value(best, other)` is the two-sided p of a paired test. Ties of the score are broken by name.
    """
    tier: dict[str, int] = {}
    left = sorted(scores, key=lambda name: (-scores[name], name))
    number = 1
    while left:
        best, others = left[0], left[1:]
        adjusted = holm([p_value(best, other) for other in others])
        level = [best, *(o for o, p in zip(others, adjusted, strict=True) if p > alpha)]
        tier.update(dict.fromkeys(level, number))
        left = [name for name in left if name not in level]
        number += 1
    return tier
