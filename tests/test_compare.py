"""Step times of methods that take turns: the ratio within a round, and which rows it belongs to."""

from __future__ import annotations

import csv
import json
import math

import pytest
import sample_records

from leantune.errors import BadInput
from leantune.results import build
from leantune.results.timing import read_comparisons, vs_full
from leantune.run import step_times
from leantune.spec.cells import STEP_TIME_KEY, resolve_cell
from leantune.spec.config import TIMED_SETTINGS

TINY = {"task.steps": 6, "task.train": 32, "task.validation": 8, "task.batch": 4, "task.length": 16}


def turns(*seconds):
    return [{"full": {"step_seconds": a}, "lora": {"step_seconds": b}} for a, b in seconds]


def test_a_drift_of_the_machine_cancels_within_a_round():
    found = step_times.ratio(turns((1.0, 0.5), (2.0, 1.0), (5.0, 2.5)), "lora", "full")
    assert found["ratio"] == pytest.approx(0.5)
    assert found["low"] == pytest.approx(0.5)
    noisy = step_times.ratio(turns((1.0, 0.4), (1.0, 0.625)), "lora", "full")
    assert noisy["ratio"] == pytest.approx(math.sqrt(0.4 * 0.625))
    assert noisy["low"] < 0.4
    assert noisy["high"] > 0.625


def comparison(**changes):
    row = sample_records.ok("lora")
    key = {name: row["key"][name] for name in STEP_TIME_KEY}
    found = {
        "model": "minilm-l6",
        "task": "sentiment",
        "key": key,
        "against": "full",
        "rounds": turns((1.0, 0.5), (2.0, 2.25)),
        "ratios": {"lora": {"ratio": 0.75}},
        "hashes": {"full": "m", "lora": "m"},
    }
    return {**found, **changes}


def test_a_ratio_belongs_to_rows_of_the_same_code_task_and_machine():
    row = sample_records.ok("lora", key={"steps": 7})
    assert vs_full([comparison()], row) == (0.75, [0.5, 1.125])
    assert vs_full([comparison()], sample_records.ok("full")) == (1.0, [1.0, 1.0])
    assert vs_full([comparison()], sample_records.ok("head")) is None
    for other in (
        {"task": "valence"},
        {"model": "smollm2-135m"},
        {"against": "head"},
        {"hashes": {"full": "m", "lora": "changed"}},
        {"key": {**comparison()["key"], "batch": 8}},
        {"key": {**comparison()["key"], "hardware": "another"}},
    ):
        assert vs_full([comparison(**other)], row) is None


def test_the_tables_carry_it_and_a_damaged_file_is_named(tmp_path):
    for method in ("full", "lora"):
        sample_records.write(tmp_path, sample_records.ok(method))
    (tmp_path / "timing" / "minilm-l6").mkdir(parents=True)
    file = tmp_path / "timing" / "minilm-l6" / "sentiment.json"
    file.write_text(json.dumps(comparison()))
    build.write_tables(tmp_path)
    with (tmp_path / "tables" / "cells.csv").open() as lines:
        assert {row["method"]: row["time_vs_full"] for row in csv.DictReader(lines)} == {
            "full": "1.0",
            "lora": "0.75",
        }
    file.write_text("{")
    with pytest.raises(BadInput, match=r"sentiment\.json: damaged"):
        build.write_tables(tmp_path)


@pytest.mark.process
def test_methods_take_turns(tmp_path, host):
    words = [
        "compare",
        "--model",
        "mini-gpt",
        "--task",
        "pretrain",
        "--methods",
        "full",
        "sm3",
        "--rounds",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "t.json"),
    ]
    words += [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    said = host.run(words)
    assert said.returncode == 0
    assert [line.split()[4] for line in said.stderr.splitlines() if line.startswith("round")] == [
        "full",
        "sm3",
    ] * 2
    assert "step time against full" in said.stdout
    (found,) = read_comparisons(tmp_path)
    assert (
        found["ratios"]["sm3"]["low"]
        <= found["ratios"]["sm3"]["ratio"]
        <= found["ratios"]["sm3"]["high"]
    )
    cell = resolve_cell(
        "mini-gpt", "pretrain", "sm3", device="cpu", overrides={**TIMED_SETTINGS, **TINY}
    )
    assert found["hashes"]["sm3"] == cell.hashes["method"]
    with pytest.raises(BadInput, match="two methods and two rounds"):
        step_times.compare("mini-gpt", "pretrain", ["full"], rounds=2, device="cpu", settings={})
    short = host.run([*words, "--set", "task.steps=2"])
    assert short.returncode == 2
    assert "cannot be timed: it took 2 steps" in short.stderr
