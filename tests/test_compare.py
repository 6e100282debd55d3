"""Step times of methods that take turns: the ratio within a round, and which rows it belongs to."""

from __future__ import annotations

import csv
import json
import math

import pytest
import sample_records

from leantune import cli, compare, plan, tables
from leantune.errors import BadInput

TINY = {"task.steps": 6, "task.train": 32, "task.validation": 8, "task.batch": 4, "task.length": 16}


def turns(*seconds):
    return [{"full": {"step_seconds": a}, "lora": {"step_seconds": b}} for a, b in seconds]


def test_a_drift_of_the_machine_cancels_within_a_round():
    found = compare.ratio(turns((1.0, 0.5), (2.0, 1.0), (5.0, 2.5)), "lora", "full")
    assert found["ratio"] == pytest.approx(0.5)
    assert found["low"] == pytest.approx(0.5)
    noisy = compare.ratio(turns((1.0, 0.4), (1.0, 0.625)), "lora", "full")
    assert noisy["ratio"] == pytest.approx(math.sqrt(0.4 * 0.625))
    assert noisy["low"] < 0.4
    assert noisy["high"] > 0.625


def comparison(**changes):
    row = sample_records.ok("lora")
    key = {name: row["key"][name] for name in compare.SAME}
    found = {
        "model": "minilm-l6", "task": "sentiment", "key": key, "against": "full",
        "rounds": turns((1.0, 0.5), (2.0, 2.25)), "ratios": {"lora": {"ratio": 0.75}}, "hashes": {"full": "m", "lora": "m"},
    }  # fmt: skip
    return {**found, **changes}


def test_a_ratio_belongs_to_rows_of_the_same_code_task_and_machine():
    row = sample_records.ok("lora", key={"steps": 7})
    assert compare.vs_full([comparison()], row) == (0.75, [0.5, 1.125])
    assert compare.vs_full([comparison()], sample_records.ok("full")) == (1.0, [1.0, 1.0])
    assert compare.vs_full([comparison()], sample_records.ok("head")) is None
    for other in (
        {"task": "valence"}, {"model": "smollm2-135m"}, {"against": "head"}, {"hashes": {"full": "m", "lora": "changed"}},
        {"key": {**comparison()["key"], "batch": 8}}, {"key": {**comparison()["key"], "hardware": "another"}},
    ):  # fmt: skip
        assert compare.vs_full([comparison(**other)], row) is None


def test_the_tables_carry_it_and_a_damaged_file_is_named(tmp_path):
    for method in ("full", "lora"):
        sample_records.write(tmp_path, sample_records.ok(method))
    (tmp_path / "timing" / "minilm-l6").mkdir(parents=True)
    file = tmp_path / "timing" / "minilm-l6" / "sentiment.json"
    file.write_text(json.dumps(comparison()))
    tables.write_tables(tmp_path)
    with (tmp_path / "tables" / "cells.csv").open() as lines:
        assert {row["method"]: row["time_vs_full"] for row in csv.DictReader(lines)} == {"full": "1.0", "lora": "0.75"}
    file.write_text("{")
    with pytest.raises(BadInput, match=r"sentiment\.json: damaged"):
        tables.write_tables(tmp_path)


def test_methods_take_turns(tmp_path, capsys):
    words = ["compare", "--model", "mini-gpt", "--task", "pretrain", "--methods", "full", "sm3", "--rounds", "2",
             "--device", "cpu", "--out", str(tmp_path / "t.json")]  # fmt: skip
    words += [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert [line.split()[4] for line in said.err.splitlines() if line.startswith("round")] == ["full", "sm3"] * 2
    assert "step time against full" in said.out
    (found,) = compare.read_comparisons(tmp_path)
    assert found["ratios"]["sm3"]["low"] <= found["ratios"]["sm3"]["ratio"] <= found["ratios"]["sm3"]["high"]
    cell = plan.resolve("mini-gpt", "pretrain", "sm3", device="cpu", overrides={**compare.SHORT, **TINY})
    assert found["hashes"]["sm3"] == cell.hashes["method"]
    with pytest.raises(BadInput, match="two methods and two rounds"):
        compare.compare("mini-gpt", "pretrain", ["full"], rounds=2, device="cpu", settings={})
    with pytest.raises(BadInput, match="cannot be timed: it took 2 steps"):
        compare.compare("mini-gpt", "pretrain", ["full", "sm3"], rounds=2, device="cpu",
                        settings={**TINY, "task.steps": 2})  # fmt: skip
