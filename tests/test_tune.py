"""Equal trials: a grid becomes numbered cells, each scored once on the validation split."""

from __future__ import annotations

import pytest
import sample_records
from tests.host import cell_words

from leantune.cli import parser
from leantune.errors import BadInput
from leantune.files import record
from leantune.run import trials
from leantune.spec.cells import resolve_cell
from leantune.spec.config import expand, load_config
from leantune.spec.trials import choice_files, chosen_settings, nearest_points, planned_trials

TINY = [
    "task.steps=2",
    "task.train=32",
    "task.validation=8",
    "task.test=8",
    "task.batch=4",
    "task.length=16",
    "task.evaluations=2",
]


def test_a_grid_is_the_product_of_its_values():
    grid = trials.parse_grid(["came.lr_scale=0.1,3e-1", "came.beta3=0.9999,0.999"])
    assert grid == {"came.lr_scale": [0.1, 0.3], "came.beta3": [0.9999, 0.999]}
    cells = trials.trials("mini-gpt", "pretrain", "came", grid, 0, "cpu", {"task.steps": 7})
    points = [{p.plugin.name: p.params for p in c.parts}["came"] for c in cells]
    assert [(p["lr_scale"], p["beta3"]) for p in points] == [
        (0.1, 0.9999),
        (0.1, 0.999),
        (0.3, 0.9999),
        (0.3, 0.999),
    ]
    assert [c.trial for c in cells] == [0, 1, 2, 3]
    assert {c.training["steps"] for c in cells} == {7}
    assert len({c.record_path for c in cells}) == 4
    assert all(c.record_path.startswith("tuning/") for c in cells)


def test_without_a_grid_the_plugins_own_values_are_tried():
    assert trials.default_grid("vocab_pruning+svfit@r64") == {"svfit.lr": [0.01, 0.02, 0.05, 0.1]}
    with pytest.raises(BadInput, match=r"--search METHOD\.PARAM"):
        trials.default_grid("vocab_pruning")
    with pytest.raises(BadInput, match="not of the form"):
        trials.parse_grid(["came.lr_scale"])


@pytest.mark.parametrize(("higher", "winner"), [(True, 1), (False, 3)])
def test_the_best_is_of_those_that_ended_well(higher, winner):
    def ended(value):
        return {
            "status": "ok",
            "quality": {"value": value, "higher_is_better": higher, "metric": "m"},
        }

    diverged = {"status": "diverged", "quality": None}
    assert trials.best([diverged, ended(0.9), ended(0.5), ended(0.1), ended(0.1)]) == winner
    assert trials.best([diverged]) is None


@pytest.mark.process
def test_trials_are_made_once_and_scored_on_the_validation_split(tmp_path, host):
    words = [
        "tune",
        "--model",
        "mini-gpt",
        "--task",
        "pretrain",
        "--method",
        "full",
        "--device",
        "cpu",
        "--search",
        "full.lr=1e-9,1e-2",
        "--output",
        str(tmp_path),
    ]
    words += [word for setting in TINY for word in ("--set", setting)]
    done = host.run(words)
    assert done.returncode == 0
    said = done.stdout.splitlines()[-2:]
    assert "full.lr=1e-09" in said[0]
    assert "full.lr=0.01" in said[1]
    assert said[1].endswith("best")
    files = sorted((tmp_path / "tuning").rglob("*.json"))
    assert [f.name for f in files] == ["0-trial0.json", "0-trial1.json"]
    rows = [record.read_record(f) for f in files]
    assert [len(r["quality"]["curve"]) for r in rows] == [2, 2]
    assert rows[0]["quality"]["value"] == pytest.approx(
        rows[0]["quality"]["curve"][-1]["value"], abs=1e-6
    )
    before = [f.stat().st_mtime_ns for f in files]
    assert host.run(words).returncode == 0
    assert [f.stat().st_mtime_ns for f in files] == before


def test_a_method_tries_its_default_and_the_nearest_points_of_its_grid():
    assert nearest_points("full", "classification", 3) == [{}, {"full.lr": 1e-4}, {"full.lr": 4e-4}]
    points = nearest_points("came", "classification", 4)
    assert points == [{}, {"came.lr_scale": 0.045}, {"came.lr_scale": 0.22}, {"came.beta3": 0.999}]
    assert nearest_points("full", "classification", 1) == [{}]
    assert len(nearest_points("full", "classification", 99)) == 4  # the grid has no more


