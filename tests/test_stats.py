import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from leantune.metrics import stats

FINITE = st.floats(-1e3, 1e3)


def test_t_interval_is_students():
    found = stats.t_interval([0.7, 0.75, 0.83])
    mean = (0.7 + 0.75 + 0.83) / 3
    half = (
        4.302652729911275
        * math.sqrt(sum((x - mean) ** 2 for x in (0.7, 0.75, 0.83)) / 2)
        / math.sqrt(3)
    )
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))


def test_one_value_has_no_interval():
    assert stats.t_interval([0.5]) == stats.Interval(0.5, None, None)


@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=8))
def test_paired_t_agrees_with_scipy(pairs):
    a, b = zip(*pairs, strict=True)
    found = stats.paired_t(a, b)
    differences = np.subtract(a, b)
    if np.ptp(differences) > 1e-6:
        expected = scipy_stats.ttest_rel(a, b)
        assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
        interval = expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_paired_t_of_equal_and_of_noiseless_differences():
    assert stats.paired_t([0.1, 0.2], [0.1, 0.2]).p == 1.0
    assert stats.paired_t([1.0, 2.0], [0.5, 1.5]).p == 0.0
    with pytest.raises(ValueError, match="same two or more"):
        stats.paired_t([1.0], [1.0])


# ------------------------------------------------------------------ spread out of line


def of_variance(variance, size):
    """`size` values with that variance around 0.8."""
    values = np.arange(size) - (size - 1) / 2
    return list(0.8 + values * math.sqrt(variance / np.var(values, ddof=1)))


@pytest.mark.parametrize(
    ("samples", "size", "critical"),
    [(2 + 1, 2, 0.9933), (5, 3, 0.7885), (6, 3, 0.7218), (5, 5, 0.6329), (20, 4, 0.2654)],
)
def test_spread_is_out_of_line_beyond_cochrans_published_critical_values(samples, size, critical):
    """The largest variance over the sum of all, at 1 %, as tables of Cochran's test print it."""
    others = {f"m{i}": of_variance(1.0, size) for i in range(samples - 1)}
    # one line of arithmetic
    largest = lambda share: of_variance((samples - 1) * share / (1 - share), size)  # noqa: E731
    assert stats.out_of_line(others | {"svd": largest(critical + 2e-4)}) == {"svd"}
    assert stats.out_of_line(others | {"svd": largest(critical - 2e-4)}) == set()


def test_spread_out_of_line_is_sought_again_without_what_was_found():
    steady = {f"m{i}": of_variance(1e-4, 3) for i in range(8)}
    wild = {"a": of_variance(1.0, 3), "b": of_variance(0.1, 5)}
    assert stats.out_of_line(steady | wild) == {"a", "b"}
    assert stats.out_of_line({"full": [0.8, 0.8], "lora": [0.1, 0.9], "head": [0.5]}) == set()
    assert (
        stats.out_of_line({name: [0.7, 0.7, 0.7] for name in "abcd"} | {"e": [0.1, 0.5, 0.9]})
        == set()
    )


@given(st.permutations(["a", "b", "c", "d", "e"]))
def test_spread_out_of_line_does_not_depend_on_the_order(names):
    samples = {name: of_variance(1e-4 if name < "d" else 4.0, 4) for name in names}
    assert stats.out_of_line(samples) == stats.out_of_line(dict(sorted(samples.items())))


# ------------------------------------------------------------------ spread that pairs share


def drawn(pairs, spreads, seeds=4, seed=0):
    """Differences without an effect, whose true variances are `spreads`."""
    values = np.random.default_rng(seed).normal(0, np.sqrt(spreads)[:, None], size=(pairs, seeds))
    return {(f"a{i}", f"b{i}"): list(row) for i, row in enumerate(values)}


def test_a_pair_alone_has_the_plain_paired_t():
    values = [0.01, 0.03, 0.02]
    assert stats.moderated_t({("a", "b"): values})["a", "b"] == stats.paired_t(values, [0.0] * 3)
    assert stats.moderated_t({}) == {}


