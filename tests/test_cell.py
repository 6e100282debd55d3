"""One cell, for real: the supervisor, its worker, the record, and everything that may go wrong
between them."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.host import cell_words
from transformers import AutoTokenizer

import leantune as lean
from leantune.data.collate import batches
from leantune.data.load import load_data
from leantune.errors import BadInput
from leantune.files import record
from leantune.run import supervisor
from leantune.run.job import FILE
from leantune.run.progress import Progress
from leantune.spec.cells import resolve_cell
from leantune.spec.settings import parse_settings
from leantune.training.evaluation import predict_split

pytestmark = pytest.mark.process
SMALL = [
    "task.steps=4",
    "task.train=64",
    "task.validation=32",
    "task.test=48",
    "task.evaluations=1",
    "task.length=16",
]

FAULTY = """import os, signal, time
import torch
from leantune.api import Method, Unsupported

class Faulty(Method):
    def attach(self, model, data, ctx):
        if data is None:
            return model, data
        fault = self.params["fault"]
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "sleep":
            time.sleep(600)
        if fault == "oom":
            torch.empty(2**50)
        if fault == "raise":
            raise ValueError("the method is broken on purpose")
        if fault == "unsupported":
            raise Unsupported("this model has no knobs")
        if fault == "nan":
            with torch.no_grad():
                model.classifier.bias.fill_(float("nan"))
        return model, data