CONFIG = {
    "device": "cpu",
    "cells": [
        {
            "models": ["minilm-l6"],
            "tasks": ["sentiment"],
            "methods": ["full", "came", "head"],
            "trials": 3,
        },
        {
            "models": ["minilm-l6"],
            "tasks": ["sentiment"],
            "methods": ["vocab_pruning", "vocab_pruning+came", "svfit", "came@b3_999"],
        },
        {"models": ["minilm-l6"], "tasks": ["valence"], "methods": ["full"]},
    ],
}


def test_what_is_tuned_and_who_takes_its_settings():
    config = load_config(CONFIG)
    planned = planned_trials(config)
    assert sorted((len(cells), cells[0].method) for cells in planned.values()) == [
        (3, "came"),
        (3, "full"),
    ]
    assert {cell.trial for cells in planned.values() for cell in cells} == {0, 1, 2}
    taken = {
        (cell.task.name, cell.method): [file.split("/")[4] for file in choice_files(cell, planned)]
        for cell in expand(config)
    }
    assert taken == {
        ("sentiment", "full"): ["full"],
        ("sentiment", "came"): ["came"],
        ("sentiment", "head"): [],
        ("sentiment", "vocab_pruning"): ["full"],
        ("sentiment", "vocab_pruning+came"): ["came"],
        ("sentiment", "svfit"): [],
        ("sentiment", "came@b3_999"): ["came"],
        ("valence", "full"): [],
    }


def test_a_value_is_set_by_hand_or_searched_for_not_both():
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["full"], "trials": 2}
    with pytest.raises(BadInput, match=r"'full\.lr' is set and, with `trials`, searched for"):
        planned_trials(
            load_config({"device": "cpu", "cells": [{**block, "set": {"full.lr": 1e-3}}]})
        )


def trial(number, value, *words, method="came"):
    row = sample_records.ok(
        method, quality=value, command=f"leantune run {' '.join(words)} --out FILE"
    )
    row["cell"]["trial"] = number
    return row


def test_a_choice_is_the_best_trial_and_says_whether_it_is_at_the_edge():
    low, high = (
        ("--set", "came.lr_scale=0.045"),
        ("--set", "came.lr_scale=0.22", "--set", "task.steps=5"),
    )
    middle = trials.choice([trial(0, 0.8), trial(1, 0.7, *low), trial(2, 0.6, *high)])
    assert (middle["chosen"], middle["settings"], middle["at_edge"]) == (0, {}, [])
    edge = trials.choice([trial(0, 0.8), trial(1, 0.7, *low), trial(2, 0.9, *high)])
    assert (edge["chosen"], edge["settings"], edge["at_edge"]) == (
        2,
        {"came.lr_scale": 0.22},
        ["came.lr_scale"],
    )
    assert [row["value"] for row in edge["trials"]] == [0.8, 0.7, 0.9]
    failed = [{**trial(n, 0.8), "status": "diverged", "quality": None} for n in range(2)]
    assert (trials.choice(failed)["chosen"], trials.choice(failed)["settings"]) == (None, {})


def test_a_point_keeps_what_it_sets():
    chosen = {"settings": {"came.lr_scale": 0.22, "came.beta3": 0.9999}}
    cell = resolve_cell("minilm-l6", "sentiment", "came@b3_999", device="cpu")
    assert chosen_settings(cell, [chosen]) == {"came.lr_scale": 0.22}


@pytest.mark.process
def test_a_run_takes_the_chosen_settings_and_records_the_trials(tmp_path, capsys, host):
    file, out = tmp_path / "chosen.json", tmp_path / "record.json"
    records = [tmp_path / "0.json", tmp_path / "1.json"]
    record.write_record(records[0], trial(0, 0.8, method="full"))
    record.write_record(records[1], trial(1, 0.9, "--set", "full.lr=4.0e-4", method="full"))
    assert parser.main(["choose", *map(str, records), "--out", str(file)]) == 0
    words = [
        *cell_words("full", out, *TINY, model="mini-gpt", task="pretrain"),
        *("--tuning", str(file)),
    ]
    assert host.run(words).returncode == 0
    done = record.read_record(out)
    assert "--set full.lr=0.0004" in done["provenance"]["command"]
    assert done["tuning"]["full"]["chosen"] == 1
    assert done["tuning"]["full"]["at_edge"] == ["full.lr"]
    assert host.run([*words, "--set", "full.lr=0.5"]).returncode == 0
    assert "--set full.lr=0.5" in record.read_record(out)["provenance"]["command"]
    capsys.readouterr()
    assert parser.main([*words[:-1], str(out)]) == 2
    assert "not a choice of settings" in capsys.readouterr().err
