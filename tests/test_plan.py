"""Cells, comparability keys, settings."""

import json
from pathlib import Path

import pytest

from leantune.errors import BadInput
from leantune.spec.cells import resolve_cell
from leantune.spec.config import expand, load_config
from leantune.spec.settings import parse_settings

CONFIGS = Path(__file__).parents[1] / "config"


def resolve(method="full", **overrides):
    return resolve_cell("minilm-l6", "sentiment", method, 0, device="cpu", overrides=overrides)


def test_the_key_depends_on_what_makes_rows_comparable_and_on_no_method():
    base = resolve().key["short"]
    assert resolve("lora").key["short"] == base
    assert resolve("lora", **{"lora.rank": 2}).key["short"] == base
    for setting in (
        {"task.batch": 8},
        {"task.length": 32},
        {"task.steps": 3},
        {"task.dtype": "fp32"},
        {"task.train": 100},
    ):
        assert resolve(**setting).key["short"] != base


def test_the_command_resolves_to_the_same_cell():
    cell = resolve("lora", **{"lora.rank": 2, "task.steps": 3})
    words = cell.command("x.json")
    settings = parse_settings([words[i + 1] for i, w in enumerate(words) if w == "--set"])
    again = resolve_cell("minilm-l6", "sentiment", "lora", 0, device="cpu", overrides=settings)
    assert again.record_path == cell.record_path
    assert again.hashes == cell.hashes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"task.nonsense": 1}, "no setting of task"),
        ({"task.steps": 0}, "steps"),
        ({"task.batch": "many"}, "batch"),
        ({"task.test": 0}, "test"),
    ],
)
def test_a_wrong_setting_is_named(overrides, words):
    with pytest.raises(BadInput, match=words):
        resolve(**overrides)


def test_settings_are_parsed_as_values():
    assert parse_settings(["lora.rank=4", "full.lr=1e-4", "task.dtype=fp32"]) == {
        "lora.rank": 4,
        "full.lr": 1e-4,
        "task.dtype": "fp32",
    }
    with pytest.raises(BadInput, match="not of the form"):
        parse_settings(["rank"])


def test_an_unknown_config_key_is_named():
    with pytest.raises(BadInput, match="outptu"):
        load_config({"cells": [], "outptu": "x"})


def test_a_config_expands_to_each_cell_once_and_controls_have_no_model():
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["full", "full", "tfidf"]}
    cells = expand(load_config({"cells": [block, block], "device": "cpu"}))
    assert [c.method for c in cells] == ["full", "tfidf"]
    assert "/none/sentiment/tfidf/" in cells[1].record_path


def test_a_config_s_settings_reach_the_adaptation_that_an_optimizer_implies():
    block = {
        "models": ["mini-gpt"],
        "tasks": ["pretrain"],
        "methods": ["came", "sm3"],
        "set": {"full.lr": 0.5},
    }
    cells = expand(load_config({"cells": [block], "device": "cpu", "set": {"came.lr_scale": 0.25}}))
    params = [{part.plugin.name: part.params for part in cell.parts} for cell in cells]
    assert [p["full"]["lr"] for p in params] == [0.5, 0.5]
    assert params[0]["came"]["lr_scale"] == 0.25
    assert [cell.method for cell in cells] == ["came", "sm3"]


def test_a_block_may_ask_how_flat_the_minimum_is():
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["safe"], "flatness": 20}
    (cell,) = expand(load_config({"device": "cpu", "cells": [block]}))
    assert cell.command()[-4:-2] == ["--flatness", "20"]
    plain = resolve_cell("minilm-l6", "sentiment", "safe", device="cpu")
    assert (cell.hashes, cell.key, cell.record_path) == (plain.hashes, plain.key, plain.record_path)


@pytest.mark.parametrize("name", sorted(file.name for file in CONFIGS.glob("*.yaml")))
def test_what_the_workflow_keeps_of_a_config_is_that_config(name):
    """The steps of a run read the file that its start wrote, with every default in it."""
    config = load_config(CONFIGS / name)
    assert load_config(json.loads(json.dumps(config.resolved()))) == config
