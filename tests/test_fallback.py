"""What cannot run on tensors without values is measured on real ones, and says so."""

import json
from pathlib import Path

import pytest
import torch
from small import small_model
from torch import nn

from leantune.api import Context
from leantune.cli import parser
from leantune.prediction import one
from leantune.prediction.ask import Ask
from leantune.prediction.metered_step import Probe
from leantune.spec.stacks import parse_stack
from leantune.training.loop import Schedule
from leantune.training.stack import Stack

MODEL = """name: tiny-bert
summary: A model that is quick to build.
family: bert
source: {none: true}
traits: [from_scratch]
kinds: [classification]
parameters: 30000
architecture:
  model_type: bert
  vocab_size: 200
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 64
"""
METHOD = """name: NAME
summary: A method that needs the values of tensors.
slot: adaptation
params:
  lr: 1.0e-3
"""
ATTACH = """from leantune.api import Method


class M(Method):
    def attach(self, model, data, ctx):
        mean = model.get_input_embeddings().weight.mean().item()
        assert abs(mean) < 1
        return model, data
"""
FORWARD = """from leantune.api import Method


class M(Method):
    def attach(self, model, data, ctx):
        def look(module, args):
            module.get_input_embeddings().weight.nonzero()

        model.register_forward_pre_hook(look)
        return model, data
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny-bert.yaml").write_text(MODEL)
    for name, code in (("attaches", ATTACH), ("looks", FORWARD)):
        (tmp_path / "methods" / name).mkdir(parents=True)
        (tmp_path / "methods" / name / "method.yaml").write_text(METHOD.replace("NAME", name))
        (tmp_path / "methods" / name / "method.py").write_text(code)
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(tmp_path))


@pytest.mark.usefixtures("plugins")
def test_attaching_with_values_then_stepping_without() -> None:
    found = one.predict(Ask("tiny-bert", "attaches", batch=2, length=8))
    plain = one.predict(Ask("tiny-bert", "full", batch=2, length=8))
    assert found["path"] == plain["path"] == "cuda-simulated"
    assert found["fallback"] is None
    assert found["peak_bytes"] == plain["peak_bytes"]


@pytest.mark.usefixtures("plugins")
def test_a_step_that_needs_values_is_taken_on_real_tensors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["predict", "--model", "tiny-bert", "--method", "looks", "--batch", "2", "--seq", "8"]
    assert parser.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == "cpu"
    assert "nonzero" in found["fallback"]
    assert sum(found["by_kind"].values()) == found["peak_bytes"]
    assert found["optimizer_state_bytes"] == 8 * (
        found["parameters"]["trainable"] + found["parameters"]["head"]
    )
    assert parser.main(words) == 0
    assert (
        "measured on real tensors, CPU path: 'looks' does not run on tensors without values"
        in capsys.readouterr().out
    )


@pytest.mark.usefixtures("plugins")
def test_a_model_too_large_for_a_real_step_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["predict", "--model", "llama2-7b", "--method", "looks", "--batch", "1", "--seq", "8"]
    assert parser.main(words) == 2
    said = capsys.readouterr().err
    assert "'llama2-7b'" in said
    assert "GiB are free here" in said


def test_a_real_step_leaves_the_model_as_it_was() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_model("bert", "classification")

        def forward(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> object:
            input_ids.nonzero()
            return self.inner(input_ids=input_ids, **inputs)

    stack = Stack(parse_stack("full", "classification"))
    ctx = Context(
        kind="classification",
        family="bert",
        steps=8,
        head_lr=1e-3,
        seed=0,
        device="cpu",
        batch=2,
        length=8,
        cache=Path("."),
        probe=True,
    )
    model = Looks()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    found = Probe(stack, Schedule(steps=8), ctx, (2, 8))(model)
    assert found["path"] == "cpu"
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_pretraining_heads_are_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    def total(head: str) -> int:
        found = one.predict(Ask("bert-base", "bitfit", batch=1, length=8, head=head))
        return int(found["parameters"]["total"])

    pooler, next_sentence = 768 * 768 + 768, 2 * 768 + 2
    assert total("pretraining") - total("mlm") == pooler + next_sentence
