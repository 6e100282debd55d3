"""How often the leaderboard's statistics hold what they promise, by simulation: `python
tests/simulated_coverage.py`.

Prints the figures of docs/statistics.md; `test_coverage.py` checks them with fewer runs.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
from scipy import stats as scipy_stats

from leantune.metrics import stats
from leantune.results import ranking


def t_coverage(seeds: int, runs: int) -> float:
    """How often the 95 % t interval of a method's mean over normal seeds holds the true mean."""
    draws = np.random.default_rng(10 + seeds).normal(0.8, 0.01, size=(runs, seeds))
    found = [stats.t_interval(list(row)) for row in draws]
    return sum(f.low <= 0.8 <= f.high for f in found) / runs


def seed_bootstrap_coverage(seeds: int, runs: int) -> float:
    """The same of a percentile bootstrap of the seeds, which the leaderboard does not use."""
    draws = np.random.default_rng(20 + seeds).normal(0.8, 0.01, size=(runs, seeds))
    found = scipy_stats.bootstrap(
        (draws,), np.mean, axis=-1, method="percentile", n_resamples=999, rng=1
    )
    return float(
        np.mean((found.confidence_interval.low <= 0.8) & (found.confidence_interval.high >= 0.8))
    )


def example_coverage(examples: int, runs: int) -> float:
    """How often the bootstrap interval over test examples of one trained model holds its true
    accuracy, 0.8."""
    rng = np.random.default_rng(30)
    hits = rng.random((runs, examples)) < 0.8
    scores = [
        stats.weighted_score("accuracy", list(row.astype(float)), [1.0] * examples) for row in hits
    ]
    bounds = [stats.drawn_bounds(drawn) for drawn in stats.resampled(scores, examples)]
    return sum(low <= 0.8 <= high for low, high in bounds) / runs


def kept_together(
    methods: int, seeds: int, runs: int, how: str = "moderated", noisier: float = 1.0
) -> float:
    """How often all truly equal methods that are placed share tier 1, one of them `noisier` times
    as noisy as the others.

    Ways that the leaderboard does not go: `plain` paired t tests, each with its own spread;
    `pooled`, one spread for all pairs; `best only`, moderated, but Holm over the best's own
    comparisons, as a reader would first think of it; `all placed`, moderated, with methods that are
    out of line.
    """
    rng = np.random.default_rng(40 + methods)
    together = 0
    for _ in range(runs):
        scores = rng.normal(0, 0.01, size=(methods, seeds))
        scores[0] *= noisier
        first, placed = _first_tier(0.8 + scores, how)
        together += len(first) == placed
    return together / runs


def in_first_tier(
    methods: int, seeds: int, runs: int, how: str = "moderated", noisier: float = 1.0
) -> float:
    """The mean number of methods in tier 1 where each is one standard deviation of a run below the
    one before, the last of them `noisier` times as noisy as the others."""
    rng = np.random.default_rng(50 + methods)
    steps, noise = 0.01 * np.arange(methods)[:, None], np.full((methods, 1), 0.01)
    noise[-1] *= noisier
    draws = [0.8 - steps + noise * rng.normal(size=(methods, seeds)) for _ in range(runs)]
    return float(np.mean([len(_first_tier(scores, how)[0]) for scores in draws]))


def _first_tier(scores: np.ndarray, how: str) -> tuple[set[str], int]:
    """(the methods of tier 1, how many are placed)."""
    names = [f"{number:03}" for number in range(len(scores))]
    rows = dict(zip(names, scores, strict=True))
    if how == "moderated":
        records = {
            name: [_record(seed, score) for seed, score in enumerate(row)]
            for name, row in rows.items()
        }
        tiers = ranking.standing(SimpleNamespace(ok=records)).tiers
        return {name for name, tier in tiers.items() if tier == 1}, len(tiers)
    pairs = {(a, b): list(rows[a] - rows[b]) for a, b in itertools.combinations(names, 2)}
    if how == "pooled":
        left = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
        free = (len(scores) - 1) * (scores.shape[1] - 1)
        spread = np.sqrt(2 * (left**2).sum() / free / scores.shape[1])
        found = {
            pair: 2 * scipy_stats.t.sf(abs(np.mean(d)) / spread, free) for pair, d in pairs.items()
        }
    elif how == "plain":
        found = {pair: stats.paired_t(d, [0.0] * len(d)).p for pair, d in pairs.items()}
    else:
        found = {pair: difference.p for pair, difference in stats.moderated_t(pairs).items()}
    means = {name: float(row.mean()) for name, row in rows.items()}
    if how == "best only":
        best = max(means, key=lambda name: means[name])
        others = [name for name in names if name != best]
        adjusted = stats.holm([found[min(best, name), max(best, name)] for name in others])
        return {best} | {name for name, p in zip(others, adjusted, strict=True) if p > 0.05}, len(
            names
        )
    tiers = stats.tiers(means, lambda a, b: found[min(a, b), max(a, b)])
    return {name for name, tier in tiers.items() if tier == 1}, len(names)


def _record(seed: int, score: float) -> dict:
    return {"cell": {"seed": seed}, "quality": {"value": float(score), "higher_is_better": True}}


def main() -> None:
    """Print every figure with three standard errors of the simulation."""
    for seeds in (2, 3, 5):
        print(f"t interval, {seeds} seeds: {t_coverage(seeds, 20_000):.3f} (+- 0.005)")
    for seeds in (3, 5):
        print(
            f"percentile bootstrap of {seeds} seeds: "
            f"{seed_bootstrap_coverage(seeds, 20_000):.3f} (+- 0.009)"
        )
    for examples in (200, 1000):
        print(
            f"bootstrap over {examples} test examples: "
            f"{example_coverage(examples, 2000):.3f} (+- 0.015)"
        )
    ways = ("moderated", "all placed", "plain", "pooled", "best only")
    for methods in (2, 6, 12, 23):
        runs = 6_000 // methods
        error = 3 * (0.95 * 0.05 / runs) ** 0.5
        for seeds, noisier in ((2, 1.0), (3, 1.0), (5, 1.0), (3, 10.0)):
            rates = [
                f"{how} {kept_together(methods, seeds, runs, how, noisier):.3f}" for how in ways
            ]
            equal = f"{methods} equal methods with {seeds} seeds" + (
                ", one ten times noisier" if noisier > 1 else ""
            )
            print(f"{equal} share tier 1: {', '.join(rates)} (+- {error:.3f})", flush=True)
        for seeds, noisier in ((3, 1.0), (5, 1.0), (3, 10.0)):
            sizes = [
                f"{how} {in_first_tier(methods, seeds, runs // 10, how, noisier):.1f}"
                for how in ways
            ]
            apart = f"{methods} methods one deviation apart, {seeds} seeds" + (
                ", the last ten times noisier" if noisier > 1 else ""
            )
            print(f"{apart}: in tier 1 {', '.join(sizes)}", flush=True)


if __name__ == "__main__":
    main()