def test_the_moderated_t_is_that_of_smyth():
    """t, degrees of freedom and p written out from section 6 of the paper, with its moments solved
    by bisection."""
    data = drawn(40, 1 / np.random.default_rng(3).chisquare(4, 40))
    found = stats.moderated_t(data)
    s2 = np.array([np.var(d, ddof=1) for d in data.values()])  # one line of arithmetic
    # one line of arithmetic
    trigamma = lambda x: sum(1 / (x + n) ** 2 for n in range(20000)) + 1 / (x + 20000)  # noqa: E731
    digamma = lambda x: (math.lgamma(x + 1e-5) - math.lgamma(x - 1e-5)) / 2e-5  # noqa: E731
    e = np.log(s2) - digamma(1.5) + math.log(1.5)
    excess = np.var(e, ddof=1) - trigamma(1.5)
    low, high = 1e-3, 1e3
    for _ in range(60):
        low, high = (
            ((low + high) / 2, high)
            if trigamma((low + high) / 2) > excess
            else (low, (low + high) / 2)
        )
    d0 = 2 * low
    s02 = math.exp(e.mean() + digamma(low) - math.log(low))
    assert 1 < d0 < 50
    for (pair, values), own in zip(data.items(), s2, strict=True):
        t = np.mean(values) / math.sqrt((d0 * s02 + 3 * own) / (d0 + 3) / 4)
        assert found[pair].p == pytest.approx(2 * scipy_stats.t.sf(abs(t), d0 + 3), rel=1e-3)
        assert found[pair].mean == pytest.approx(np.mean(values))
        assert (found[pair].low > 0 or found[pair].high < 0) == (found[pair].p < 0.05)


def test_equal_spreads_are_pooled_and_unlike_ones_stand_for_themselves():
    """p of the same differences beside 200 pairs of their own spread, and beside 200 of all
    spreads."""
    mine = {("x", "y"): [0.9, 1.0, 1.1, 1.2]}  # one line of arithmetic
    alone = stats.moderated_t(mine)["x", "y"].p
    among = lambda spreads: stats.moderated_t(mine | drawn(200, spreads))["x", "y"].p  # noqa: E731
    assert among(np.full(200, 0.0167)) < alone / 30
    assert among(np.full(200, 4.0)) > 0.15  # what seems steady is luck where all else varies
    assert among(np.exp(np.linspace(-20, 20, 200))) == pytest.approx(alone, rel=0.5)


def test_degrees_of_freedom_are_no_more_than_the_scores_have():
    """Three methods with equal spreads over two seeds: (3 - 1) (2 - 1) = 2, however much the pairs
    agree."""
    data = {("a", "b"): [0.0, 1.0], ("a", "c"): [0.0, 1.01], ("b", "c"): [0.0, 0.99]}
    found = stats.moderated_t(data)["a", "b"]
    half = (found.high - found.low) / 2
    assert found.p == pytest.approx(
        2 * scipy_stats.t.sf(0.5 / (half / scipy_stats.t.ppf(0.975, 2)), 2)
    )


def test_what_never_differs_is_equal_and_what_differs_alike_borrows_a_spread():
    noise = drawn(30, np.full(30, 1e-4), seeds=3)
    twins = {("t", "u"): [0.0, 0.0, 0.0]}
    alike = {("v", "w"): [0.819 - 0.816, 0.803 - 0.8, 0.703 - 0.7]}  # up to rounding
    assert stats.moderated_t(noise | twins)["t", "u"] == stats.Difference(0.0, 0.0, 0.0, 1.0)
    found, without = stats.moderated_t(noise | twins), stats.moderated_t(noise)
    assert all(found[pair].p == pytest.approx(without[pair].p, rel=0.05) for pair in noise)
    assert 0.2 < stats.moderated_t(noise | alike)["v", "w"].p < 0.95
    assert stats.moderated_t(alike)["v", "w"].p == 0.0


def test_holm_by_hand_and_keeps_the_order_given():
    assert stats.holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_never_exceeds_bonferroni(p_values):
    for p, adjusted in zip(p_values, stats.holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, len(p_values) * p) + 1e-12


