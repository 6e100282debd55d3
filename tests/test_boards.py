"""Decisions, fronts, budgets, scores across tasks and merged keys: what the tables made of boards
say."""

import copy
import csv
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_records import failed, ok, place, write
from scipy import stats as scipy_stats

from leantune.cli import parser
from leantune.errors import BadInput
from leantune.metrics import stats
from leantune.results import build, columns
from leantune.results import leaderboard as rows
from leantune.results.comparable import MERGEABLE, Entry
from leantune.results.decisions import decisions
from leantune.results.leaderboard import boards, leaderboard
from leantune.results.overall import overall
from leantune.results.pareto import BUDGETS, budgets, pareto
from leantune.results.publish import publish
from leantune.spec import plugins
from leantune.spec.cells import Cell

TIMES = {
    *("step_seconds_median", "time_vs_full", "train_seconds_total", "hook_seconds_total"),
    *("attach_seconds_cold", "seconds_to_target", "inference_tokens_per_second"),
}
METHODS = ["full", "head", "lora", "came", "svfit@r64"]
QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MADE = ("leaderboard", "decisions", "overall", "pareto", "budgets")


def entries(*records):
    return [
        Entry(f"{place(record)} {i}", record["status"], record) for i, record in enumerate(records)
    ]


def made(*records, across=()):
    """Every table of the records, by name."""
    found = build.tables(entries(*records), across=across)
    return {name: found[name] for name in MADE}


def by_method(found):
    return {row["method"]: row for row in found}


def cell(method="full", seed=0, quality=0.8, **more):
    """An `ok` record. `more`: peak, seconds, vs_full, stored and what `ok` takes."""
    record = ok(method, seed, quality, more.pop("peak", 1000), **more)
    record["time"]["step_seconds_median"] = more.get("seconds", 0.5)
    record["time"]["vs_full"] = more.get("vs_full")
    record["size"] = {
        "checkpoint_bytes": more.get("stored", 10),
        "deployed_parameters": 1,
        "deployed_bytes": 1,
    }
    return record


def scored(model, task, **qualities):
    """Three seeds of each method, the quality one noise step below, at and above the one given."""
    steps = enumerate((-0.01, 0.0, 0.01))
    return [
        cell(m, s, q + step, model=model, task=task)
        for s, step in steps
        for m, q in qualities.items()
    ]


@st.composite
def example_hits(draw):
    return [float(x) for x in draw(st.lists(st.integers(0, 1), min_size=30, max_size=30))]


LEVELS = st.integers(0, 20).map(lambda n: n / 20)
CELLS = st.lists(
    st.builds(
        lambda m, seed, quality, batch, task, peak, seconds, stored, predictions: cell(
            m,
            seed,
            quality,
            key={"batch": batch},
            task=task,
            peak=peak,
            seconds=seconds,
            stored=stored,
            predictions=predictions,
            references=[1.0] * 30,
        ),
        st.sampled_from(METHODS),
        st.integers(0, 3),
        LEVELS,
        st.sampled_from([8, 16]),
        st.sampled_from(["sentiment", "valence"]),
        st.integers(1, 4),
        st.integers(1, 4).map(float),
        st.integers(1, 4),
        example_hits(),
    ),
    min_size=1,
    max_size=14,
    unique_by=place,
)


# ------------------------------------------------------------------ every table


@QUICK
@given(CELLS, st.randoms(use_true_random=False))
def test_no_table_depends_on_the_order_of_records(records, rng):
    shuffled = records.copy()
    rng.shuffle(shuffled)
    assert made(*shuffled) == made(*records)


@QUICK
@given(
    CELLS,
    st.sampled_from(METHODS),
    st.sampled_from(["oom", "timeout", "diverged", "unsupported", "error"]),
)
def test_a_failed_record_changes_no_decision(records, method, status):
    first = records[0]
    more = failed(method, 9, status, key=first["key"], task=first["cell"]["task"])
    before, after = made(*records), made(*records, more)
    for name in ("decisions", "pareto", "budgets", "overall"):
        bare = [[{**row, "failed_seeds": None} for row in found[name]] for found in (before, after)]
        assert bare[0] == bare[1]
    tiers = [
        {(r["key"], r["task"], r["method"]): r.get("tier") for r in f["leaderboard"]}
        for f in (before, after)
    ]
    assert tiers[1] == {**tiers[1], **tiers[0]}
    assert all(tier is None for place, tier in tiers[1].items() if place not in tiers[0])


