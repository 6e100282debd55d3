"""What an installation without extras does, and what it says where one is missing.

The packages of the extras are hidden from new processes, and from those that they start.
"""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from leantune.errors import EXTRAS
from leantune.spec import plugins

ROOT = plugins.roots()[0]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HIDE = f"""
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {sorted(sum(EXTRAS.values(), ()))}:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""
COMMANDS = """
import contextlib, io, json, sys
from leantune.cli import parser

told = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = parser.main(words.split())
    told.append([status, stderr.getvalue().strip().splitlines()[-1]])
print(json.dumps(told))
"""
APPLY = """
import leantune
import torch
from transformers import BertConfig, BertForSequenceClassification

sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
model = BertForSequenceClassification(BertConfig(vocab_size=50, intermediate_size=16, **sizes))
handle = leantune.apply(model, "lora+came")
handle.model(torch.ones(2, 4, dtype=torch.long), labels=torch.tensor([0, 1])).loss.backward()
handle.optimizer().step()
try:
    leantune.apply(model, "galore")
except leantune.errors.BadInput as error:
    print(error)
"""
CELL = "--model minilm-l6 --task sentiment --method full"
SHAPE = "--batch 2 --seq 16"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A function that runs Python without the packages of the extras."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(HIDE)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*words):
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.process
def test_predict_and_apply_need_no_extra(bare):
    words = f"predict --model bert-base --method lora {SHAPE}"
    assert "lora on bert-base" in bare("-m", "leantune", *words.split())
    told = bare("-c", APPLY)
    assert (
        told == "method 'galore' needs the extra 'optimizers': pip install 'leantune[optimizers]'\n"
    )


@pytest.mark.process
def test_a_missing_extra_is_one_sentence_that_names_it(bare, tmp_path):
    record = next((ROOT / "results" / "records").rglob("sentiment/full/0.json"))
    asked = {
        f"run {CELL} --out {tmp_path / 'x.json'}": ("a cell", "run"),
        f"tune {CELL} --search full.lr=1e-5 --output {tmp_path}": ("a cell", "run"),
        "compare --model minilm-l6 --task sentiment --methods full lora": (None, "run"),
        "tables": (None, "run"),
        "claims": (None, "run"),
        "gate": (None, "run"),
        f"publish --to {tmp_path}": (None, "run"),
        "rerun": (None, "run"),
        f"merge {tmp_path}": (None, "run"),
        f"repro {record}": (None, "run"),
        f"report --out {tmp_path}": (None, "report"),
        f"predict --model bert-base --method qlora {SHAPE}": ("method 'qlora'", "quant"),
        f"predict --model bert-base --method galore {SHAPE}": ("method 'galore'", "optimizers"),
    }
    found = json.loads(bare("-c", COMMANDS, json.dumps([*asked])))
    for words, (what, extra), (status, told) in zip(asked, asked.values(), found, strict=True):
        what = what or f"`leantune {words.split()[0]}`"
        expected = f"leantune: {what} needs the extra '{extra}': pip install 'leantune[{extra}]'"
        assert (status, told) == (2, expected)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extras_of_the_sentence_are_those_of_the_package(extra):
    listed, core = (
        {canonicalize_name(Requirement(one).name) for one in requirements}
        for requirements in (PROJECT["optional-dependencies"][extra], PROJECT["dependencies"])
    )
    known = packages_distributions()
    brought = {canonicalize_name(name) for package in EXTRAS[extra] for name in known[package]}
    assert brought <= listed
    assert not listed & core
