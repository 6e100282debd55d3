"""Statistics of the leaderboard: intervals, paired tests, Holm's correction, and tiers.

Two sources of noise, two tools. Seeds: a t interval (a percentile bootstrap of 3 seeds covers 75 %
at best, not 95 %), and between the methods of a table a moderated t. Test examples: a paired
bootstrap, both methods scored on the same resample.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Array = NDArray[np.float64]
LEVEL = 0.95
POWER = 0.8
RESAMPLES = 10_000
STEADIEST = 1e-3  # the least variance of a pair that differs, as a share of the median one
CLASS_SCORES = ("accuracy", "macro_f1", "binary_f1", "matthews")  # that follow from counts
TEXT_SCORES = ("token_f1", "exact_match", "sentence_bleu")


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence bounds; the bounds are None where one value alone gives none."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """What is known of a - b: the estimate, its interval, and a two-sided p value of 'no
    difference'."""

    mean: float
    low: float
    high: float
    p: float


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of one or more independent values; no bounds for a single
    one."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(sorted(values))
    return Interval(mean, mean - float(half), mean + float(half))


def paired_t(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Difference:
    """a - b over the same seeds, in the same order; two or more. Raises ValueError otherwise."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError("a paired t interval needs the same two or more seeds of both methods")
    mean, variance = _moments([x - y for x, y in zip(a, b, strict=True)])
    return _t_difference(mean, math.sqrt(variance / len(a)), len(a) - 1, level)


def out_of_line(samples: Mapping[str, Sequence[float]], alpha: float = 0.01) -> set[str]:
    """The samples that vary far more than the others: Cochran's test of an outlying variance, as in
    ISO 5725-2, repeated without what it found; in its F form, which takes samples of unequal size.
    Those without two values or without any spread are left out, and of two alone neither is called
    so."""
    left = {
        name: (len(values) - 1, _moments(values)[1])
        for name, values in samples.items()
        if len(values) > 1
    }
    left = {name: left[name] for name in sorted(left) if left[name][1]}
    found: set[str] = set()
    while len(left) > 2:
        name = max(left, key=lambda name: left[name][1])
        degrees, variance = left.pop(name)
        free = sum(own for own, _ in left.values())
        others = math.fsum(own * spread for own, spread in left.values()) / free
        if (len(left) + 1) * stats.f.sf(variance / others, degrees, free) > alpha:
            break
        found.add(name)
    return found


def moderated_t(
    differences: Mapping[tuple[str, str], Sequence[float]], level: float = LEVEL
) -> dict[tuple[str, str], Difference]:
    """Paired t tests of many pairs of methods at once, which lend each other their spread. Keys are
    pairs of names, values the differences of the two over two or more shared seeds.

    Three seeds say little of how much one difference varies; those of all pairs say what is usual.
    This is Smyth's moderated t (doi 10.2202/1544-6115.1027): a pair's variance s2 with d degrees of
    freedom becomes (d0 s02 + d s2) / (d0 + d) with d0 + d degrees, but no more than all the scores
    together have. How much is lent, d0, follows from the variances themselves: all of it where they
    differ no more than by chance, little where they differ much. A pair alone has the plain paired
    t, and runs that are equal at every seed have no difference. Scores are counts of examples, so a
    difference may be the same at every seed by luck: no pair that differs has less than a
    thousandth of the median variance, below which three seeds fall one time in a thousand.
    """
    moments = {pair: _moments(values) for pair, values in differences.items()}
    degrees = {pair: len(values) - 1 for pair, values in differences.items()}
    least = STEADIEST * statistics.median(
        [variance for _, variance in moments.values() if variance] or [0.0]
    )
    moments = {
        pair: (mean, max(variance, least if mean else 0.0))
        for pair, (mean, variance) in moments.items()
    }
    lent, usual = _usual_variance(
        sorted((v, degrees[pair]) for pair, (_, v) in moments.items() if v)
    )
    most: dict[str, int] = {}
    for pair, own in degrees.items():
        most |= {name: max(own, most.get(name, 0)) for name in pair}
    free = sum(most.values()) - max(
        most.values(), default=0
    )  # of the residuals of methods and seeds
    found = {}
    for pair, (mean, variance) in moments.items():
        own = degrees[pair]
        if variance:
            variance = usual if math.isinf(lent) else (lent * usual + own * variance) / (lent + own)
        spread = math.sqrt(variance / len(differences[pair]))
        found[pair] = _t_difference(mean, spread, max(own, min(lent + own, free)), level)
    return found


def _usual_variance(varied: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """(d0, s02) of the scaled inverse chi-squared distribution that the variances, given with their
    degrees of freedom, were drawn from: moments of their logarithms (Smyth 2004, section 6.2). (0,
    0) where one variance alone tells of none."""
    if len(varied) < 2:
        return 0.0, 0.0
    variances, degrees = np.array(varied, dtype=np.float64).T
    logs = np.log(variances) - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = float(np.var(logs, ddof=1) - np.mean(special.polygamma(1, degrees / 2)))
    if excess <= 0:  # no more spread than chance has it
        return math.inf, float(np.exp(logs.mean()))
    most = (1 + math.sqrt(1 + 4 * excess)) / (
        2 * excess
    )  # as 1 / x < trigamma(x) < 1 / x + 1 / x^2
    half = float(optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1 / excess, most))
    return 2 * half, float(np.exp(logs.mean() + special.digamma(half) - math.log(half)))


def _moments(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and variance, with the same digits however the seeds are named. What rounding alone
    leaves is no variance."""
    values = sorted(differences)
    same = math.isclose(values[0], values[-1], rel_tol=1e-12, abs_tol=1e-12)
    return math.fsum(values) / len(values), 0.0 if same else statistics.variance(values)


def _t_difference(mean: float, spread: float, degrees: float, level: float) -> Difference:
    """From the standard error of the mean difference, 0 where it is the same at every seed."""
    if spread == 0:  # none at all, or one without any noise
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    half = spread * float(stats.t.ppf((1 + level) / 2, degrees))
    return Difference(
        mean, mean - half, mean + half, 2 * float(stats.t.sf(abs(mean) / spread, degrees))
    )


def pooled_deviation(samples: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation inside the samples, pooled by degrees of freedom; None where none has
    two values."""
    spread = [
        (len(sample) - 1, statistics.variance(sorted(sample)))
        for sample in samples
        if len(sample) > 1
    ]
    free = sum(degrees for degrees, _ in spread)
    return (
        math.sqrt(math.fsum(degrees * variance for degrees, variance in spread) / free)
        if free
        else None
    )


def seeds_needed(
    differences: Sequence[float], power: float = POWER, alpha: float = 1 - LEVEL, most: int = 100
) -> int | None:
    """The smallest number of seeds at which a two-sided paired t test finds a difference like the
    one observed, with its sign.

    Takes the mean and spread of `differences` (two or more seeds) as the truth and the exact power
    of the noncentral t distribution. None where the mean is 0 or more than `most` seeds would be
    needed.
    """
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if mean == 0:
        return None
    sizes = np.arange(2, most + 1)
    effect = abs(mean) / spread if spread else math.inf
    shift = np.minimum(effect * np.sqrt(sizes), 100.0)  # beyond it the power is 1 at any size
    limit = stats.t.isf(alpha / 2, sizes - 1)
    enough = np.flatnonzero(stats.nct.sf(limit, sizes - 1, shift) >= power)
    return int(sizes[enough[0]]) if len(enough) else None


def resampled(
    scores: Sequence[Callable[[Array], Array]], n: int, resamples: int = RESAMPLES, seed: int = 0
) -> list[Array]:
    """Each score on `n` test examples and on bootstrap resamples of them, (1 + resamples,); the
    first is the sample's.

    A score maps weights (rows, n), how often each example was drawn, to one value per row (rows,).
    All scores, in this call and in others of the same n and seed, see the same resamples, so their
    differences are paired.
    """
    rng = np.random.default_rng(seed)
    parts = [[score(np.ones((1, n))) for score in scores]]
    rows = max(1, 2**22 // n)  # 32 MiB of weights at a time
    for start in range(0, resamples, rows):
        draws = rng.integers(0, n, size=(min(rows, resamples - start), n))
        places = (draws + n * np.arange(len(draws))[:, None]).ravel()
        weights = np.bincount(places, minlength=draws.size).reshape(draws.shape).astype(np.float64)
        parts.append([score(weights) for score in scores])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def drawn_bounds(drawn: Array, level: float = LEVEL) -> tuple[float, float]:
    """Percentile bounds of a resampled score; infinite where no resample has a value."""
    values = drawn[1:][np.isfinite(drawn[1:])]  # a correlation on a constant resample has none
    if not len(values):
        return -math.inf, math.inf
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def drawn_difference(drawn: Array, level: float = LEVEL) -> Difference:
    """What the resamples of a difference of two scores say.

    The p value is twice the smaller tail beyond zero, ties counted in both, with the usual + 1, so
    it is never below 2 / (resamples + 1).
    """
    values = drawn[1:][np.isfinite(drawn[1:])]
    tail = min(int(np.sum(values <= 0)), int(np.sum(values >= 0)))
    return Difference(
        float(drawn[0]), *drawn_bounds(drawn, level), min(1.0, 2 * (tail + 1) / (len(values) + 1))
    )


def paired_bootstrap(
    score: Callable[[Array], Array],
    n: int,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Percentile bootstrap over `n` test examples of a difference of two scores (see
    `resampled`)."""
    return drawn_difference(resampled([score], n, resamples, seed)[0], level)


def weighted_score(
    metric: str, predictions: Sequence[float], references: Sequence[float] | None
) -> Callable:
    """The score of one method as a function of example weights (rows, n) -> (rows,).

    `accuracy`, `macro_f1`, `binary_f1` (of class 1), `matthews`, `pearson` and `spearman` compare
    predictions with references; Spearman's ranks are those of the whole test split. `loss` is the
    mean per token of the examples' summed losses, whose references are their numbers of tokens (one
    each where there are none), `perplexity` its exponential. The scores of texts (`TEXT_SCORES`)
    are means of the examples' own, whose references are 1. Raises KeyError for a metric that is not
    known.
    """
    values = np.asarray(predictions, dtype=np.float64)
    if metric in ("loss", "perplexity", *TEXT_SCORES):
        transform = np.exp if metric == "perplexity" else np.asarray
        tokens = (
            np.ones(len(values))
            if references is None or not len(references)
            else np.asarray(references, np.float64)
        )
        return lambda w: transform(w @ values / (w @ tokens))
    truth = np.asarray(references, dtype=np.float64)
    if metric == "accuracy":
        correct = (values == truth).astype(np.float64)
        return lambda w: w @ correct / w.sum(1)
    if metric == "macro_f1":
        return lambda w: _macro_f1(w, values, truth)
    if metric == "binary_f1":
        hits, named = values * truth, values + truth
        return lambda w: 2 * (w @ hits) / np.maximum(w @ named, 1)
    if (
        metric == "matthews"
    ):  # of two classes it is Pearson's correlation, and 0 where that is not defined
        return lambda w: np.nan_to_num(_pearson(w, values, truth))
    if metric == "spearman":
        values, truth = stats.rankdata(values), stats.rankdata(truth)
    elif metric != "pearson":
        raise KeyError(metric)
    return lambda w: _pearson(w, values, truth)


def _pearson(w: Array, x: Array, y: Array) -> Array:
    x, y = (
        x - x.mean(),
        y - y.mean(),
    )  # nearer to zero, so that the differences of moments keep their digits
    total = w.sum(1)
    mx, my = w @ x / total, w @ y / total
    cov = w @ (x * y) / total - mx * my
    with np.errstate(divide="ignore", invalid="ignore"):
        return cov / np.sqrt((w @ (x * x) / total - mx**2) * (w @ (y * y) / total - my**2))


def _macro_f1(w: Array, predicted: Array, truth: Array) -> Array:
    """The mean of F1 over the labels that occur in the resample, in references or predictions."""
    total = np.zeros(len(w))
    labels = np.zeros(len(w))
    for label in np.union1d(predicted, truth):
        hit = w @ ((predicted == label) & (truth == label)).astype(np.float64)
        seen = w @ (predicted == label).astype(np.float64) + w @ (truth == label).astype(np.float64)
        total += np.divide(2 * hit, seen, out=np.zeros(len(w)), where=seen > 0)
        labels += seen > 0
    return total / labels


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Scandinavian Journal of Statistics 6, 1979), in the order
    given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def tiers(
    scores: Mapping[str, float], p_value: Callable[[str, str], float], alpha: float = 1 - LEVEL
) -> dict[str, int]:
    """Tiers by removal, larger score better: the best and all not separable from it, then the rest
    again.

    `p_value(better, worse)` is the two-sided p of a paired test. Holm's correction is over all
    pairs: which method is the best was chosen by looking, and a correction for its own comparisons
    alone would split six equal methods in one of ten tables. Ties of the score are broken by name.
    """
    left = sorted(scores, key=lambda name: (-scores[name], name))
    pairs = list(itertools.combinations(left, 2))
    adjusted = dict(zip(pairs, holm([p_value(*pair) for pair in pairs]), strict=True))
    tier: dict[str, int] = {}
    for number in itertools.count(1):
        if not left:
            break
        level = [left[0], *(other for other in left[1:] if adjusted[left[0], other] > alpha)]
        tier.update(dict.fromkeys(level, number))
        left = [name for name in left if name not in level]
    return tier


def resamples_for(methods: int, alpha: float = 1 - LEVEL) -> int:
    """Resamples with which a bootstrap p value can be small enough for Holm's correction over all
    pairs."""
    return max(
        RESAMPLES, math.ceil(2 * methods * (methods - 1) / alpha)
    )  # twice what the least p, 2 / resamples, needs
