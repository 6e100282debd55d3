"""A record run again: what holds, what differs, and what cannot be said."""

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from sample_records import failed, ok
from tests.host import cell_words

from leantune.cli import parser
from leantune.errors import BadInput
from leantune.files import record
from leantune.results import comparison, reproduce
from leantune.spec.cells import cell_of_record, resolve_cell

SMALL = [
    "task.steps=3",
    "task.train=32",
    "task.validation=8",
    "task.test=24",
    "task.evaluations=0",
    "task.length=8",
]
PACKAGES = {"torch": "2.13.0+cpu", "transformers": "5.23.0"}


@pytest.fixture(scope="module")
def real(tmp_path_factory, host):
    """The record of a tiny cell, just made."""
    out = tmp_path_factory.mktemp("cell with a space") / "head.json"
    # every flag of a record's command is run again
    done = host.run([*cell_words("head", out, *SMALL), "--flatness", "1"])
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.process
def test_a_real_cell_is_reproduced_to_the_bit(real, host):
    before = real.read_bytes()
    done = host.run(["repro", real])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["field", "recorded", "now", "verdict"]
    bytes_ = [
        f"{name} bytes"
        for name in ("tensors peak", "headline peak", "predicted peak", "activations")
    ]
    for name in (
        "status",
        *bytes_,
        "trainable parameters",
        "total parameters",
        "samples",
        "accuracy",
    ):
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line.endswith(" equal"), line
    assert any("ratio" in line for line in lines if line.startswith("step seconds"))
    assert real.read_bytes() == before


@pytest.mark.process
def test_a_byte_count_changed_by_hand_is_found(real, tmp_path, host):
    changed = json.loads(real.read_text())
    changed["memory"]["tensors"]["by_kind"]["activations"] += 512
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(changed))
    done = host.run(["repro", file, "--json"])
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert told["reproduced"] is False
    wrong = [field for field in told["fields"] if field["verdict"] == "differs"]
    assert [(field["field"], field["recorded"] - field["now"]) for field in wrong] == [
        ("activations bytes", 512)
    ]


# ------------------------------------------------------------------ the comparison


def pair(**more):
    """Two equal records of a cell."""
    made = ok("lora", peak=1000, **more)
    made["provenance"]["packages"] = dict(PACKAGES)
    made["memory"]["predicted"] = {"peak_bytes": 1000}
    made["memory"]["tensors"]["optimizer_state_bytes"] = 80
    return made, copy.deepcopy(made)


def verdicts(then, now):
    return {field["field"]: field["verdict"] for field in reproduce.fields(then, now)}


def test_equal_records_hold_in_every_field():
    found = verdicts(*pair())
    assert set(found.values()) == {"equal", "ratio 1.00"}
    assert len(found) == 12


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("tensors peak bytes", ("memory", "tensors", "peak_bytes")),
        ("headline peak bytes", ("memory", "peak_bytes")),
        ("mean peak bytes", ("memory", "mean_peak_bytes")),
        ("predicted peak bytes", ("memory", "predicted", "peak_bytes")),
        ("optimizer state bytes", ("memory", "tensors", "optimizer_state_bytes")),
        ("weights bytes", ("memory", "tensors", "by_kind", "weights")),
        ("trainable parameters", ("parameters", "trainable")),
        ("total parameters", ("parameters", "total")),
        ("samples", ("key", "samples")),
    ],
)
def test_every_field_is_looked_at(field, path):
    then, now = pair()
    inner = then
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = "other" if field == "samples" else inner[path[-1]] + 1
    fields = reproduce.fields(then, now)
    assert [f["field"] for f in fields if f["verdict"] == "differs"] == [field]
    assert not reproduce.holds(fields)
    assert f"differs: {field}" in reproduce.describe(fields)


def test_bytes_of_other_versions_are_not_compared_and_say_which():
    then, now = pair()
    then["memory"]["tensors"]["peak_bytes"] = 7
    then["provenance"]["packages"]["transformers"] = "5.22.0"
    fields = reproduce.fields(then, now)
    assert (
        verdicts(then, now)["tensors peak bytes"]
        == "not compared: transformers 5.22.0, here 5.23.0"
    )
    assert reproduce.holds(fields)
    then["provenance"]["packages"] = {
        "torch": "2.13.0+cu130",
        "transformers": "5.23.0",
    }  # the same torch, for GPUs
    assert verdicts(then, now)["tensors peak bytes"] == "differs"


def test_a_score_must_lie_in_the_interval_of_the_recorded_one():
    truth = [float(i % 2) for i in range(400)]
    right = [
        y if i % 5 else 1 - y for i, y in enumerate(truth)
    ]  # 0.8; the interval is about 0.76 to 0.84
    then, now = pair(quality=0.8, predictions=right, references=truth)
    for score, holds in ((0.8, True), (0.775, True), (0.825, True), (0.7, False), (0.9, False)):
        now["quality"]["value"] = score
        fields = reproduce.fields(then, now)
        assert reproduce.holds(fields) is holds, score
    assert verdicts(then, now)["accuracy"].startswith("differs: outside [0.7")