@QUICK
@given(CELLS, st.permutations(range(4)))
def test_naming_the_seeds_otherwise_changes_no_table(records, names):
    renamed = copy.deepcopy(records)
    for record in renamed:
        record["cell"]["seed"] = names[record["cell"]["seed"]]
    assert made(*renamed) == made(*records)


@QUICK
@given(CELLS)
def test_another_batch_size_changes_nothing_but_the_note_on_it(records):
    both = made(*records)
    alone = [made(*[r for r in records if r["key"]["batch"] == batch]) for batch in (8, 16)]
    for name in ("leaderboard", "pareto", "budgets", "decisions"):
        apart = [{**row, "not_ranked_with": None} for found in alone for row in found[name]]

        def order(row):
            return (row["key"], row["task"], str(row.get("method")), str(row.get("budget_kind")))

        together = [{**row, "not_ranked_with": None} for row in both[name]]
        assert sorted(together, key=order) == sorted(apart, key=order)
    for row in both["decisions"]:
        batches = {r["key"]["batch"] for r in records if r["cell"]["task"] == row["task"]}
        notes = {"cpu-b8": "cpu-b16: batch 16, here 8", "cpu-b16": "cpu-b8: batch 8, here 16"}
        assert row["not_ranked_with"] == (notes[row["key"]] if len(batches) == 2 else None)


# ------------------------------------------------------------------ decisions


def test_a_clear_winner_is_named_with_the_interval_of_the_paired_difference():
    gains = [0.101, 0.099, 0.1, 0.102, 0.098]
    base = [0.7, 0.72, 0.71, 0.69, 0.7]
    found = [cell("lora", s, b) for s, b in enumerate(base)]
    found += [cell("full", s, b + g) for s, (b, g) in enumerate(zip(base, gains, strict=True))]
    (row,) = decisions(boards(entries(*found)))
    half = scipy_stats.t.ppf(0.975, 4) * scipy_stats.sem(gains)
    assert (row["best"], row["runner_up"], row["tier_1"], row["noise_from"]) == (
        "full",
        "lora",
        "full",
        "seeds",
    )
    assert row["gap"] == pytest.approx(0.1)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(
        (0.1 - half, 0.1 + half)
    )
    pooled = math.sqrt((np.var(base, ddof=1) + np.var(np.add(base, gains), ddof=1)) / 2)
    assert row["noise_floor"] == pytest.approx(pooled)
    assert row["says"].startswith("full is best, 0.1 ahead of lora in accuracy (95 % interval")
    assert row.get("more_seeds") is None


def test_what_the_seeds_do_not_separate_decides_nothing_and_says_how_many_would():
    found = [cell("full", s, q) for s, q in enumerate([0.80, 0.83, 0.81])]
    found += [cell("lora", s, q) for s, q in enumerate([0.81, 0.80, 0.80])]
    (row,) = decisions(boards(entries(*found)))
    assert row["tier_1"] == "full; lora"
    assert row["says"].startswith("this decides nothing: ")
    assert row["more_seeds"] == 31  # 34 for an effect of half a standard deviation
    assert row["says"].endswith("31 more seeds would separate full and lora")


def test_a_gap_below_the_noise_decides_nothing_though_pairing_would():
    noise = [0.0, 0.1, -0.1, 0.2, -0.2]
    found = [
        cell(m, s, 0.7 + gap + x)
        for s, x in enumerate(noise)
        for m, gap in [("full", 0.01), ("lora", 0.0)]
    ]
    (row,) = decisions(boards(entries(*found)))
    assert (row["tier_1"], row["more_seeds"]) == ("full", 0)
    assert row["says"].startswith("this decides nothing: ")
    assert "noise floor" in row["says"]


def four_and(name, scores, noise):
    """Three seeds of four methods with that much noise, and of one more with these scores."""
    means = {"full": 0.8, "lora": 0.799, "svfit": 0.75, "head": 0.6}
    found = [
        cell(m, s, q + noise * ((s + i) % 3 - 1))
        for i, (m, q) in enumerate(means.items())
        for s in range(3)
    ]
    return [*found, *(cell(name, seed, score) for seed, score in enumerate(scores))]


