"""Names, settings and model files that try to run something: none of them does."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.exceptions import WorkflowError
from transformers import BertConfig, BertForSequenceClassification

from leantune.cli import parser
from leantune.errors import BadInput
from leantune.files.record import read_record
from leantune.models.load import TRUSTED, empty_model, load_model
from leantune.spec import plugins
from leantune.workflow.jobs import Jobs

ROOT = plugins.roots()[0]
WORDS = [
    "; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "' ; touch pwned ; '",
    '" ; touch pwned ; "',
    "a\n touch pwned\n",
    "| touch pwned",
    "&& touch pwned &",
    "> pwned",
    "{output} {params} {{x}} {wildcards.seed}",
    "\\",
    "--out pwned",
    "$PATH ${HOME} ~ * ? !",
    "%s %(x)s",
]
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 16,
}
METHOD = """from leantune.api import Method


class Echo(Method):
    def fit_predict(self, data, ctx):
        ctx.details["word"], ctx.details["words"] = self.params["word"], self.params["words"]
        return [0.0] * len(data.test)
"""


def project(folder: Path, **config: object) -> Path:
    home = folder / "plugins" / "methods" / "echo"
    home.mkdir(parents=True)
    spec = {
        "name": "echo",
        "summary": "A control that repeats its settings.",
        "slot": "control",
        "params": {"word": "", "words": []},
    }
    (home / "method.yaml").write_text(yaml.safe_dump(spec))
    (home / "method.py").write_text(METHOD)
    (folder / "config").mkdir()
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["echo"]}
    settings = {"task.train": 16, "task.validation": 8, "task.test": 8}
    given = {"output": "out", "device": "cpu", "set": settings, "cells": [block], **config}
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(given))
    return folder


def snakemake(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "LEANTUNE_PLUGINS": str(folder / "plugins"), "PATH": path}
    words = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--cores",
        "1",
        *more,
    ]
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.process
def test_no_word_of_a_config_is_run(tmp_path: Path) -> None:
    output = """o'u"t;id>pwned;$(id>pwned);`id>pwned`&id>pwned|"""
    settings = {
        "task.train": 16,
        "task.validation": 8,
        "task.test": 8,
        "echo.word": "\n".join(WORDS),
        "echo.words": WORDS,
    }
    folder = project(tmp_path, output=output, set=settings)
    done = snakemake(folder, "--until", "tables")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (folder / output / "records").rglob("*.json")
    record = read_record(file)
    assert record["status"] == "ok", record["reason"]
    assert record["details"] == {"word": "\n".join(WORDS), "words": WORDS}
    assert (folder / output / "tables" / "cells.csv").is_file()
    assert not list(folder.rglob("pwned"))


@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "word"),
    [("models", "; touch pwned"), ("tasks", "$(touch pwned)"), ("methods", "echo@`touch pwned`")],
)
def test_no_name_in_a_config_is_run(kind: str, word: str, tmp_path: Path) -> None:
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["echo"]}
    folder = project(tmp_path, cells=[{**block, kind: [word]}])
    done = snakemake(folder, "--quiet")
    assert done.returncode != 0
    assert re.search(r"unknown|has no point", done.stdout + done.stderr)
    assert not list(folder.rglob("pwned"))


def model_folder(folder: Path, **more: object) -> dict:
    """A model's files without weights, and its spec."""
    BertConfig(**SIZES).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    kinds = ["classification"]
    return {
        "name": "evil",
        "kinds": kinds,
        "source": {"local": str(folder)},
        "folder": folder,
        "family": "bert",
    }


class Run:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.file}",))


def test_a_pickle_beside_a_model_is_not_run(tmp_path: Path) -> None:
    spec = model_folder(tmp_path)
    evil = {"bert.embeddings.word_embeddings.weight": Run(tmp_path / "pwned")}
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(evil))
    with pytest.raises(Exception, match=r"(?i)weights|pickle|unsupported|load"):
        load_model(spec, "classification", 2)
    assert not (tmp_path / "pwned").exists()


EVIL = """import pathlib
from transformers import BertConfig, BertForSequenceClassification

pathlib.Path({mark!r}).touch()


class EvilConfig(BertConfig):
    model_type = "evil"


class EvilModel(BertForSequenceClassification):
    config_class = EvilConfig
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A model with weights whose class lies beside them; that code leaves a mark."""
    auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForSequenceClassification": "evil.EvilModel"}
    spec = model_folder(tmp_path, auto_map=auto, model_type="evil")
    BertForSequenceClassification(BertConfig(**SIZES)).save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "pwned")))
    monkeypatch.setattr(
        "builtins.input", lambda *_: "y"
    )  # the library asks; nobody may answer for the user
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.delenv(TRUSTED, raising=False)
    return spec


def test_code_beside_a_model_is_not_run(
    with_code: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, "evil")  # the command says so, the model's file does not
    with pytest.raises(Exception, match=r"trust_remote_code"):
        load_model(with_code, "classification", 2)
    monkeypatch.setenv(TRUSTED, "another")
    with pytest.raises(BadInput, match="allow it with --trust-remote-code evil"):
        load_model({**with_code, "trust_remote_code": True}, "classification", 2)
    assert not (tmp_path / "pwned").exists()


def test_code_beside_a_model_is_run_where_its_file_and_the_command_say_so(
    with_code: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, "evil")
    spec = {**with_code, "trust_remote_code": True, "architecture": {"model_type": "evil"}}
    loaded = load_model(spec, "classification", 2)
    assert type(loaded).__name__ == "EvilModel"
    assert (tmp_path / "pwned").exists()
    empty = empty_model(spec, "classification", 2)
    assert {n: p.shape for n, p in empty.named_parameters()} == {
        n: p.shape for n, p in loaded.named_parameters()
    }


def test_a_config_with_such_a_model_must_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "plugins" / "models"
    home.mkdir(parents=True)
    spec = plugins.get("models", "minilm-l6").raw
    (home / "evil.yaml").write_text(
        yaml.safe_dump({**spec, "name": "evil", "trust_remote_code": True})
    )
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(tmp_path / "plugins"))
    config = {"cells": [{"models": ["evil"], "tasks": ["sentiment"], "methods": ["full"]}]}
    with pytest.raises(WorkflowError, match="snakemake --config trust_remote_code=evil"):
        Jobs(config)
    jobs = Jobs({**config, "trust_remote_code": "evil"})
    (name,) = jobs.files("{cell}")
    key, _, task, _, seed = name.split("/")
    words = {"key": key, "model": "evil", "task": task, "method": "full", "seed": seed}
    told = parser.parse(["run", *shlex.split(jobs[words].arguments), "--out", "x.json"])
    assert told.trust_remote_code == ["evil"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--model", "evil", "--task", "sentiment", "--method", "full", "--out", "x.json"],
        ["compare", "--model", "evil", "--task", "sentiment", "--methods", "full", "lora"],
        ["predict", "--model", "evil", "--method", "full", "--batch", "1", "--seq", "8"],
    ],
)
def test_the_command_says_whose_code_may_run(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, "")
    assert parser.main([*words, "--trust-remote-code", "evil"]) == 2  # there is no such model
    assert os.environ[TRUSTED] == "evil"