def test_a_score_without_predictions_must_be_equal():
    then, now = pair(quality=0.8)
    now["quality"]["value"] = 0.8000001
    assert verdicts(then, now)["accuracy"] == "differs"


def test_times_never_decide():
    then, now = pair()
    now["time"]["step_seconds_median"] = 50.0
    assert verdicts(then, now)["step seconds"] == "ratio 100.00"
    now["key"]["hardware"] = "another"
    assert verdicts(then, now)["step seconds"].startswith("not compared")
    assert reproduce.holds(reproduce.fields(then, now))


def test_a_cell_that_fails_now_differs_by_its_status():
    then, _ = pair()
    assert verdicts(then, failed("lora"))["status"] == "differs"
    assert verdicts(failed("lora"), failed("lora")) == {"status": "equal"}


def test_files_that_changed_since_are_named_and_decide_nothing():
    then, now = pair()
    then["provenance"]["hashes"] = {**then["provenance"]["hashes"], "task": "older"}
    assert verdicts(then, now)["files"] == "changed since: task"
    assert reproduce.holds(reproduce.fields(then, now))


def test_one_function_compares_two_records():
    """Whoever takes two records goes by results/comparison.py, which knows what is absent."""
    source = Path(comparison.__file__).parents[1]
    code = {file.name: file.read_text() for file in source.rglob("*.py")}
    two = {name for name, text in code.items() if re.search(r"\w+: Record,\s+\w+: Record\b", text)}
    assert two == {"comparison.py", "reproduce.py"}
    using = {n for n, text in code.items() if "from leantune.results.comparison import" in text}
    assert using >= {"reproduce.py", "merge.py"}
    assert [
        n for n, text in code.items() if re.search(r"^def (compare|differing)\(one", text, re.M)
    ] == ["comparison.py"]


# ------------------------------------------------------------------ bad input


def sound(tmp_path, **changes):
    """A record's file whose command fits its cell, `changes` aside."""
    cell = resolve_cell(
        "minilm-l6", "sentiment", "lora", device="cpu", overrides={"task.steps": 3, "lora.rank": 4}
    )
    made = ok("lora", command=shlex.join(cell.command("FILE")), hashes=dict(cell.hashes))
    made["cell"].update(changes.get("cell", {}))
    if "command" in changes:
        made["provenance"]["command"] = changes["command"](made["provenance"]["command"])
    file = tmp_path / "record.json"
    record.write_record(file, made)
    return file


def test_the_command_is_the_recorded_one(tmp_path):
    file = sound(tmp_path)
    words = reproduce.command(record.read_record(file), file)
    assert words[:7] == ["run", "--model", "minilm-l6", "--task", "sentiment", "--method", "lora"]
    assert words[-4:] == ["--set", "task.steps=3", "--set", "lora.rank=4"]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c + " --export /tmp/somewhere",
        lambda c: c.replace("leantune run", "rm -rf"),
        lambda c: c + "; touch here",
        lambda c: c + " --force",
        lambda c: c.replace("--seed 0", "--seed 1"),
        lambda c: c.replace("minilm-l6", "bert-base --model minilm-l6"),
        lambda c: c + ' "',
    ],
)
def test_a_command_of_another_form_is_not_run(tmp_path, monkeypatch, change):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was run"))
    with pytest.raises(BadInput, match="command"):
        reproduce.run_again(sound(tmp_path, command=change))


def test_bad_files_are_one_sentence_and_exit_2(tmp_path, capsys):
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    gone = sound(tmp_path, cell={"method": "no_such_method"})
    for file, message in (
        (tmp_path / "none.json", "does not exist"),
        (damaged, "damaged"),
        (gone, "no_such_method"),
    ):
        assert parser.main(["repro", str(file)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1


def test_a_gpu_record_needs_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("leantune.machine.gpus.gpu_name", lambda: None)
    cell = resolve_cell("minilm-l6", "sentiment", "lora", device="cuda")
    made = ok("lora", key={"device": "cuda"}, command=shlex.join(cell.command("FILE")))
    with pytest.raises(BadInput, match="none answers here"):
        reproduce.command(made, tmp_path)


@pytest.mark.process
def test_a_record_of_a_model_with_code_of_its_own_is_not_run(real, monkeypatch):
    row = record.read_record(real)
    model = cell_of_record(row).model
    monkeypatch.setattr(model.spec, "trust_remote_code", True)
    with pytest.raises(BadInput, match="read that code, then run its command"):
        reproduce.command(row, real)
