"""The promises of the statistics, kept in simulation; the figures of docs/statistics.md with fewer
runs."""

import math

import pytest
from simulated_coverage import (
    example_coverage,
    in_first_tier,
    kept_together,
    seed_bootstrap_coverage,
    t_coverage,
)


def error(rate: float, runs: int) -> float:
    """Three standard errors of a rate found in so many runs."""
    return 3 * math.sqrt(rate * (1 - rate) / runs)


@pytest.mark.parametrize("seeds", [3, 5])
def test_t_intervals_cover_what_they_say(seeds):
    assert t_coverage(seeds, 4000) == pytest.approx(0.95, abs=error(0.95, 4000))


def test_a_percentile_bootstrap_of_three_seeds_covers_far_less():
    assert seed_bootstrap_coverage(3, 4000) == pytest.approx(0.75, abs=error(0.75, 4000) + 0.03)


def test_the_interval_over_test_examples_covers_what_it_says():
    assert example_coverage(200, 400) == pytest.approx(0.95, abs=error(0.95, 400))


@pytest.mark.parametrize(
    ("methods", "seeds", "runs"), [(2, 3, 2000), (5, 5, 300), (12, 2, 150), (12, 3, 150)]
)
def test_truly_equal_methods_share_tier_one(methods, seeds, runs):
    assert kept_together(methods, seeds, runs) >= 0.95 - error(0.95, runs)


def test_one_noisy_method_hardly_splits_equal_ones_where_one_spread_for_all_would():
    assert kept_together(8, 3, 400, noisier=10.0) > 0.88
    assert kept_together(8, 3, 400, "pooled", noisier=10.0) < 0.84


def test_lent_spread_tells_methods_apart_that_three_seeds_alone_cannot():
    assert in_first_tier(12, 3, 30) < 5
    assert in_first_tier(12, 3, 30, "plain") > 10


def test_a_noisy_method_does_not_hide_what_separates_the_others():
    assert in_first_tier(12, 3, 30, noisier=10.0) < 5
    assert in_first_tier(12, 3, 30, "all placed", noisier=10.0) > 7


def test_correcting_for_the_comparisons_of_the_best_alone_would_split_too_many():
    """Why the correction is over all pairs."""
    assert kept_together(8, 5, 400, "best only") < 0.95 - error(0.95, 500)
