"""What the scores of one group say: noise floor, intervals, paired differences, tiers.

Seeds decide where two methods share two or more (a moderated t test: all pairs lend each other
their spread), else the test examples of the one seed they share. A method whose scores vary far
more than the others' would lend them a spread that is not theirs, so it stands for itself; it has
no place where that tells it apart from some only. Scores are in the metric's units; a `Difference`
is positive where the first method is the better one.
"""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leantune.files.record import value
from leantune.metrics import stats
from leantune.results.comparable import Group, Record

Unit = tuple[str, int]  # a method and a seed
Score = Callable[[stats.Array], stats.Array]


@dataclass(frozen=True)
class Examples:
    """The score of one unit on resamples of its test examples, how many they are, and their
    references."""

    drawn: stats.Array
    size: int
    references: tuple[float, ...]


@dataclass(frozen=True)
class Standing:
    """Where the methods of a group stand. Methods without a score are absent."""

    sign: int  # 1 where a higher score is better, else -1
    scores: Mapping[str, Mapping[int, float]]  # method -> seed -> score
    examples: Mapping[Unit, Examples]  # of the units that are alone: one seed, or one seed shared
    over_seeds: Mapping[
        tuple[str, str], stats.Difference
    ]  # of pairs that share two or more, both ways round
    wild: frozenset[str]  # methods whose scores vary far more over seeds than those of the others
    tiers: Mapping[
        str, int
    ]  # of all but the wild ones that are not told apart from every other method

    @property
    def order(self) -> list[str]:
        """The placed methods, best mean first, ties by name."""
        return sorted(self.tiers, key=lambda method: (-self.sign * self.mean(method), method))

    def mean(self, method: str) -> float:
        """Its mean score over seeds."""
        return stats.t_interval(list(self.scores[method].values())).mean

    def interval(self, method: str) -> tuple[float | None, float | None, str | None]:
        """(low, high, from): a t interval over `seeds`, with one seed a bootstrap interval over
        `examples`."""
        seeds = self.scores[method]
        if len(seeds) > 1:
            found = stats.t_interval(list(seeds.values()))
            return found.low, found.high, "seeds"
        alone = self.examples.get((method, next(iter(seeds))))
        return (
            (None, None, None) if alone is None else (*stats.drawn_bounds(alone.drawn), "examples")
        )

    @property
    def noise(self) -> tuple[float | None, str | None]:
        """(floor, from): the standard deviation over `seeds` of one method's score, pooled over the
        methods that have two or more and are not wild; without any, the bootstrap standard error of
        the best method over test `examples`."""
        steady = self.scores.keys() - self.wild
        pooled = stats.pooled_deviation(
            [list(self.scores[method].values()) for method in sorted(steady)]
        )
        if pooled is not None:
            return pooled, "seeds"
        if not self.scores:
            return None, None
        best = self.order[0]
        alone = self.examples.get((best, next(iter(self.scores[best]))))
        if alone is None:
            return None, None
        values = alone.drawn[1:][np.isfinite(alone.drawn[1:])]
        return (float(np.std(values, ddof=1)), "examples") if len(values) > 1 else (None, None)

    def seed_differences(self, a: str, b: str) -> list[float]:
        """How much better a is than b, at every seed they share."""
        return [
            self.sign * (self.scores[a][s] - self.scores[b][s]) for s in _shared(self.scores, a, b)
        ]

    def difference(self, a: str, b: str) -> stats.Difference | None:
        """How much better a is than b, over shared seeds or over test examples; None where neither
        can be paired."""
        if (a, b) in self.over_seeds:
            return self.over_seeds[a, b]
        shared = _shared(self.scores, a, b)
        if not shared:
            return None
        (seed,) = shared
        one, two = self.examples.get((a, seed)), self.examples.get((b, seed))
        if one is None or two is None or (one.size, one.references) != (two.size, two.references):
            return None
        return stats.drawn_difference(self.sign * (one.drawn - two.drawn))


