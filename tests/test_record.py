"""The record: schema, atomic write, damage."""

import copy
import json

import pytest

from leantune.errors import BadInput
from leantune.files import record
from leantune.run import provenance as provenance_module
from leantune.spec.cells import resolve_cell


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
    made["provenance"] = provenance_module.provenance(cell.command(), cell.hashes, cell.hardware)
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
    provenance = good["provenance"]
    assert provenance["command"].startswith("leantune run --model minilm-l6")
    assert provenance["packages"]["torch"].startswith("2.13")
    assert set(provenance["hashes"]) == {"method", "task", "model"}
