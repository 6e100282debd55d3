"""SoftLMs against closed forms, in both stages, and on real MiniLM weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import (
    ADAPTABLE,
    batch_of,
    method,
    run,
    small_context,
    small_data,
    small_model,
    stack,
    trainable,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from leantune.api import Unsupported, is_head
from leantune.modules import FactoredLinear, factored_ranks, place_factored
from leantune.prediction.one import Probe
from leantune.svd import decompose, weight_of
from leantune.training.loop import Schedule
from leantune.training.stack import load_method

load_method("fwsvd")
from leantune_plugins.softlms import budget  # noqa: E402  the path is set above
from leantune_plugins.softlms.layers import SoftLinear, saves  # noqa: E402  the path is set above

THRESHOLDS = pytest.mark.parametrize("threshold", ["relu", "ste"])


def soft_layer(
    threshold: str = "relu", out: int = 6, into: int = 9, conv1d: bool = False
) -> SoftLinear:
    torch.manual_seed(0)
    base = (Conv1D(out, into) if conv1d else nn.Linear(into, out)).double()
    return SoftLinear(base, decompose(weight_of(base)), threshold, 0.0, 0.05)


def soft_layers(model: nn.Module) -> list[SoftLinear]:
    return [m for m in model.modules() if isinstance(m, SoftLinear)]


def linear_parameters(model: nn.Module, plugin: Any) -> int:
    """Weights, without biases, of what now stands where the adapted linears stood."""
    maps = [model.get_submodule(name) for name in plugin.shapes]
    return sum(p.numel() for m in maps for p in m.parameters() if p.dim() == 2)


# ------------------------------------------------------------------ the layer, closed forms


@THRESHOLDS
@pytest.mark.parametrize("conv1d", [False, True])
def test_alpha_0_is_the_dense_layer(threshold: str, conv1d: bool) -> None:
    torch.manual_seed(0)
    base = (Conv1D(6, 9) if conv1d else nn.Linear(9, 6)).double()
    x = torch.randn(4, 9, dtype=torch.float64)
    soft = SoftLinear(base, decompose(weight_of(base)), threshold, 0.0, 0.05)
    torch.testing.assert_close(soft(x), base(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(soft.weight, weight_of(base), rtol=1e-12, atol=1e-12)


@THRESHOLDS
@given(alphas=st.lists(st.floats(0, 1.2), min_size=2, max_size=6))
def test_rank_never_rises_with_alpha(threshold: str, alphas: list[float]) -> None:
    layer = soft_layer(threshold)
    ranks = []
    for alpha in sorted(alphas):
        layer.alpha.data.fill_(alpha)
        ranks.append(int(layer.kept()))
        assert (
            ranks[-1]
            == int((layer.values() > 0).sum())
            == torch.linalg.matrix_rank(layer.weight).item()
        )
    assert ranks == sorted(ranks, reverse=True)


@THRESHOLDS
@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_alpha_at_least_the_largest_value_gives_zero(threshold: str, alpha: float) -> None:
    layer = soft_layer(threshold)
    layer.alpha.data.fill_(alpha)
    assert torch.equal(layer(torch.randn(3, 9, dtype=torch.float64)), layer.bias.expand(3, -1))


def test_relu_alpha_gradient_is_minus_the_sum_of_the_kept_values_gradients() -> None:
    layer = soft_layer("relu")
    layer.alpha.data.fill_(0.4)
    kept = 0.4 * layer.scale < layer.S
    assert 0 < kept.sum() < len(kept)
    s = layer.values().detach().requires_grad_()
    x = torch.randn(5, 9, dtype=torch.float64)
    (((x @ layer.Vh.T) * s) @ layer.U.T + layer.bias).tanh().square().sum().backward()
    layer(x).tanh().square().sum().backward()
    expected = -s.grad[kept].sum() * layer.scale  # alpha is in units of S[0]
    torch.testing.assert_close(layer.alpha.grad, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.S.grad, s.grad * kept, rtol=1e-12, atol=1e-12)


def test_ste_value_is_the_hard_threshold_and_its_gradient_the_sigmoids() -> None:
    layer = soft_layer("ste")
    layer.alpha.data.fill_(0.4)
    S, a, t = layer.S.detach(), 0.4 * layer.scale, 0.05 * layer.scale
    torch.testing.assert_close(
        layer.values().detach(), torch.where(a < S, S, 0.0), rtol=0, atol=1e-15
    )
    layer.values().sum().backward()
    gate = torch.sigmoid((S - a) / t)
    expected = -(S * gate * (1 - gate) / t).sum() * layer.scale
    torch.testing.assert_close(layer.alpha.grad, expected, rtol=1e-12, atol=1e-12)


def test_relu_shrinks_every_kept_value_which_hard_truncation_does_not() -> None:
    relu, ste = soft_layer("relu"), soft_layer("ste")
    for layer in (relu, ste):
        layer.alpha.data.fill_(0.3)
    kept = 0.3 * relu.scale < relu.S
    torch.testing.assert_close(relu.values()[kept], (relu.S - 0.3 * relu.scale)[kept])
    torch.testing.assert_close(ste.values()[kept], ste.S[kept])


# ------------------------------------------------------------------ the exported layer


@THRESHOLDS
@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("rank", [2, 5])
def test_exported_layer_equals_the_soft_layer(threshold: str, conv1d: bool, rank: int) -> None:
    layer = soft_layer(threshold, conv1d=conv1d)
    layer.S.data[[1, 4]] = layer.S.data[[4, 1]]  # trained values need not stay in order
    layer.alpha.data.fill_(0.25)
    layer.set_rank(rank)
    assert int(layer.kept()) == rank
    exported = layer.exported()
    x = torch.randn(4, 9, dtype=torch.float64)
    torch.testing.assert_close(exported(x), layer(x), rtol=1e-12, atol=1e-12)
    weights = sum(p.numel() for p in exported.parameters() if p.dim() == 2)
    if rank == 2:  # 2 * 15 < 54
        assert isinstance(exported, FactoredLinear)
        assert weights == 30
    else:  # 5 * 15 >= 54
        assert isinstance(exported, Conv1D if conv1d else nn.Linear)
        assert weights == 54
    assert all(p.requires_grad for p in exported.parameters())


@given(rank=st.integers(1, 6), alpha=st.floats(0, 1))
def test_set_rank_keeps_exactly_that_many(rank: int, alpha: float) -> None:
    for dtype in (torch.float32, torch.float64):
        layer = soft_layer().to(dtype)
        layer.alpha.data.fill_(alpha)
        before = int(layer.kept())
        layer.set_rank(rank)
        assert int(layer.kept()) == rank
        assert before != rank or layer.alpha.item() == pytest.approx(alpha)


@pytest.mark.parametrize(
    ("out", "into", "largest"),
    [
        (768, 768, 383),
        (768, 3072, 614),
        (1024, 1024, 511),
        (1024, 4096, 819),
        (384, 384, 191),
        (384, 1536, 307),
    ],
)
def test_largest_rank_that_still_saves(out: int, into: int, largest: int) -> None:
    assert saves(largest, out, into)
    assert not saves(largest + 1, out, into)
    assert budget.cost(largest, (out, into)) == largest * (out + into) < out * into
    assert budget.cost(largest + 1, (out, into)) == out * into


def test_a_factored_conv1d_is_rebuilt_from_plain_data() -> None:
    model = small_model("gpt2", "causal_lm")
    place_factored(model, {"transformer.h.0.attn.c_attn": 3})
    module = model.get_submodule("transformer.h.0.attn.c_attn")
    assert isinstance(module, FactoredLinear)
    assert (module.down.weight.shape, module.up.weight.shape) == ((3, 16), (48, 3))
    assert factored_ranks(model) == {"transformer.h.0.attn.c_attn": 3}
    torch.testing.assert_close(module.weight, module.up.weight @ module.down.weight)


# ------------------------------------------------------------------ both stages


def test_penalty_pulls_on_every_threshold_at_alpha_0(tmp_path: Path) -> None:
    model, plugin = small_model(), method("softlms", multiple=1, strength=0.7)
    plugin.attach(model, None, small_context(tmp_path))
    penalty = plugin.penalty(model)
    assert penalty.item() == pytest.approx(0.7)  # nothing is cut off yet
    penalty.backward()
    for name, shape in plugin.shapes.items():
        layer = model.get_submodule(name)
        expected = -0.7 * 16 * layer.scale / layer.S.sum() * shape[0] * shape[1] / plugin.dense
        torch.testing.assert_close(layer.alpha.grad, expected.detach())
        assert layer.S.grad is None


def test_penalty_is_off_within_the_budget(tmp_path: Path) -> None:
    model, plugin = small_model(), method("softlms", multiple=1)
    plugin.attach(model, None, small_context(tmp_path))
    for layer in soft_layers(model):
        layer.alpha.data.fill_(0.9)
    assert plugin.penalty(model) is None


def test_thresholds_have_their_own_rate_and_no_decay(tmp_path: Path) -> None:
    model, ctx = small_model(), small_context(tmp_path)
    plugin = method("softlms", alpha_reach=2.5, values_lr=0.25, multiple=1)
    plugin.attach(model, None, ctx)
    alphas, values, head = plugin.parameter_groups(model, ctx)
    layers = soft_layers(model)
    assert {id(p) for p in alphas["params"]} == {id(m.alpha) for m in layers}
    assert {id(p) for p in values["params"]} == {id(m.S) for m in layers}
    assert [(g["lr"], g.get("weight_decay")) for g in (alphas, values, head)] == [
        (0.5, 0.0),
        (0.25, 0.0),
        (ctx.head_lr, None),
    ]
    assert trainable(model) == sum(m.S.numel() + 1 for m in layers)


@pytest.mark.parametrize("name", ADAPTABLE)
@THRESHOLDS
def test_both_stages_in_every_family(tmp_path: Path, name: str, threshold: str) -> None:
    """Thresholds reach the budget, the factored model comes from on_progress, learns, and is what
    is exported."""
    kind = "causal_lm" if name in ("llama", "gpt2") else "classification"
    data, model = small_data(tmp_path, kind), small_model(name, kind)
    ctx = small_context(tmp_path, name, kind, steps=20)
    cell = stack(
        "softlms",
        kind,
        multiple=1,
        threshold=threshold,
        alpha_reach=2.0,
        values_lr=1e-3,
        lr=1e-2,
        strength=10.0,
    )
    optimizer = run(model, cell, data, ctx)
    plugin = cell.methods["adaptation"]
    assert not soft_layers(model)
    assert ctx.details["budget"] == "met"
    assert ctx.details["stage2_from"] <= 0.5
    assert set(ctx.details["ranks"]) == set(plugin.shapes)
    kept = linear_parameters(model, plugin)
    assert kept == budget.total_cost(ctx.details["ranks"], plugin.shapes)
    assert 0.9 * plugin.allowed < kept <= plugin.allowed
    trained = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    factors = [m for m in model.modules() if isinstance(m, FactoredLinear)]
    assert factors
    assert all(id(m.up.weight) in trained and id(m.down.weight) in trained for m in factors)
    model.eval()
    logits = model(**batch_of(data)).logits
    assert torch.equal(plugin.export(model, ctx)(**batch_of(data)).logits, logits)


@THRESHOLDS
def test_the_factored_model_equals_the_soft_model(
    minilm: nn.Module, tmp_path: Path, threshold: str
) -> None:
    plugin = method("softlms", threshold=threshold)
    plugin.attach(minilm, None, small_context(tmp_path))
    for i, layer in enumerate(soft_layers(minilm)):
        layer.alpha.data.fill_(0.3 + 0.005 * i)
    plugin.factor(copied := copy.deepcopy(minilm))
    for name, layer in ((n, m) for n, m in minilm.named_modules() if isinstance(m, SoftLinear)):
        layer.set_rank(plugin.ranks[name])
    ids = torch.randint(1000, 30000, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = minilm.base_model(input_ids=ids).last_hidden_state
        change = copied.base_model(input_ids=ids).last_hidden_state - expected
    assert change.norm() / expected.norm() < 1e-5
    kept = linear_parameters(copied, plugin)
    assert kept == budget.total_cost(plugin.ranks, plugin.shapes)
    assert 0.99 * plugin.allowed < kept <= plugin.allowed


def test_a_missed_budget_ends_the_cell_and_exports_nothing(tmp_path: Path) -> None:
    ctx, data, model = small_context(tmp_path, steps=20), small_data(tmp_path), small_model()
    cell = stack("softlms", multiple=1, alpha_reach=1e-5)
    with pytest.raises(Unsupported, match="budget not met"):
        run(model, cell, data, ctx)
    assert ctx.details["budget"] == "not met"
    with pytest.raises(Unsupported, match="budget not met"):
        cell.export(model, ctx)


def test_thresholds_stay_at_or_above_zero(tmp_path: Path) -> None:
    model, ctx = small_model(), small_context(tmp_path)
    plugin = method("softlms", multiple=1)
    plugin.attach(model, None, ctx)
    for layer in soft_layers(model):
        layer.alpha.data.fill_(-0.1)
    plugin.on_step(model, 1, ctx)
    assert all(layer.alpha == 0 for layer in soft_layers(model))


def test_embeddings_layernorms_and_head_stay_dense_and_only_the_head_of_them_trains(
    tmp_path: Path,
) -> None:
    model, ctx = small_model(), small_context(tmp_path)
    rest = {n: p for n, p in model.named_parameters() if ".dense." not in n and ".self." not in n}
    method("svd", multiple=1).attach(model, None, ctx)
    after = dict(model.named_parameters())
    assert all(after[n] is p and p.requires_grad == is_head(p) for n, p in rest.items())


def test_a_probe_runs_in_both_stages_and_disturbs_nothing(tmp_path: Path) -> None:
    model, ctx, data = small_model(), small_context(tmp_path), small_data(tmp_path)
    cell = stack("softlms", multiple=1)
    cell.attach(model, data, ctx)
    probe = Probe(cell, Schedule(steps=3), ctx, (2, 8))
    peaks = []
    for stage in (1, 2):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        peaks.append(probe(model)["by_kind"]["weights"])
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        if stage == 1:
            for layer in soft_layers(model):
                layer.alpha.data.fill_(0.9)
            assert (
                cell.on_progress(model, torch.optim.SGD(model.parameters()), 0.1, ctx) is not None
            )
    assert peaks[1] < peaks[0]  # half of the linears instead of all of U, S and V


def test_excluded_linears_stay_dense_and_out_of_the_count(tmp_path: Path) -> None:
    model = small_model()
    plugin = method("svd", multiple=1, exclude=["key"])
    plugin.attach(model, None, small_context(tmp_path))
    assert not any(name.endswith("key") for name in plugin.shapes)
    assert not any(name.endswith("key") for name in factored_ranks(model))


def test_export_dense_multiplies_the_factors_back(tmp_path: Path) -> None:
    model, data = small_model("gpt2", "causal_lm").eval(), small_data(tmp_path, "causal_lm")
    plain = copy.deepcopy(model)
    plugin, ctx = (
        method("svd", "causal_lm", multiple=1),
        small_context(tmp_path, "gpt2", "causal_lm"),
    )
    plugin.attach(model, data, ctx)
    expected = model(**batch_of(data)).logits
    dense = plugin.export(model, ctx, dense=True)
    plain.load_state_dict(dense.state_dict())
    torch.testing.assert_close(plain(**batch_of(data)).logits, expected, rtol=1e-4, atol=1e-5)