def test_tiers_by_removal():
    scores = {"a": 0.9, "b": 0.89, "c": 0.7, "d": 0.69, "e": 0.3}
    close = {frozenset("ab"), frozenset("cd")}
    found = stats.tiers(scores, lambda x, y: 1.0 if frozenset((x, y)) in close else 1e-6)
    assert found == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 3}


def test_tiers_correct_for_the_number_of_comparisons():
    scores = {"best": 1.0, "other": 0.9} | {f"n{i}": 0.8 for i in range(9)}
    # 0.03 decides between two, not among ten comparisons
    assert stats.tiers(scores, lambda a, b: 0.03)["other"] == 1
    assert stats.tiers({"best": 1.0, "other": 0.9}, lambda a, b: 0.03)["other"] == 2


@pytest.mark.parametrize(("p", "tier"), [(0.04, 2), (0.06, 1)])
def test_the_level_is_five_percent(p, tier):
    assert stats.tiers({"best": 1.0, "other": 0.9}, lambda a, b: p)["other"] == tier


@given(st.permutations(["a", "b", "c", "d"]))
def test_tiers_do_not_depend_on_the_order(order):
    scores = {"a": 0.9, "b": 0.9, "c": 0.5, "d": 0.4}
    p = {
        frozenset(pair): 0.001 * (1 + abs(hash(pair)) % 3)
        for pair in itertools.combinations("abcd", 2)
    }
    assert stats.tiers(
        {k: scores[k] for k in order}, lambda a, b: p[frozenset((a, b))]
    ) == stats.tiers(scores, lambda a, b: p[frozenset((a, b))])


# ------------------------------------------------------------------ bootstrap


def _difference(metric, a, b, truth):
    score_a, score_b = (stats.weighted_score(metric, x, truth) for x in (a, b))
    return stats.paired_bootstrap(lambda w: score_a(w) - score_b(w), len(a))


def test_bootstrap_of_identical_predictions_decides_nothing():
    truth = [0, 1] * 50
    found = _difference("accuracy", truth, truth, truth)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1.0)


def test_bootstrap_is_paired():
    """b is wrong where a is, and on 12 more of 1,000: unpaired noise (3 points) would hide it,
    pairing does not."""
    rng = np.random.default_rng(1)
    truth = np.zeros(1000)
    a = (rng.random(1000) < 0.3).astype(float)
    b = a.copy()
    b[np.flatnonzero(a == 0)[:12]] = 1
    found = _difference("accuracy", a, b, truth)
    assert found.mean == pytest.approx(0.012)
    assert 0 < found.low < 0.012 < found.high < 0.03
    assert found.p < 0.01


def test_bootstrap_interval_of_accuracy_is_near_the_normal_one():
    rng = np.random.default_rng(2)
    truth = np.zeros(2000)
    a, b = (rng.random(2000) < 0.2).astype(float), (rng.random(2000) < 0.25).astype(float)
    found = _difference("accuracy", a, b, truth)
    se = np.std((a == 0).astype(float) - (b == 0), ddof=1) / math.sqrt(2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * se, rel=0.05)


def test_bootstrap_p_is_two_sided():
    differences = np.random.default_rng(8).normal(0.03, 1, size=500)
    found = _difference("loss", differences, np.zeros(500), None)
    z = differences.mean() / scipy_stats.sem(differences)
    assert found.p == pytest.approx(2 * scipy_stats.norm.sf(abs(z)), abs=0.02)
    assert 0.1 < found.p < 0.9


