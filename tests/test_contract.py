"""What scripts may use of `leantune` itself: each name works in a fresh process, and again."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import leantune
from leantune.errors import BadInput
from leantune.spec import plugins

ROOT = plugins.roots()[0]
SIZES = {"train": 20, "validation": 5, "test": 10}
CALLS = {
    "apply": "leantune.apply(AutoModelForSequenceClassification.from_config(config), 'lora').model",
    "load": "leantune.load(exported).config.model_type",
    "load_data": f"leantune.load_data('sentiment', 'minilm-l6', length=8, splits={SIZES}).train[0]",
    "predict": "leantune.predict('mini-gpt', 'lora', batch=2, length=16)['peak_bytes']",
    "read_records": "leantune.read_records(records)[0]['cell']['task']",
}


def fresh(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def a_record() -> Path:
    return next((ROOT / "results" / "default" / "records").rglob("*.json"))


def test_there_is_a_call_for_every_public_name() -> None:
    assert sorted(CALLS) == sorted(leantune.__all__)


@pytest.mark.process
def test_every_name_works_in_a_fresh_process_and_again(tmp_path: Path) -> None:
    """No import on the way puts a module where the function was."""
    shutil.copy(a_record(), tmp_path)
    code = f"""
import sys
import leantune
assert "torch" not in sys.modules
from transformers import AutoModelForSequenceClassification, BertConfig
config = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=9)
records, exported = sys.argv[1:]
AutoModelForSequenceClassification.from_config(config).save_pretrained(exported)
for turn in range(2):
    for call in {[*CALLS.values()]!r}:
        print(turn, str(eval(call))[:60].splitlines()[0])
"""
    said = fresh(code, str(tmp_path), str(tmp_path / "exported")).splitlines()
    first, again = ([line[1:] for line in said if line[0] == turn] for turn in "01")
    assert len(first) == len(CALLS)
    assert first == again


@pytest.mark.process
def test_a_name_works_where_it_is_the_first_thing_imported() -> None:
    for name in leantune.__all__:
        assert fresh(f"from leantune import {name}; print({name}.__name__)").strip()


# ------------------------------------------------------------------ load_data


def test_data_are_those_of_a_run_by_name_and_by_plugin() -> None:
    data = leantune.load_data("sentiment", "minilm-l6", length=8, splits=SIZES)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 5, 10]
    assert len(data.label_names) == 2
    assert max(map(len, data.train["input_ids"])) == 8
    assert set(data.collate([data.train[0]])) >= {"input_ids", "attention_mask", "labels"}
    task, model = plugins.get("tasks", "sentiment"), plugins.get("models", "minilm-l6")
    again = leantune.load_data(task, model, length=8, splits=SIZES)
    assert again.train.to_dict() == data.train.to_dict()
    other = leantune.load_data(task, model, length=8, splits={**SIZES, "seed": 1})
    assert other.train["text"] != data.train["text"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"task": "sentimental"}, "unknown task 'sentimental'"),
        ({"model": "bertha"}, "unknown model 'bertha'"),
        ({"splits": {"dev": 3}}, "'task.dev' is no setting of task 'sentiment'"),
        ({"length": 0}, "length"),
    ],
)
def test_wrong_words_are_refused(words: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        leantune.load_data(**{"task": "sentiment", "model": "minilm-l6", **words})


# ------------------------------------------------------------------ read_records


def test_records_are_read_in_order_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    whole = json.loads(a_record().read_text(encoding="utf-8"))
    for name, seed in (("b/1.json", 1), ("a/2.json", 2)):
        (tmp_path / name).parent.mkdir()
        changed = {**whole, "cell": {**whole["cell"], "seed": seed}}
        (tmp_path / name).write_text(json.dumps(changed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = leantune.read_records(str(tmp_path))
    assert [one["cell"]["seed"] for one in found] == [2, 1]
    (tmp_path / "a" / "0.json").write_text("{")
    with pytest.warns(UserWarning, match=r"a/0\.json.*delete it and run its cell again"):
        assert leantune.read_records(tmp_path) == found
    with pytest.raises(BadInput, match="there is no folder"):
        leantune.read_records(tmp_path / "none")
