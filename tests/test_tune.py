"""Equal trials: a grid becomes numbered cells, each scored once on the validation split."""

from __future__ import annotations

import pytest

from leantune import cli, record, tune
from leantune.errors import BadInput

TINY = ["task.steps=2", "task.train=32", "task.validation=8", "task.test=8", "task.batch=4", "task.length=16",
        "task.evaluations=2"]  # fmt: skip


def test_a_grid_is_the_product_of_its_values():
    grid = tune.parse_grid(["came.lr_scale=0.1,3e-1", "came.beta3=0.9999,0.999"])
    assert grid == {"came.lr_scale": [0.1, 0.3], "came.beta3": [0.9999, 0.999]}
    cells = tune.trials("mini-gpt", "pretrain", "came", grid, 0, "cpu", {"task.steps": 7})
    points = [{p.plugin.name: p.params for p in c.parts}["came"] for c in cells]
    assert [(p["lr_scale"], p["beta3"]) for p in points] == [(0.1, 0.9999), (0.1, 0.999), (0.3, 0.9999), (0.3, 0.999)]
    assert [c.trial for c in cells] == [0, 1, 2, 3]
    assert {c.training["steps"] for c in cells} == {7}
    assert len({c.record_path for c in cells}) == 4
    assert all(c.record_path.startswith("tuning/") for c in cells)


def test_without_a_grid_the_plugins_own_values_are_tried():
    assert tune.default_grid("vocab_pruning+svfit@r64") == {"svfit.lr": [0.01, 0.02, 0.05, 0.1]}
    with pytest.raises(BadInput, match=r"--search METHOD\.PARAM"):
        tune.default_grid("vocab_pruning")
    with pytest.raises(BadInput, match="not of the form"):
        tune.parse_grid(["came.lr_scale"])


@pytest.mark.parametrize(("higher", "winner"), [(True, 1), (False, 3)])
def test_the_best_is_of_those_that_ended_well(higher, winner):
    def ended(value):
        return {"status": "ok", "quality": {"value": value, "higher_is_better": higher, "metric": "m"}}

    diverged = {"status": "diverged", "quality": None}
    assert tune.best([diverged, ended(0.9), ended(0.5), ended(0.1), ended(0.1)]) == winner
    assert tune.best([diverged]) is None


def test_trials_are_made_once_and_scored_on_the_validation_split(tmp_path, capsys):
    words = ["tune", "--model", "mini-gpt", "--task", "pretrain", "--method", "full", "--device", "cpu",
             "--search", "full.lr=1e-9,1e-2", "--output", str(tmp_path)]  # fmt: skip
    words += [word for setting in TINY for word in ("--set", setting)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out.splitlines()[-2:]
    assert "full.lr=1e-09" in said[0]
    assert "full.lr=0.01" in said[1]
    assert said[1].endswith("best")
    files = sorted((tmp_path / "tuning").rglob("*.json"))
    assert [f.name for f in files] == ["0-trial0.json", "0-trial1.json"]
    rows = [record.read_record(f) for f in files]
    assert [len(r["quality"]["curve"]) for r in rows] == [2, 2]
    assert rows[0]["quality"]["value"] == pytest.approx(rows[0]["quality"]["curve"][-1]["value"], abs=1e-6)
    before = [f.stat().st_mtime_ns for f in files]
    assert cli.main(words) == 0
    assert [f.stat().st_mtime_ns for f in files] == before