def standing(group: Group) -> Standing:
    """Rank a group's methods in tiers, the best first. Methods that cannot be paired are not told
    apart."""
    units: dict[Unit, list[Record]] = defaultdict(list)
    for method, records in group.ok.items():
        for record in records:
            if value(record, "quality.value") is not None:
                units[method, record["cell"]["seed"]].append(record)
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for (
        method,
        seed,
    ), records in units.items():  # several records of one seed only where keys were merged
        scores[method][seed] = statistics.fmean(record["quality"]["value"] for record in records)
    if not units:
        return Standing(1, {}, {}, {}, frozenset(), {})
    first = next(iter(units.values()))[0]
    sign = 1 if value(first, "quality.higher_is_better") else -1
    alone = {
        (method, seed) for method, seeds in scores.items() if len(seeds) == 1 for seed in seeds
    }
    for a, b in itertools.combinations(scores, 2):
        if len(shared := _shared(scores, a, b)) == 1:
            alone |= {(a, shared[0]), (b, shared[0])}
    examples = _examples(
        {unit: units[unit] for unit in sorted(alone)}, stats.resamples_for(len(scores))
    )
    wild = frozenset(
        stats.out_of_line({method: list(seeds.values()) for method, seeds in scores.items()})
    )
    unranked = Standing(sign, scores, examples, _over_seeds(sign, scores, wild), wild, {})

    pairs = [frozenset(pair) for pair in itertools.combinations(scores, 2)]
    p_values = {
        pair: 1.0 if (found := unranked.difference(*pair)) is None else found.p for pair in pairs
    }
    adjusted = zip(pairs, stats.holm(list(p_values.values())), strict=True)
    alike = [pair for pair, p in adjusted if p > 1 - stats.LEVEL]
    placed = scores.keys() - {method for pair in alike for method in pair & wild}
    means = {method: sign * unranked.mean(method) for method in placed}
    return replace(unranked, tiers=stats.tiers(means, lambda a, b: p_values[frozenset((a, b))]))


def example_difference(
    a: Mapping[str, Any], b: Mapping[str, Any], level: float = stats.LEVEL
) -> stats.Difference | None:
    """a - b of two records' `quality` by a paired bootstrap over the test examples; None where they
    cannot be paired."""
    one, two = _score(a), _score(b)
    if one is None or two is None or a["references"] != b["references"]:
        return None
    if len(a["predictions"]) != len(b["predictions"]):
        return None
    return stats.paired_bootstrap(lambda w: one(w) - two(w), len(a["predictions"]), level)


def _over_seeds(
    sign: int, scores: Mapping[str, Mapping[int, float]], wild: frozenset[str]
) -> dict[tuple[str, str], stats.Difference]:
    pairs = {
        (a, b): [sign * (scores[a][seed] - scores[b][seed]) for seed in shared]
        for a, b in itertools.combinations(sorted(scores), 2)
        if len(shared := _shared(scores, a, b)) > 1
    }
    found = stats.moderated_t(
        {pair: values for pair, values in pairs.items() if wild.isdisjoint(pair)}
    )
    found |= {
        pair: stats.paired_t(pairs[pair], [0.0] * len(pairs[pair]))
        for pair in pairs.keys() - found.keys()
    }
    return found | {
        (b, a): stats.Difference(-d.mean, -d.high, -d.low, d.p) for (a, b), d in found.items()
    }


def _shared(scores: Mapping[str, Mapping[int, float]], a: str, b: str) -> list[int]:
    return sorted(scores[a].keys() & scores[b].keys())


def _examples(units: Mapping[Unit, Sequence[Record]], resamples: int) -> dict[Unit, Examples]:
    """The resampled scores of every unit whose predictions are stored and whose metric can be
    resampled."""
    by_size: dict[int, list[tuple[Unit, Score]]] = defaultdict(list)
    for unit, records in units.items():
        for record in records:
            if (score := _score(record["quality"])) is not None:
                by_size[len(record["quality"]["predictions"])].append((unit, score))
    drawn: dict[Unit, list[stats.Array]] = defaultdict(list)
    for size, found in by_size.items():
        values = stats.resampled([score for _, score in found], size, resamples)
        for (unit, _), resampled in zip(found, values, strict=True):
            drawn[unit].append(resampled)
    made = {}
    for unit, records in units.items():
        tests = {
            (len(r["quality"]["predictions"]), tuple(r["quality"]["references"])) for r in records
        }
        if len(drawn[unit]) == len(records) and len(tests) == 1:
            made[unit] = Examples(np.mean(drawn[unit], axis=0), *tests.pop())
    return made


def _score(quality: Mapping[str, Any]) -> Score | None:
    """The score as a function of example weights; None without stored predictions or for an unknown
    metric."""
    predictions, references = quality["predictions"], quality["references"]
    may_lack = quality["metric"] in (
        "loss",
        "perplexity",
    )  # references: then each counts as one token
    if not predictions or (len(references) != len(predictions) and (references or not may_lack)):
        return None
    try:
        return stats.weighted_score(quality["metric"], predictions, references)
    except KeyError:
        return None
