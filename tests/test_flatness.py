"""How flat a minimum is: filter-normalised random changes (arXiv 1712.09913, section 4)."""

from __future__ import annotations

import pytest
import torch
from tests.host import cell_words
from torch import nn

from leantune.files import record
from leantune.training.flatness import NORMS, flatness

TINY = [
    *("task.steps=2", "task.train=16", "task.validation=8", "task.test=8"),
    *("task.batch=4", "task.length=16", "task.evaluations=1"),
]


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def test_the_increase_of_a_quadratic_is_its_closed_form():
    """For |W|^2 a change d has the increase 2 <W, d> + |d|^2, and |d| is norm |W|, row by row."""
    linear = model()
    square = float(linear.weight.detach().double().square().sum())
    found = flatness(
        linear, {"weight"}, lambda m: float(m.weight.double().square().sum()), draws=4, seed=1
    )
    assert found["loss"] == pytest.approx(square)
    (a, low), (b, high) = (
        (found[n]["norm"], found[n]["increase"]) for n in ("half_percent", "two_percent")
    )
    for one, two in zip(low, high, strict=True):  # what is linear in the norm cancels
        assert two - b / a * one == pytest.approx((b * b - a * b) * square, rel=1e-3)
    assert len(set(low)) == 4


def test_every_row_moves_by_the_norm_times_its_length_and_nothing_else_does():
    linear = model()
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    seen = []

    def loss(m: nn.Module) -> float:
        seen.append(m.weight.detach() - weight)
        assert torch.equal(m.bias, bias)
        return 0.0

    found = flatness(linear, {"weight", "bias"}, loss, draws=2, seed=0)
    assert found["parameters"] == 15
    for norm, (one, two) in zip(NORMS.values(), (seen[1:3], seen[3:5], seen[5:7]), strict=True):
        for change in (one, two):
            assert torch.allclose(change.norm(dim=1), norm * weight.norm(dim=1), rtol=1e-3)
    assert torch.equal(linear.weight, weight)


def test_without_a_trained_matrix_there_is_nothing_to_say():
    assert flatness(model(), {"bias"}, lambda m: 0.0, draws=2, seed=0) is None
    assert flatness(model(), set(), lambda m: 0.0, draws=2, seed=0) is None


def test_two_models_get_the_same_directions():
    def directions(linear: nn.Linear) -> list[torch.Tensor]:
        before = linear.weight.detach().clone()
        seen: list[torch.Tensor] = []

        def loss(m: nn.Module) -> float:
            change = m.weight.detach() - before
            seen.append(change / change.norm(dim=1, keepdim=True))
            return 0.0

        flatness(linear, {"weight"}, loss, draws=2, seed=3)
        return seen[1:]

    other = model()
    nn.init.normal_(other.weight)
    for one, two in zip(directions(model()), directions(other), strict=True):
        assert torch.allclose(one, two, atol=1e-3)


@pytest.mark.process
@pytest.mark.parametrize(
    "method", ["adapter", "lora"]
)  # what LoRA trains is gone once it is merged
def test_a_cell_records_it_for_the_tensors_that_were_trained(tmp_path, method, host):
    words = cell_words(method, tmp_path / "r.json", *TINY, model="mini-gpt", task="pretrain")
    assert host.run([*words, "--flatness", "2"]).returncode == 0
    done = record.read_record(tmp_path / "r.json")
    found = done["quality"]["flatness"]
    assert [len(found[name]["increase"]) for name in NORMS] == [2, 2, 2]
    assert found["one_percent"]["mean"] == pytest.approx(sum(found["one_percent"]["increase"]) / 2)
    trainable = done["parameters"]["trainable"]
    if method == "adapter":
        assert 0 < found["parameters"] < trainable  # its matrices, not their biases
    else:
        assert found["parameters"] == trainable
    assert "--flatness 2" in done["provenance"]["command"]
    assert done["time"]["hook_seconds_total"] >= 0