@pytest.mark.parametrize(
    "metric",
    ["pearson", "spearman", "macro_f1", "binary_f1", "matthews", "accuracy", "loss", "perplexity"],
)
def test_weighted_scores_are_the_metrics_of_the_repeated_examples(metric):
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    rng = np.random.default_rng(3)
    if metric in ("pearson", "spearman"):
        truth = rng.normal(size=40) + 100
        predicted = truth + rng.normal(size=40)
    elif metric in ("loss", "perplexity"):
        predicted, truth = (
            9 * rng.random(40),
            rng.integers(1, 9, 40).astype(float),
        )  # tokens of each example
    else:
        classes = 2 if metric in ("binary_f1", "matthews") else 4
        truth = rng.integers(0, classes, 40).astype(float)
        predicted = np.where(rng.random(40) < 0.5, truth, rng.integers(0, classes, 40))
    reference = {
        "pearson": lambda x, y: scipy_stats.pearsonr(x, y)[0],
        "spearman": lambda x, y: scipy_stats.spearmanr(x, y)[0],
        "macro_f1": lambda x, y: f1_score(y, x, average="macro"),
        "binary_f1": lambda x, y: f1_score(y, x),
        "matthews": lambda x, y: matthews_corrcoef(y, x),
        "accuracy": lambda x, y: accuracy_score(y, x),
        "loss": lambda x, y: x.sum() / y.sum(),
        "perplexity": lambda x, y: np.exp(x.sum() / y.sum()),
    }[metric]
    score = stats.weighted_score(metric, predicted, truth)
    weights = np.ones((2, 40))
    if metric != "spearman":  # its ranks are those of the whole split
        weights[1] = rng.integers(0, 3, 40)
    for row, found in zip(weights, score(weights), strict=True):
        chosen = np.repeat(np.arange(40), row.astype(int))
        expected = reference(predicted[chosen], truth[chosen])
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["binary_f1", "matthews"])
def test_a_score_of_two_classes_is_0_where_only_the_first_is_predicted(metric):
    score = stats.weighted_score(metric, [0.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    assert score(np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])).tolist() == [0.0, 0.0]


def test_an_unknown_metric_is_an_error():
    with pytest.raises(KeyError):
        stats.weighted_score("bleu", [1.0], [1.0])


# ------------------------------------------------------------------ coverage


def _coverage(seeds: int, runs: int) -> tuple[float, float]:
    """How often the paired t interval, and a percentile bootstrap of the seeds, hold the true
    difference."""
    rng = np.random.default_rng(4)
    t = percentile = 0
    for _ in range(runs):
        shared = rng.normal(size=seeds)
        a, b = 0.3 + shared + rng.normal(size=seeds), shared + rng.normal(size=seeds)
        found = stats.paired_t(a, b)
        t += found.low <= 0.3 <= found.high
        means = (a - b)[rng.integers(0, seeds, size=(200, seeds))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        percentile += low <= 0.3 <= high
    return t / runs, percentile / runs


def test_the_t_interval_of_three_seeds_covers_what_it_says_and_a_bootstrap_does_not():
    t, percentile = _coverage(seeds=3, runs=700)
    assert t == pytest.approx(0.95, abs=0.03)
    assert percentile < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_coverage_of_the_t_interval_by_simulation(seeds):
    t, _ = _coverage(seeds, runs=6000)
    assert t == pytest.approx(0.95, abs=0.012)


@pytest.mark.slow
def test_coverage_and_false_alarms_of_the_paired_bootstrap_by_simulation():
    rng = np.random.default_rng(5)
    inside = alarms = 0
    runs = 400
    for _ in range(runs):
        both = rng.random(400) < 0.6
        a, b = (np.where(both, 0.0, rng.random(400) < 0.5) for _ in range(2))
        found = _difference("accuracy", a, b, np.zeros(400))
        inside += found.low <= 0 <= found.high
        alarms += found.p < 0.05
    assert inside / runs == pytest.approx(0.95, abs=0.035)
    assert alarms / runs < 0.09


@pytest.mark.slow
def test_tiers_rarely_split_equal_methods():
    rng = np.random.default_rng(6)
    split = 0
    for _ in range(300):
        scores = {f"m{i}": rng.normal(size=5) for i in range(6)}
        tiers = stats.tiers(
            {m: float(np.mean(x)) for m, x in scores.items()},
            lambda a, b, scores=scores: stats.paired_t(scores[a], scores[b]).p,
        )
        split += max(tiers.values()) > 1
    # Choosing the best first makes the test a little liberal: its error is near the level, not far
    # above it.
    assert split / 300 < 0.25