def test_what_varies_far_more_than_all_others_is_not_placed_and_lends_nobody_its_noise():
    found = four_and("svd", [0.5, 0.9, 0.7], noise=0.005)
    board = boards(entries(*found))
    rows = by_method(row for one in board for row in one.rows)
    assert [rows[m]["tier"] for m in ("full", "lora", "svfit", "head", "svd")] == [1, 1, 2, 3, None]
    assert rows["svd"]["quality_mean"] == pytest.approx(0.7)
    (row,) = decisions(board)
    without = decisions(boards(entries(*(one for one in found if one["cell"]["method"] != "svd"))))[
        0
    ]
    assert row["noise_floor"] == without["noise_floor"] < 0.02
    assert row["says"] == (
        without["says"] + "; not placed, as it varies far more over seeds than the others: svd"
    )
    assert "the 2 methods of tier 1 are not told apart: full is" in row["says"]
    assert "; 2 others are told apart from the best; " in row["says"]


def test_what_varies_far_more_is_placed_where_that_still_tells_it_from_every_other():
    board = boards(entries(*four_and("softlms", [0.1, 0.11, 0.105], noise=0.0005)))
    assert {row["method"]: row["tier"] for row in board[0].rows}["softlms"] == 4
    (row,) = decisions(board)
    assert "not placed" not in row["says"]
    assert row["noise_floor"] == pytest.approx(0.0005)


def test_what_is_best_by_less_than_the_noise_still_decides_who_is_worse():
    noise = [0.0, 0.1, -0.1, 0.2, -0.2]
    gaps = [("full", 0.01), ("lora", 0.0), ("head", -0.6)]
    (row,) = decisions(
        boards(entries(*(cell(m, s, 0.7 + g + x) for s, x in enumerate(noise) for m, g in gaps)))
    )
    assert row["tier_1"] == "full"
    assert row["says"].startswith("full is 0.01 ahead of lora in accuracy")
    assert (
        ", within the noise floor of 0.158; 2 others are told apart from the best; " in row["says"]
    )


def test_one_seed_has_its_noise_from_the_test_examples_of_the_best():
    truth = [1.0] * 400
    better, worse = ([float(i >= wrong) for i in range(400)] for wrong in (40, 80))
    records = [
        ok(m, 0, np.mean(p), predictions=p, references=truth)
        for m, p in [("lora", worse), ("full", better)]
    ]
    (row,) = decisions(boards(entries(*records)))
    assert (row["noise_from"], row["difference_from"], row["best"]) == (
        "examples",
        "examples",
        "full",
    )
    assert row["noise_floor"] == pytest.approx(math.sqrt(0.9 * 0.1 / 400), rel=0.05)
    assert row["says"].startswith("full is best, 0.1 ahead of lora in accuracy")


def test_without_predictions_one_seed_decides_nothing():
    (row,) = decisions(boards(entries(cell("full", quality=0.9), cell("lora", quality=0.1))))
    assert (row["noise_floor"], row["noise_from"], row.get("difference_low")) == (None, None, None)
    assert row["says"].startswith("this decides nothing: ")
    assert [r["says"] for r in decisions(boards(entries(failed("full"))))] == [
        "this decides nothing: no method has a score"
    ]


def test_controls_are_no_decision():
    found = [cell("full", s, 0.8) for s in (0, 1)] + [
        cell("tfidf", s, 0.9, model="none") for s in (0, 1)
    ]
    tables_ = made(*found)
    assert all(
        row["model"] != "none"
        for name in ("decisions", "overall", "pareto", "budgets")
        for row in tables_[name]
    )


@pytest.mark.parametrize(("effect", "needed"), [(0.5, 34), (0.8, 15), (1.0, 10), (5.0, 3)])
def test_seeds_needed_are_those_of_the_power_tables(effect, needed):
    """Cohen's d of paired differences, power 0.8, two-sided 0.05, as G*Power gives them."""
    half = 1 / math.sqrt(2)
    assert stats.seeds_needed([effect - half, effect + half]) == needed


def test_seeds_needed_at_the_ends():
    assert stats.seeds_needed([0.1, -0.1]) is None
    assert stats.seeds_needed([0.101, -0.1]) is None
    assert stats.seeds_needed([0.1, 0.1]) == 2
    assert stats.seeds_needed([0.1, 0.1 + 1e-12, 0.1]) == 2


# ------------------------------------------------------------------ intervals and target


def test_one_seed_has_an_interval_over_its_test_examples():
    hits = [1.0] * 320 + [0.0] * 80
    (row,) = leaderboard(entries(ok("full", 0, 0.8, predictions=hits, references=[1.0] * 400)))
    low, high = scipy_stats.norm.interval(0.95, 0.8, math.sqrt(0.8 * 0.2 / 400))
    assert (row["quality_low"], row["quality_high"]) == pytest.approx((low, high), abs=0.004)
    assert row["interval_from"] == "examples"
    both = leaderboard(
        entries(*[ok("full", s, 0.8, predictions=hits, references=[1.0] * 400) for s in (0, 1)])
    )
    assert both[0]["interval_from"] == "seeds"
    assert leaderboard(entries(ok("full")))[0]["interval_from"] is None


