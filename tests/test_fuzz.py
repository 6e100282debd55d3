"""A short run of tests/fuzz.py, and the inputs that once crashed a reader."""

import json
from pathlib import Path

import fuzz
import pytest
from sample_records import ok, write

from leantune import tabfiles
from leantune.errors import BadInput
from leantune.files import parse, record
from leantune.results import build
from leantune.results.timing import read_comparisons
from leantune.run import trials
from leantune.spec.config import load_config


def test_odd_input_is_bad_input_and_nothing_else() -> None:
    tried, found = fuzz.crashes(660, start=17)
    assert tried == 660
    assert not found


def test_the_fuzzer_sees_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(text: str, folder: Path) -> None:
        raise KeyError(text)

    strategy = fuzz.targets()["size"][0]
    monkeypatch.setattr(fuzz, "targets", lambda: {"size": (strategy, reader)})
    tried, found = fuzz.crashes(50)
    assert tried == 50
    assert sum(count for count, _ in found.values()) == 50


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: !!bool x",
        "a: !!int",
        "a: !!timestamp x",
        "a: 2020-13-45",
        "a: 2020-01-01",
        "a: !!python/object/apply:os.system [id]",
        "a: " + "[" * 2000,
        "a: " + "9" * 5000,
        "a: !!float ''",
        "!!set {a, b}",
    ],
)
def test_yaml_that_is_no_plain_data_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"x\.yaml"):
        parse.read_yaml(tmp_path / "x.yaml")


def test_a_config_given_as_a_mapping_may_not_hold_itself_either() -> None:
    block: dict = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["full"]}
    block["set"] = {"lora.lr": block}
    with pytest.raises(BadInput, match="levels"):
        load_config({"cells": [block]})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-" + "9" * 400])
def test_a_number_that_is_none_is_damage(number: str, tmp_path: Path) -> None:
    text = json.dumps(ok(quality=0.5)).replace("0.5", number)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadInput, match=f"{number[:20]} is no number"):
        record.read_record(tmp_path / "x.json")


@pytest.mark.parametrize(
    "change", [{"settings": None}, {"settings": {"x": 1}}, {"at_edge": 3}, {"trials": [1]}]
)
def test_a_choice_of_another_shape_is_refused(change: dict, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({**fuzz.CHOICE, **change}))
    with pytest.raises(BadInput, match="leantune choose"):
        trials.read_choice(tmp_path / "x.json")


@pytest.mark.parametrize(
    "change", [{"key": {}}, {"hashes": []}, {"ratios": {"lora": None}}, {"ratios": 1}]
)
def test_a_comparison_of_another_shape_is_refused(change: dict, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({**fuzz.COMPARISON, **change}))
    with pytest.raises(BadInput, match=r"x\.json.*leantune compare"):
        read_comparisons(tmp_path)


def test_a_table_of_texts_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tab").write_bytes(b"text\tclass\n\n\n\xff\ta\n")
    with pytest.raises(BadInput, match="UTF-8"):
        tabfiles.read_tab(tmp_path / "x.tab", {"text": "text"})


def test_records_that_contradict_themselves_still_make_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that was reached before the first interval, predictions without references, a
    control without a score."""
    monkeypatch.setattr("leantune.results.load.is_stale", lambda record: False)
    odd = ok("came", quality=0.75)
    odd["memory"]["tensors"]["intervals"] = [{"step": 5, "peak_bytes": 10}]
    odd["quality"].update(steps_to_target=5, predictions=[0.0, 1.0], references=[])
    write(
        tmp_path,
        odd,
        ok("full", predictions=[0.0, 1.0], references=[0.0, 1.0]),
        {**ok("random"), "quality": None},
    )
    rows = {row["method"]: row for row in build.write_tables(tmp_path)}
    assert rows["came"]["peak_to_target_bytes"] is None
    assert rows["came"]["quality_low"] is None
