"""How often the leaderboard's statistics hold what they promise, by simulation: `python tests/simulated_coverage.py`.

Prints the figures of docs/statistics.md; `test_coverage.py` checks them with fewer runs.
"""

from __future__ import annotations

import numpy as np
from scipy import stats as scipy_stats

from leantune import stats


def t_coverage(seeds: int, runs: int) -> float:
    """How often the 95 % t interval of a method's mean over normal seeds holds the true mean."""
    draws = np.random.default_rng(10 + seeds).normal(0.8, 0.01, size=(runs, seeds))
    found = [stats.t_interval(list(row)) for row in draws]
    return sum(f.low <= 0.8 <= f.high for f in found) / runs


def seed_bootstrap_coverage(seeds: int, runs: int) -> float:
    """The same of a percentile bootstrap of the seeds, which the leaderboard does not use."""
    draws = np.random.default_rng(20 + seeds).normal(0.8, 0.01, size=(runs, seeds))
    found = scipy_stats.bootstrap((draws,), np.mean, axis=-1, method="percentile", n_resamples=999, rng=1)
    return float(np.mean((found.confidence_interval.low <= 0.8) & (found.confidence_interval.high >= 0.8)))


def example_coverage(examples: int, runs: int) -> float:
    """How often the bootstrap interval over test examples of one trained model holds its true accuracy, 0.8."""
    rng = np.random.default_rng(30)
    hits = rng.random((runs, examples)) < 0.8
    scores = [stats.weighted_score("accuracy", list(row.astype(float)), [1.0] * examples) for row in hits]
    bounds = [stats.drawn_bounds(drawn) for drawn in stats.resampled(scores, examples)]
    return sum(low <= 0.8 <= high for low, high in bounds) / runs


def kept_together(methods: int, seeds: int, runs: int, best_only: bool = False) -> float:
    """How often truly equal methods all share tier 1. `best_only`: Holm over the best's own comparisons, as a
    reader would first think of it; too liberal, since the best was chosen by looking."""
    rng = np.random.default_rng(40 + methods)
    together = 0
    for _ in range(runs):
        scores = dict(enumerate(rng.normal(0.8, 0.01, size=(methods, seeds))))
        names = {str(method): float(row.mean()) for method, row in scores.items()}
        p = lambda a, b, scores=scores: stats.paired_t(scores[int(a)], scores[int(b)]).p  # noqa: E731
        if best_only:
            best = max(names, key=lambda name: names[name])
            together += min(stats.holm([p(best, other) for other in names if other != best])) > 0.05
        else:
            together += max(stats.tiers(names, p).values()) == 1
    return together / runs


def main() -> None:
    """Print every figure with three standard errors of the simulation."""
    for seeds in (2, 3, 5):
        print(f"t interval, {seeds} seeds: {t_coverage(seeds, 20_000):.3f} (+- 0.005)")
    for seeds in (3, 5):
        print(f"percentile bootstrap of {seeds} seeds: {seed_bootstrap_coverage(seeds, 20_000):.3f} (+- 0.009)")
    for examples in (200, 1000):
        print(f"bootstrap over {examples} test examples: {example_coverage(examples, 2000):.3f} (+- 0.015)")
    for methods in (2, 6, 12):
        for seeds in (3, 5):
            runs = 12_000 // methods
            rates = [kept_together(methods, seeds, runs, best_only) for best_only in (False, True)]
            error = 3 * (0.95 * 0.05 / runs) ** 0.5
            told = f"{rates[0]:.3f}, with Holm over the best's comparisons alone {rates[1]:.3f} (+- {error:.3f})"
            print(f"{methods} equal methods with {seeds} seeds share tier 1: {told}")


if __name__ == "__main__":
    main()