def test_the_interval_of_a_language_model_is_per_token():
    """Stored are summed losses and token counts of each example; the score is per token."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 60, 200).astype(float)
    losses = tokens * rng.normal(3.5, 0.3, 200)
    score = losses.sum() / tokens.sum()
    record = ok(
        "full",
        0,
        score,
        metric="loss",
        higher=False,
        predictions=list(losses),
        references=list(tokens),
    )
    (row,) = leaderboard(entries(record))
    assert row["quality_low"] < score < row["quality_high"] < row["quality_low"] + 0.2


def test_the_peak_to_the_target_is_that_of_the_intervals_before_it():
    late = cell("safe", peak=300)
    late["memory"]["tensors"]["intervals"] = [
        {"step": 0, "peak_bytes": 100},
        {"step": 10, "peak_bytes": 300},
        {"step": 20, "peak_bytes": 50},
    ]
    reached = {0: None, 5: 100, 10: 100, 11: 300, 40: 300}
    for steps, expected in reached.items():
        late["quality"].update(steps_to_target=steps or None, seconds_to_target=steps or None)
        assert rows.cells(entries(late))[0]["peak_to_target_bytes"] == expected
    one = cell("full", peak=700)
    one["quality"].update(steps_to_target=5, seconds_to_target=1.0)
    never = cell("full", 1, peak=700)
    assert leaderboard(entries(one))[0]["peak_to_target_bytes"] == 700
    assert leaderboard(entries(one, never))[0]["peak_to_target_bytes"] is None
    on_gpu = copy.deepcopy(late)
    on_gpu["memory"].update(peak_source="cuda", peak_bytes=900)  # one counter for the whole run
    on_gpu["quality"]["steps_to_target"] = 5
    assert rows.cells(entries(on_gpu))[0]["peak_to_target_bytes"] == 900


# ------------------------------------------------------------------ overall


def test_overall_scales_each_task_between_head_and_full():
    records = scored("m", "a", head=0.5, full=0.9, lora=0.8) + scored(
        "m", "b", head=0.2, full=0.4, lora=0.45
    )
    for record in records:
        record["memory"]["peak_bytes"] = {
            "full": 1000,
            "lora": {"a": 250, "b": 640}[record["cell"]["task"]],
        }.get(record["cell"]["method"], 100)
    found = by_method(overall(boards(entries(*records))))
    assert found["lora"]["mean"] == pytest.approx((0.75 + 1.25) / 2)
    assert found["lora"]["peak_vs_full"] == pytest.approx(math.sqrt(0.25 * 0.64))
    assert (found["full"]["mean"], found["head"]["mean"]) == pytest.approx((1.0, 0.0))
    assert (found["lora"]["tasks"], found["lora"]["iqm"], found["lora"]["left_out"]) == (
        2,
        None,
        None,
    )


def test_overall_of_a_loss_and_from_four_tasks_the_middle_half():
    records = []
    for task, lora in [("a", 3.0), ("b", 3.5), ("c", 2.0), ("d", 0.0)]:
        found = scored("m", task, head=4.0, full=3.0, lora=lora)
        for record in found:
            record["quality"].update(metric="loss", higher_is_better=False)
        records += found
    row = by_method(overall(boards(entries(*records))))["lora"]
    assert row["mean"] == pytest.approx((1 + 0.5 + 2 + 4) / 4)
    assert row["iqm"] == pytest.approx((1 + 2) / 2)


def test_overall_leaves_out_what_has_no_scale_and_names_it():
    records = scored("m", "a", head=0.5, full=0.9, lora=0.8)
    records += scored("m", "flat", head=0.795, full=0.8, lora=0.9)
    records += scored("m", "worse", head=0.9, full=0.5, lora=0.7)
    records += scored("m", "headless", full=0.8, lora=0.9)
    row = by_method(overall(boards(entries(*records))))["lora"]
    assert (row["tasks"], row["task_names"]) == (1, "a")
    assert [part.split(" ")[0] for part in row["left_out"].split("; ")] == [
        "flat",
        "headless",
        "worse",
    ]
    assert "noise floor 0.01" in row["left_out"]


def test_overall_never_mixes_keys():
    here, there = cell("full", quality=0.9), cell("head", quality=0.5, key={"batch": 8})
    row = by_method(overall(boards(entries(here, there, cell("lora")))))["lora"]
    assert (row["tasks"], row["mean"]) == (0, None)


# ------------------------------------------------------------------ fronts and budgets


def beats(one, other, floor, higher=True):
    """An independent statement of dominance."""
    gain = (one["quality_mean"] - other["quality_mean"]) * (1 if higher else -1)
    less = [(one[f], other[f]) for f in ("peak_memory_bytes", "step_seconds_median")]
    no_worse = all(a <= b for a, b in less) and gain >= -floor
    return no_worse and (any(a < b for a, b in less) or gain > floor)


@QUICK
@given(CELLS)
def test_a_front_is_not_dominated_and_covers_the_rest(records):
    for board in boards(entries(*records)):
        found = by_method(pareto([board]))
        front = [row for row in found.values() if row["on_front"]]
        assert front
        for row in found.values():
            dominators = [o["method"] for o in front if beats(o, row, row["noise_floor"] or 0.0)]
            assert row["on_front"] == (not dominators)
            assert (row["dominated_by"] or "").split("; ") == (sorted(dominators) or [""])


def test_a_difference_within_the_noise_is_a_tie_on_the_front():
    noisy = scored("m", "t", full=0.805, lora=0.8, came=0.7)
    for record in noisy:
        record["memory"]["peak_bytes"] = {"full": 900, "lora": 300, "came": 300}[
            record["cell"]["method"]
        ]
    found = by_method(pareto(boards(entries(*noisy))))
    assert {m: (r["on_front"], r["dominated_by"]) for m, r in found.items()} == {
        "lora": (True, None),
        "full": (False, "lora"),
        "came": (False, "lora"),
    }


def test_ties_do_not_chain():
    """b ties with a and with c, but c is better than a: both ends stay, the middle goes."""
    found = scored("m", "t", a=0.8, b=0.808, c=0.816)
    for record in found:
        record["memory"]["peak_bytes"] = {"a": 1, "b": 2, "c": 3}[record["cell"]["method"]]
    assert {m: r["on_front"] for m, r in by_method(pareto(boards(entries(*found)))).items()} == {
        "a": True,
        "b": False,
        "c": True,
    }


def test_fronts_use_the_timing_rule_where_all_have_it_and_nothing_where_a_figure_is_missing():
    fast, slow = cell("lora", seconds=9.0, vs_full=0.5), cell("full", seconds=1.0, vs_full=1.0)
    assert {
        m: r["on_front"] for m, r in by_method(pareto(boards(entries(fast, slow)))).items()
    } == {
        "lora": True,
        "full": False,
    }
    slow["time"].update(vs_full=None)
    assert by_method(pareto(boards(entries(fast, slow))))["full"]["on_front"] is True
    slow["time"]["step_seconds_median"] = None
    assert by_method(pareto(boards(entries(fast, slow))))["full"]["on_front"] is None


@QUICK
@given(CELLS, st.booleans())
def test_budgets_are_staircases_to_the_best_score(records, higher):
    for record in records:
        record["quality"]["higher_is_better"] = higher
    sign = 1 if higher else -1
    for board in boards(entries(*records)):
        for kind in BUDGETS:
            steps = [row for row in budgets([board]) if row["budget_kind"] == kind]
            for one, two in itertools.pairwise(steps):
                assert one["budget"] < two["budget"]
                assert sign * one["quality_mean"] < sign * two["quality_mean"]
            for row in board.rows:  # what any budget buys is the last step that it pays for
                bought = [step for step in steps if step["budget"] <= row[kind]][-1]
                affordable = [r["quality_mean"] for r in board.rows if r[kind] <= row[kind]]
                assert bought["quality_mean"] == (max if higher else min)(affordable)


# ------------------------------------------------------------------ merged keys


def test_keys_are_merged_by_name_only():
    here, there = cell("full", quality=0.9), cell("lora", quality=0.8, key={"batch": 8})
    assert [row["key"] for row in leaderboard(entries(here, there))] == ["cpu-b16", "cpu-b8"]
    assert [row["key"] for row in leaderboard(entries(here, there), ["length"])] == [
        "cpu-b16",
        "cpu-b8",
    ]
    found = made(here, there, across=["batch"])
    assert {row["key"] for name in MADE if name != "overall" for row in found[name]} == {
        "cpu-b16~cpu-b8"
    }
    assert found["decisions"][0]["not_ranked_with"] is None
    assert by_method(found["leaderboard"])["lora"]["step_seconds_median"] == 0.5


def test_what_differs_in_more_than_the_named_fields_stays_apart():
    here, there = cell("full"), cell("lora", key={"batch": 8})
    for change in ({"samples": "other"}, {"steps": 7}, {"measurement": 2}):
        other = copy.deepcopy(there)
        other["key"].update(change)
        assert len(boards(entries(here, other), ["batch"])) == 2
    words = there["provenance"]
    words["command"] += " --set task.batch=8"
    assert len(boards(entries(here, there), ["batch"])) == 1
    words["command"] += " --set task.head_lr=0.1"
    assert len(boards(entries(here, there), ["batch"])) == 2


@pytest.mark.parametrize("field", ["hardware", "device"])
def test_no_times_are_compared_across_machines(field):
    other = {"hardware": "another machine"} if field == "hardware" else {"device": "cuda"}
    here, there = cell("full", vs_full=1.0), cell("lora", key=other)
    there["key"]["short"] = "elsewhere"
    found = made(here, there, across=[field])
    times = [column.name for column in columns.of_table("leaderboard") if column.timed]
    assert {*times} == TIMES
    for row in (*found["leaderboard"], *found["pareto"]):
        assert all(row.get(column) is None for column in times)
    assert not [row for row in found["budgets"] if row["budget_kind"] == "step_seconds_median"]
    assert by_method(made(here, across=[field])["leaderboard"])["full"]["time_vs_full"] == 1.0


def test_a_seed_on_two_machines_counts_once():
    here, there = ok("full", 0, 0.8), ok("full", 0, 0.9, key={"hardware": "another machine"})
    there["key"]["short"] = "elsewhere"
    (row,) = leaderboard(entries(here, there), ["hardware"])
    assert (row["seeds"], row["failed_seeds"], row["quality_low"]) == (1, 0, None)
    assert row["quality_mean"] == pytest.approx(0.85)


def test_an_unknown_field_is_refused_by_the_known_ones(tmp_path, capsys):
    assert "samples" not in MERGEABLE
    for field in ("samples", "measurement", "colour"):
        with pytest.raises(BadInput, match=f"'{field}'"):
            boards([], [field])
    config = plugins.roots()[0] / "config" / "smoke.yaml"
    words = ["tables", "--config", str(config), "--output", str(tmp_path), "--across"]
    assert parser.main([*words, "colour"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert all(field in err for field in MERGEABLE)
    assert parser.main([*words, "batch", "--across", "hardware"]) == 0


# ------------------------------------------------------------------ files


def test_every_table_is_written_named_by_the_workflow_and_published(tmp_path, monkeypatch):
    monkeypatch.setattr("leantune.results.load.is_stale", lambda record: False)
    write(tmp_path / "run", *scored("minilm-l6", "sentiment", head=0.5, full=0.9, lora=0.8))
    build.write_tables(tmp_path / "run")
    written = {file.name for file in (tmp_path / "run" / "tables").iterdir()}
    named = (plugins.roots()[0] / "Snakefile").read_text().split("TABLES = {")[1].split("}")[0]
    assert written == {f"{name}.csv" for name in re.findall(r'"(\w+)":', named)}
    publish(tmp_path / "run", tmp_path / "results", _nothing())
    for name in written:
        assert (tmp_path / "results" / "tables" / name).read_text() == (
            tmp_path / "run" / "tables" / name
        ).read_text()
    assert _read(tmp_path / "results" / "tables" / "decisions.csv")[0]["best"] == "full"


def _nothing() -> list[Cell]:
    return []


def _read(file: Path) -> list[dict[str, str]]:
    with file.open() as text:
        return list(csv.DictReader(text))


def test_a_row_says_what_tuning_chose_and_whether_it_was_at_the_edge():
    tuned = ok("came")
    trial = {"trial": 0, "settings": {}, "status": "ok", "value": 0.8}
    tuned["tuning"] = {
        "came": {
            "trials": [trial] * 3,
            "settings": {"came.lr_scale": 0.22},
            "at_edge": ["came.lr_scale"],
        }
    }
    entries = [Entry(place(r), "ok", r) for r in (tuned, ok("full"))]
    found = {row["method"]: row for row in leaderboard(entries)}
    names = ("tuning_trials", "tuned_settings", "tuning_at_edge")
    assert [found["came"][name] for name in names] == [3, "came.lr_scale=0.22", "came.lr_scale"]
    assert [found["full"][name] for name in names] == [0, None, None]
