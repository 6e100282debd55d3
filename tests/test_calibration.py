"""What the control cells say of the meter, as rows; the gate and publishing that heed them."""

import copy
import csv
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import failed as failed_record
from sample_records import ok, place, write

from leantune.cli import parser
from leantune.errors import BadInput
from leantune.results import calibration
from leantune.results.comparable import Entry
from leantune.results.leaderboard import cells, leaderboard
from leantune.results.readme import markdown_leaderboard
from leantune.spec.config import CALIBRATION_LIMITS, load_config

TRUTH = [float(i % 2) for i in range(200)]
HALF = [float(i // 2 % 2) for i in range(200)]  # right half of the time
LIMITS = CALIBRATION_LIMITS


def controls(ballast=2**26, slept=0.2):
    """Records of every control, as a sound meter gives them."""
    head = ok("head", peak=1000)
    allocate, sleep = ok("allocate_64mib", peak=1000 + ballast), ok("sleep", peak=1000)
    sleep["time"]["step_seconds_median"] = 0.5 + slept
    nothing = ok("train_nothing", quality=0.5, predictions=HALF, references=TRUTH)
    nothing["parameters"]["trainable"], nothing["size"] = 0, {"checkpoint_bytes": 0}
    guesses = ok("random", quality=0.5, predictions=HALF, references=TRUTH, model="none")
    leak = ok("tfidf", quality=1.0, task="leak", model="none", predictions=TRUTH, references=TRUTH)
    head["memory"]["predicted"] = {"peak_bytes": 1000}
    return [head, allocate, sleep, nothing, guesses, leak]


def entries(records):
    return [Entry(place(record), record["status"], record) for record in records]


def found(records, limits=LIMITS):
    return {row["check"]: row for row in calibration.rows(entries(records), limits)}


def test_a_sound_meter_passes_every_check_but_that_of_a_gpu():
    rows = found(controls())
    assert tuple(rows) == calibration.CHECKS
    assert {name for name, row in rows.items() if row["passed"] is not True} == {
        "allocate_64mib_cuda"
    }
    assert (
        rows["allocate_64mib_tensors"]["measured"]
        == rows["allocate_64mib_tensors"]["expected"]
        == 2**26
    )
    assert rows["sleep"]["measured"] == pytest.approx(0.2)
    assert rows["random"]["expected"] == pytest.approx(0.5)
    assert rows["random"]["limit"] == pytest.approx(
        18 / 200
    )  # scipy: 99 % of 200 fair coins fall in 82 ... 118


def test_without_records_nothing_passes():
    assert [row["passed"] for row in calibration.rows([], LIMITS)] == ["not_run"] * len(
        calibration.CHECKS
    )
    stale = [Entry(place(r), "stale", r) for r in controls()]
    assert {row["passed"] for row in calibration.rows(stale, LIMITS)} == {"not_run"}


@pytest.mark.parametrize("off", [-1, 1, 2**20])
def test_one_byte_off_fails(off):
    row = found(controls(ballast=2**26 + off))["allocate_64mib_tensors"]
    assert (row["passed"], row["error"]) == (False, abs(off) / 2**26)


def test_what_a_gpu_reports_may_differ_by_the_limit():
    for extra, passed in ((600_000, True), (700_000, False)):
        records = controls()
        for record, peak in zip(records, (5000, 5000 + 2**26 + extra), strict=False):
            record["memory"]["cuda"] = {"allocated_peak_bytes": peak}
        assert found(records)["allocate_64mib_cuda"]["passed"] is passed


@pytest.mark.parametrize(
    ("slept", "passed"), [(0.299, True), (0.101, True), (0.301, False), (0.0, False)]
)
def test_the_slept_time_has_a_limit_of_its_own(slept, passed):
    assert found(controls(slept=slept))["sleep"]["passed"] is passed
    assert (
        found(controls(slept=slept), {"limit": 0.0, "sleep_limit": 2.0})["sleep"]["passed"] is True
    )


@pytest.mark.parametrize(
    "change", [{"batch": 8}, {"samples": "other"}, {"hardware": "other"}, {"torch": "9.9"}]
)
def test_a_head_of_another_key_is_no_floor(change):
    records = controls()
    records[0]["key"].update(change)
    rows = found(records)
    assert rows["allocate_64mib_tensors"]["passed"] == rows["sleep"]["passed"] == "not_run"
    assert "head" in rows["sleep"]["why"]


def test_a_head_of_another_seed_model_or_status_is_no_floor():
    for change in ({"seed": 1}, {"model": "bert-base"}):
        records = controls()
        records[0]["cell"].update(change)
        assert found(records)["sleep"]["passed"] == "not_run"
    assert found([failed_record("head"), *controls()[1:]])["sleep"]["passed"] == "not_run"


def test_a_trained_weight_or_head_fails():
    for path, name in (
        (("parameters", "trainable"), "parameters"),
        (("size", "checkpoint_bytes"), "stored"),
    ):
        records = controls()
        records[3][path[0]][path[1]] = 1
        rows = found(records)
        assert [n for n, row in rows.items() if row["passed"] is False] == [f"train_nothing_{name}"]


def test_on_a_language_model_the_score_must_be_that_of_zero_shot():
    lm = {"task": "dialogue", "metric": "loss", "higher": False}
    nothing, untrained = ok("train_nothing", quality=3.5, **lm), ok("zero_shot", quality=3.5, **lm)
    assert found([nothing, untrained])["train_nothing_score"]["passed"] is True
    assert (
        found([nothing, ok("zero_shot", quality=3.5001, **lm)])["train_nothing_score"]["passed"]
        is False
    )
    assert found([nothing])["train_nothing_score"]["passed"] == "not_run"


@pytest.mark.parametrize("right", [0, 75, 125, 200])
def test_guesses_that_know_too_much_or_too_little_fail(right):
    guesses = [y if i < right else 1 - y for i, y in enumerate(TRUTH)]
    records = controls()
    records[4]["quality"].update(value=right / 200, predictions=guesses)
    assert found(records)["random"]["passed"] is False


@pytest.mark.parametrize(
    ("value", "passed"), [(0.0, True), (0.17, True), (-0.17, True), (0.19, False), (-0.19, False)]
)
def test_a_guessed_correlation_is_near_zero(value, passed):
    """n = 200: the 99 % bound of r is t / sqrt(n - 2 + t^2) with t = 2.6009, so 0.1818."""
    guesses = ok("random", quality=value, metric="pearson", predictions=HALF, references=TRUTH)
    row = found([guesses])["random"]
    assert row["passed"] is passed
    assert row["limit"] == pytest.approx(0.1818, abs=1e-4)


def test_chance_passes_for_about_99_of_100_guessers():
    generator = random.Random(0)
    passed = 0
    for _ in range(400):
        truth = [float(generator.random() < 0.2) for _ in range(300)]
        guesses = [float(generator.random() < 0.2) for _ in range(300)]
        share = sum(a == b for a, b in zip(truth, guesses, strict=True)) / 300
        passed += found([ok("random", quality=share, predictions=guesses, references=truth)])[
            "random"
        ]["passed"]
    assert passed >= 388  # 97 %; the interval is wide for unequal classes


def test_a_leak_that_is_not_read_fails():
    records = controls()
    records[5]["quality"]["value"] = 0.995
    assert found(records)["leak"]["passed"] is False
    records[5]["cell"]["method"] = "lora"  # which may be too slow to learn it
    assert found(records)["leak"]["passed"] == "not_run"


def test_the_worst_prediction_in_either_direction_is_the_row():
    records = controls()
    for record, predicted in zip(records, (1000, 1000 + 2**26, 1020), strict=False):
        record["memory"]["predicted"] = {"peak_bytes": predicted}
    row = found(records)["measured_over_predicted"]
    assert (row["passed"], row["error"]) == (False, pytest.approx(20 / 1020))
    assert "sleep" in row["why"]
    assert (
        found(records, {"limit": 0.02, "sleep_limit": 0.2})["measured_over_predicted"]["passed"]
        is True
    )


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.sampled_from([None, 7]))
def test_rows_do_not_depend_on_record_order(order, off):
    records = controls(ballast=2**26 + (off or 0))
    assert calibration.rows(entries(records), LIMITS) == calibration.rows(
        entries([records[i] for i in order]), LIMITS
    )


# ------------------------------------------------------------------ files and commands


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A function that writes records as a run's output and a config that allows every ending."""
    monkeypatch.setattr("leantune.results.load.is_stale", lambda record: False)
    monkeypatch.chdir(tmp_path)

    def write_run(records, **more):
        write(tmp_path / "out", *records)
        config = {"output": str(tmp_path / "out"), "allowed_statuses": ["ok", "missing"], **more}
        config["cells"] = [{"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["head"]}]
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        return str(file)

    return write_run


def test_tables_are_written_also_where_a_check_fails(configured, tmp_path):
    config = configured(controls(ballast=2**26 + 1))
    assert parser.main(["tables", "--config", config]) == 0
    with (tmp_path / "out" / "tables" / "calibration.csv").open() as file:
        rows = {row["check"]: row for row in csv.DictReader(file)}
    assert list(next(iter(rows.values())))[:8] == [
        "check",
        "model",
        "task",
        "expected",
        "measured",
        "error",
        "limit",
        "passed",
    ]
    assert (
        rows["allocate_64mib_tensors"]["measured"],
        rows["allocate_64mib_tensors"]["passed"],
    ) == (
        "67108865",
        "false",
    )
    assert (rows["sleep"]["passed"], rows["allocate_64mib_cuda"]["passed"]) == ("true", "not_run")


def test_gate_and_publish_heed_the_limits(configured, tmp_path, capsys):
    wrong = controls(slept=0.35)
    config = configured(wrong)
    assert parser.main(["gate", "--config", config]) == 1
    said = capsys.readouterr().err
    assert "sleep" in said
    assert "allocate_64mib" not in said
    assert parser.main(["publish", "--config", config, "--to", str(tmp_path / "published")]) == 2
    said = capsys.readouterr().err
    assert "the calibration failed (sleep)" in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "published").exists()

    config = configured(wrong, calibration={"sleep_limit": 1.0})
    assert parser.main(["gate", "--config", config]) == 0
    readme = tmp_path / "README.md"
    readme.write_text("<!-- leaderboard:begin -->\nold\n<!-- leaderboard:end -->")
    words = ["--to", str(tmp_path / "published"), "--readme", str(readme)]
    assert parser.main(["publish", "--config", config, *words]) == 0
    assert (tmp_path / "published" / "tables" / "calibration.csv").is_file()
    assert "old" not in readme.read_text()


def test_what_a_control_scores_decides_nothing(configured, tmp_path):
    config = configured(controls())
    assert parser.main(["publish", "--config", config, "--to", str(tmp_path / "published")]) == 0
    for name in ("leaderboard", "decisions", "pareto", "budgets", "overall"):
        lines = (tmp_path / "published" / "tables" / f"{name}.csv").read_text().splitlines()
        assert len(lines) == 1, name  # the header
    assert "allocate_64mib" in (tmp_path / "published" / "tables" / "cells.csv").read_text()


def test_limits_have_defaults_and_a_schema():
    config = {"cells": [{"models": ["m"], "tasks": ["t"], "methods": ["full"]}]}
    assert load_config(config).calibration.model_dump() == {"limit": 0.01, "sleep_limit": 0.5}
    assert load_config({**config, "calibration": {"limit": 0.05}}).calibration.sleep_limit == 0.5
    with pytest.raises(BadInput, match=r"key 'calibration\.limits' is unknown"):
        load_config({**config, "calibration": {"limits": 1}})


def test_controls_are_among_the_cells_and_in_no_leaderboard():
    real = [ok(m, key={"batch": 8}) for m in ("full", "head")]
    beside = [copy.deepcopy(real[0]) for _ in range(3)]
    for record, method, model in zip(
        beside, ("random", "tfidf", "sleep"), ("none", "none", "minilm-l6"), strict=True
    ):
        record["cell"].update(method=method, model=model)
    every = entries([*controls(), *real, *beside])
    assert {"allocate_64mib", "sleep", "train_nothing", "random"} <= {
        row["method"] for row in cells(every)
    }
    rows = leaderboard(calibration.without_controls(every))
    assert sorted(row["method"] for row in rows) == ["full", "head", "tfidf"]
    text = markdown_leaderboard(rows)
    assert text.count("**") == 2  # one group
    methods = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ")][1:]
    assert methods == ["full", "head", "tfidf"]
    assert "cpu-b8" in text
