"""The record: schema, atomic write, damage."""

import copy
import json
import shlex
from pathlib import Path

import pytest

from leantune.errors import BadInput
from leantune.files import record
from leantune.results import reproduce
from leantune.run.provenance import provenance
from leantune.spec.cells import cell_of_record, resolve_cell
from leantune.spec.settings import recorded_settings

# One record of each form that was ever published, and one that failed; lists cut short.
OLDER = Path(__file__).parent / "records"


@pytest.fixture
def good():
    cell = resolve_cell("minilm-l6", "sentiment", "lora", 3, device="cpu")
    made = copy.deepcopy(record.EMPTY)
    made["cell"] = {
        "model": "minilm-l6",
        "task": "sentiment",
        "method": "lora",
        "point": None,
        "seed": 3,
        "trial": None,
    }
    made["key"] = dict(cell.key)
    made["provenance"] = provenance(cell.command(), cell.hashes, cell.hardware)
    return made


def test_a_record_survives_the_round_trip(tmp_path, good):
    path = tmp_path / "a" / "3.json"
    record.write_record(path, good)
    assert record.read_record(path) == good


def test_a_record_of_the_wrong_shape_is_never_written(tmp_path, good):
    good["status"] = "fine"
    with pytest.raises(BadInput, match="status"):
        record.write_record(tmp_path / "x.json", good)
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_never_written(tmp_path, good):
    good["details"] = {"x": float("nan")}
    with pytest.raises(ValueError, match="Out of range float"):
        record.write_record(tmp_path / "x.json", good)
    assert not (tmp_path / "x.json").exists()


def test_a_truncated_record_is_named(tmp_path, good):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(good)[:200])
    with pytest.raises(BadInput, match=r"x\.json: damaged record"):
        record.read_record(path)


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(tmp_path, good, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device"):
        record.write_record(tmp_path / "x.json", good)
    assert list(tmp_path.iterdir()) == []


def test_provenance_names_commit_packages_and_command(good):
    told = good["provenance"]
    assert told["command"].startswith("leantune run --model minilm-l6")
    assert told["packages"]["torch"].startswith("2.13")
    assert set(told["hashes"]) == {"method", "task", "model"}


# ------------------------------------------------------------------ what the cell was given


def test_a_record_makes_its_cell_again_whatever_its_command_says(good):
    overrides = {"lora.rank": 2, "task.dtype": "fp32", "lora.lr": 1e-4}
    cell = resolve_cell(
        "minilm-l6", "sentiment", "lora", 3, device="cpu", overrides=overrides, flatness=5
    )
    good["cell"]["settings"] = cell.settings
    good["provenance"]["command"] = "for people 'only"
    again = cell_of_record(json.loads(json.dumps(good)))
    assert again == cell
    assert again.hashes == cell.hashes
    assert reproduce.command(good, Path("x.json")) == cell.command()[1:-2]


def test_a_control_keeps_the_model_that_its_row_does_not_name(good):
    cell = resolve_cell("minilm-l6", "sentiment", "tfidf", 3, device="cpu")
    good["cell"].update(model=cell.model_name, method="tfidf", settings=cell.settings)
    assert good["cell"]["model"] == "none"
    assert cell_of_record(good) == cell


@pytest.mark.parametrize(
    ("name", "model", "settings", "flatness"),
    [
        ("first_form", "smollm2-135m", {}, 0),
        ("ok", "mini-bert", {"full.lr": 0.001, "adafactor.lr_scale": 1.0}, 0),
        ("control", "minilm-l6", {}, 0),
        ("tuned", "minilm-l6", {}, 0),
        ("flatness", "minilm-l6", {"adapter.lr": 0.002}, 20),
        ("intervals", "smollm2-135m", {}, 0),
        ("failed", "minilm-l6", {"task.steps": 3, "task.dtype": "fp32"}, 0),
    ],
)
def test_a_record_of_an_older_form_is_read_and_makes_its_cell(name, model, settings, flatness):
    row = record.read_record(OLDER / f"{name}.json")
    assert "settings" not in row["cell"]
    cell = cell_of_record(row)
    assert cell.settings == {"model": model, "set": settings, "flatness": flatness}
    told = {"model": cell.model_name, "task": cell.task.name, "method": cell.method}
    assert {**row["cell"], **told, "seed": cell.seed} == row["cell"]
    words = shlex.split(row["provenance"]["command"])
    assert reproduce.command(row, OLDER) == words[1:-2]  # without `--out FILE`


def test_an_older_command_is_read_by_its_flags():
    def given(command):
        cell = {"model": "none"}
        return recorded_settings({"cell": cell, "provenance": {"command": command}})

    command = (
        "leantune run --force --model m --set=a.b=1 --export 'a b' --set a.c='[1, 2]' --trial 3"
    )
    assert given(command) == {"model": "m", "set": {"a.b": 1, "a.c": [1, 2]}, "flatness": 0}
    assert given("leantune run")["model"] == "none"
    for wrong in ("leantune run --set", "leantune run --flatness many", "leantune run 'x"):
        with pytest.raises(BadInput, match="command cannot be read"):
            given(wrong)