"""


@pytest.fixture
def faulty(tmp_path, host):
    folder = tmp_path / "plugins" / "methods" / "faulty"
    folder.mkdir(parents=True)
    (folder / "method.yaml").write_text(
        "name: faulty\nsummary: Fails in a way that the test chooses.\nslot: adaptation\n"
        "params: {lr: 0.001, fault: none}\n"
    )
    (folder / "method.py").write_text(FAULTY)

    def run(fault, *words):
        out = tmp_path / "out.json"
        environment = {**os.environ, "LEANTUNE_PLUGINS": str(tmp_path / "plugins")}
        cell = cell_words("faulty", out, *SMALL, f"faulty.fault={fault}")
        done = host.run([*cell, *words], environment=environment)
        return done, record.read_record(out) if out.exists() else None

    return run


def test_a_cell_on_real_weights_and_data(tmp_path):
    """In interpreters of its own, as users start it; the cells below are forked."""
    out = tmp_path / "x" / "row.json"
    done = subprocess.run(
        [sys.executable, "-m", "leantune", *cell_words("lora", out, *SMALL)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = record.read_record(out)
    assert row["status"] == "ok"
    assert "accuracy" in done.stdout
    assert len(done.stdout.splitlines()) == 1  # the summary, and nothing else
    assert len(row["quality"]["predictions"]) == 48
    right = sum(
        a == b
        for a, b in zip(row["quality"]["predictions"], row["quality"]["references"], strict=True)
    )
    assert row["quality"]["value"] == pytest.approx(right / 48)
    tensors = row["memory"]["tensors"]
    assert sum(tensors["by_kind"].values()) == tensors["peak_bytes"] == row["memory"]["peak_bytes"]
    assert (
        row["memory"]["predicted"]["peak_bytes"] == tensors["peak_bytes"]
    )  # no value-dependent shape in LoRA
    assert tensors["optimizer_state_bytes"] == 8 * (
        row["parameters"]["trainable"] + row["parameters"]["head"]
    )
    assert row["parameters"] == {"total": 22787714, "trainable": 73728, "head": 148610}
    assert row["memory"]["host"]["peak_bytes"] > 10**8
    assert row["memory"]["cuda"] is None
    assert len(row["time"]["step_seconds"]) == 4
    assert row["size"]["deployed_parameters"] == 22713986  # merged: the original architecture
    assert row["inference"]["tokens_per_second"] > 0
    assert row["key"]["samples"]


def test_a_cell_above_the_limit_is_recorded_with_its_figure_and_not_started(tmp_path, host):
    out = tmp_path / "row.json"
    words = [*cell_words("lora", out, *SMALL), "--limit-mb", "640"]
    done = host.run(words)
    assert done.returncode == 0, done.stderr
    row = record.read_record(out)
    assert (row["status"], row["phase"], row["quality"]) == ("oom", "wait", None)
    assert re.fullmatch(
        r"predicted: needs 0\.\d\d GiB of memory, the limit is 0\.62 GiB", row["reason"]
    )
    memory = row["memory"]
    assert (memory["peak_source"], memory["tensors"]) == ("predicted", None)
    assert memory["peak_bytes"] == memory["predicted"]["peak_bytes"] > 100 * 2**20
    assert f"needs {(memory['peak_bytes'] * 1.6 + 2**29) / 2**30:.2f} GiB" in row["reason"]

    forced = host.run([*words, "--force"])
    assert forced.returncode == 0, forced.stderr
    started = record.read_record(out)
    assert started["status"] == "ok"
    assert started["memory"]["tensors"]["peak_bytes"] == memory["peak_bytes"]


def test_an_exported_model_is_loaded_with_its_adapters_and_scores_as_recorded(tmp_path, host):
    out, folder = tmp_path / "row.json", tmp_path / "model"
    done = host.run([*cell_words("adapter", out, *SMALL), "--dtype", "fp32", "--export", folder])
    assert done.returncode == 0, done.stderr
    row = record.read_record(out)
    cell = resolve_cell(
        "minilm-l6", "sentiment", "adapter", device="cpu", overrides=parse_settings(SMALL)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = load_data(cell.task, tokenizer, cell.training["length"], cell.splits)
    scored = batches(loaded.test, loaded.collate, 32)
    predictions = predict_split(lean.load(folder), scored, "classification", "cpu", "fp32")[0]
    assert predictions == row["quality"]["predictions"]


def test_a_tuning_trial_is_scored_on_the_validation_split(tmp_path, host):
    out = tmp_path / "trial.json"
    done = host.run([*cell_words("head", out, *SMALL), "--trial", "1"])
    assert done.returncode == 0, done.stderr
    row = record.read_record(out)
    assert row["cell"]["trial"] == 1
    assert (
        len(row["quality"]["predictions"]) == 32
    )  # of SMALL's validation split; the test split has 48


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path):
    class Silent:
        def mark(self, name):
            pass

    cell = resolve_cell(
        "minilm-l6", "sentiment", "full", device="cpu", overrides={"task.steps": 20}
    )
    for terminal in (True, False):
        code = tmp_path / f"{terminal}.txt"
        with code.open("w") as file:
            former, sys.stderr = sys.stderr, file
            try:
                watch = Progress(cell, Silent(), terminal, None)
                for step in range(1, 21):
                    watch.step(step, 0.1, 1.0)
            finally:
                sys.stderr = former
        text = code.read_bytes().decode()
        assert ("\r" in text) == terminal
        if not terminal:
            assert text.splitlines()[0].startswith("sentiment full: step 2 of 20, loss 1.000, ")
            assert len(text.splitlines()) == 10


def test_the_worker_gets_the_very_cell_that_the_supervisor_resolved(tmp_path, monkeypatch):
    def start(words, **_):
        got.append(pickle.loads((Path(words[3]) / FILE).read_bytes()))
        raise InterruptedError

    settings = {"task.steps": 7, "lora.rank": 2, "lora.lr": 1e-4}
    cell = resolve_cell(
        "minilm-l6", "sentiment", "lora", 3, device="cpu", overrides=settings, trial=1, flatness=5
    )
    got = []
    monkeypatch.setattr(supervisor.subprocess, "Popen", start)
    with pytest.raises(InterruptedError):
        supervisor.run(cell, tmp_path / "row.json", limit=2**30)
    (job,) = got
    assert job.cell == cell
    assert (job.cell.hashes, job.cell.key) == (cell.hashes, cell.key)
    assert (job.limit, job.force, job.export) == (2**30, False, None)


def test_a_control_needs_no_model(tmp_path, host):
    out = tmp_path / "row.json"
    done = host.run(cell_words("tfidf", out, *SMALL))
    assert done.returncode == 0, done.stderr
    row = record.read_record(out)
    assert (row["status"], row["cell"]["model"], row["memory"]) == ("ok", "none", None)
    assert row["quality"]["value"] > 0.4


def test_a_combination_that_cannot_run_is_recorded_as_unsupported(tmp_path, host):
    out = tmp_path / "row.json"
    done = host.run(cell_words("full", out, task="dialogue"))
    assert done.returncode == 0
    row = record.read_record(out)
    assert row["status"] == "unsupported"
    assert "does not do causal_lm" in row["reason"]


@pytest.mark.parametrize(
    ("fault", "status", "phase", "reason"),
    [
        ("kill", "error", "attach", "SIGKILL"),
        ("raise", "error", "attach", "broken on purpose"),
        ("oom", "oom", "attach", "DefaultCPUAllocator"),
        ("unsupported", "unsupported", "attach", "no knobs"),
        ("nan", "diverged", "first step", "step 1 of 4"),
    ],
)
def test_whatever_happens_to_the_worker_there_is_a_record(faulty, fault, status, phase, reason):
    done, row = faulty(fault)
    assert done.returncode == 0, done.stderr
    assert row["status"] == status
    assert reason in row["reason"]
    assert row["phase"] == phase


def test_a_hung_cell_times_out_and_retries_while_attempts_are_left(faulty):
    done, row = faulty("sleep", "--timeout", "0.02", "--attempt", "1", "--attempts", "2")
    assert done.returncode == 75
    assert row is None
    done, row = faulty("sleep", "--timeout", "0.25", "--attempt", "2", "--attempts", "2")
    assert done.returncode == 0
    assert (row["status"], row["phase"]) == ("timeout", "attach")


def test_a_supervisor_that_is_asked_to_stop_takes_its_worker_along(tmp_path):
    out = tmp_path / "row.json"
    words = ["--model", "minilm-l6", "--task", "sentiment", "--method", "full", "--out", str(out)]
    heard = ["env", "--default-signal=INT"]  # it is ignored in what a shell starts with `&`
    running = subprocess.Popen(
        [*heard, sys.executable, "-m", "leantune", "run", *words], stderr=subprocess.DEVNULL
    )
    worker = None
    for _ in range(100):
        time.sleep(0.1)
        children = subprocess.run(
            ["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=False
        ).stdout
        if children.strip():
            worker = int(children.split()[0])
            break
    assert worker is not None
    running.send_signal(signal.SIGINT)
    running.wait(timeout=20)
    assert not os.path.exists(f"/proc/{worker}")
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "nonsense"], "unknown method 'nonsense'"),
        (["--method", "lora", "--task", "nonsense"], "unknown task 'nonsense'"),
        (["--method", "lora", "--model", "nonsense"], "unknown model 'nonsense'"),
        (["--method", "lora+adapter"], "both take the slot"),
        (["--method", "lora", "--point", "nope"], "no point 'nope'"),
        (["--method", "lora", "--set", "lora.rnak=2"], "no setting 'rnak'"),
        (["--method", "lora", "--out", "/proc/nothing/x.json"], "cannot write into /proc/nothing"),
    ],
)
def test_bad_words_are_one_sentence_and_exit_2(tmp_path, words, message, host):
    given = {"--model": "minilm-l6", "--task": "sentiment", "--out": str(tmp_path / "x.json")}
    for key, value in given.items():
        if key not in words:
            words = [*words, key, value]
    done = host.run(["run", *words])
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_label_unseen_in_training_stops_the_cell_without_a_record(tmp_path, host):
    folder = tmp_path / "tasks" / "odd"
    (folder / "data").mkdir(parents=True)
    (folder / "task.yaml").write_text(
        "name: odd\nsummary: A task whose test split has a label of its own.\n"
        "kind: classification\n"
        "source: {local: data}\nsplits: {train: 4, validation: 2, test: 2}\n"
        "training: {steps: 1, batch: 2, length: 8}\n"
        "metric: {module: classification, score: accuracy, higher_is_better: true}\n"
    )
    (folder / "task.py").write_text(
        "from datasets import Dataset\n"
        "def load(folder):\n"
        "    train = Dataset.from_dict({'text': list('abcdefgh'), 'label': ['x', 'y'] * 4})\n"
        "    test = Dataset.from_dict({'text': ['i', 'j'], 'label': ['x', 'z']})\n"
        "    return {'train': train, 'test': test}\n"
    )
    out = tmp_path / "row.json"
    done = host.run(
        cell_words("tfidf", out, task="odd"),
        environment={**os.environ, "LEANTUNE_PLUGINS": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "'z'" in done.stderr
    assert not out.exists()


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"schema": 1}))
    with pytest.raises(BadInput, match=r"r\.json"):
        record.read_record(path)
