"""The parameter budget of low-rank models, and the baselines of SoftLMs at equal parameters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import batch_of, method, run, small_context, small_data, small_model, stack
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig
from transformers.pytorch_utils import Conv1D

from leantune.api import BadInput, mark_head
from leantune.svd import decompose
from leantune.training.stack import load_method

load_method("fwsvd")
from leantune_plugins.fwsvd.method import row_weights  # noqa: E402  (importable once loaded)
from leantune_plugins.softlms import budget  # noqa: E402  the path is set above
from leantune_plugins.softlms.layers import SoftLinear, truncated_factors  # noqa: E402  the path is set above


def linear_parameters(model: nn.Module, plugin: Any) -> int:
    """Weights, without biases, of what now stands where the adapted linears stood."""
    maps = [model.get_submodule(name) for name in plugin.shapes]
    return sum(p.numel() for m in maps for p in m.parameters() if p.dim() == 2)


def bert_base_on_meta() -> nn.Module:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(BertConfig())
    mark_head(model, "classification")
    return model


# ------------------------------------------------------------------ budget


def test_halving_the_linears_of_bert_base_gives_192_and_307(tmp_path: Path) -> None:
    plugin, ctx = method("softlms@stage2", multiple=1), small_context(tmp_path, probe=True)
    plugin.attach(bert_base_on_meta(), None, ctx)
    assert plugin.dense == 84_934_656
    assert set(ctx.details["ranks"].values()) == {192, 307}


def test_halving_the_total_of_bert_base_leaves_35_5_percent_of_the_linears(tmp_path: Path) -> None:
    plugin, model, ctx = (
        method("svd@total"),
        bert_base_on_meta(),
        small_context(tmp_path, probe=True),
    )
    before = sum(p.numel() for p in model.parameters())
    plugin.attach(model, None, ctx)
    assert plugin.allowed / plugin.dense == pytest.approx(0.355, abs=5e-4)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(before / 2, rel=0.01)


def test_half_of_minilm_in_total_is_more_than_its_linears_and_is_refused(
    minilm: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"softlms.of=linears"):
        method("softlms@total").attach(minilm, None, small_context(tmp_path))


@pytest.mark.parametrize("name", ["softlms@stage2", "svd", "svd@same_rank", "fwsvd"])
def test_prediction_shapes_need_no_values_and_keep_the_budget(tmp_path: Path, name: str) -> None:
    plugin, model, ctx = method(name), bert_base_on_meta(), small_context(tmp_path, probe=True)
    plugin.attach(model, None, ctx)
    kept = linear_parameters(model, plugin)
    assert kept == ctx.details["linear_parameters"]["kept"]
    assert 0.96 * plugin.allowed < kept <= plugin.allowed
    assert all(rank % 8 == 0 for rank in ctx.details["ranks"].values())
    assert not list(tmp_path.iterdir())


def test_same_rank_is_one_rank(tmp_path: Path) -> None:
    ctx = small_context(tmp_path, probe=True)
    method("svd@same_rank").attach(bert_base_on_meta(), None, ctx)
    assert set(ctx.details["ranks"].values()) == {
        256
    }  # 256 (4 * 1536 + 2 * 3840) * 12 = 42,467,328 = half


SHAPES = {"a": (24, 24), "b": (24, 96), "c": (96, 24)}


@given(
    alphas=st.lists(st.floats(0, 0.8), min_size=3, max_size=3),
    share=st.floats(0.2, 1.0),
    multiple=st.sampled_from([1, 4, 8]),
)
def test_fitted_ranks_spend_the_budget_and_never_exceed_it(
    alphas: list[float], share: float, multiple: int
) -> None:
    spectra = {
        n: torch.linspace(1, 0.05, 24, dtype=torch.float64) ** (i + 1) for i, n in enumerate(SHAPES)
    }
    allowed = int(share * sum(m * n for m, n in SHAPES.values()))
    floor = budget.total_cost(dict.fromkeys(SHAPES, multiple), SHAPES)
    if floor > allowed:
        return
    thresholds = dict(zip(SHAPES, alphas, strict=True))
    ranks = budget.fitted_ranks(spectra, thresholds, SHAPES, allowed, multiple)
    kept = budget.total_cost(ranks, SHAPES)
    assert kept <= allowed
    assert all(r % multiple == 0 for r in ranks.values())
    full = all(budget.cost(r, SHAPES[n]) == SHAPES[n][0] * SHAPES[n][1] for n, r in ranks.items())
    widest = sum(
        multiple * (m + n) for m, n in SHAPES.values()
    )  # ties may move every layer at once
    assert full or allowed - kept <= widest


def test_a_higher_learned_threshold_means_a_lower_rank() -> None:
    spectra = {n: torch.linspace(1, 0, 24, dtype=torch.float64) for n in SHAPES}
    ranks = budget.fitted_ranks(spectra, {"a": 0.1, "b": 0.3, "c": 0.6}, SHAPES, 1800, 1)
    assert ranks["a"] > ranks["b"] > ranks["c"]


# ------------------------------------------------------------------ the baselines


def test_truncated_factors_are_the_best_approximation_and_balanced() -> None:
    W = torch.randn(7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    U, S, Vh = decompose(W)
    up, down = truncated_factors(W, U, 3)
    torch.testing.assert_close(up @ down, (U[:, :3] * S[:3]) @ Vh[:3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), rtol=1e-12, atol=1e-12)


def test_half_rank_error_of_a_real_feed_forward_matrix(minilm: nn.Module) -> None:
    """The soft threshold's relative output error is far above hard truncation's at the same rank
    (0.68, 0.42)."""
    linear = minilm.base_model.encoder.layer[2].intermediate.dense
    x = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    W = linear.weight.detach()
    errors = {}
    for threshold in ("relu", "ste"):
        layer = SoftLinear(linear, decompose(W), threshold, 0.0, 0.05)
        layer.set_rank(192)
        errors[threshold] = float((x @ (layer.weight.detach() - W).T).norm() / (x @ W.T).norm())
    assert errors["ste"] == pytest.approx(0.42, abs=0.07)
    assert errors["relu"] == pytest.approx(0.68, abs=0.07)


def test_fisher_row_weights_are_roots_of_summed_squared_gradients(tmp_path: Path) -> None:
    data, model = small_data(tmp_path), small_model()
    reference = copy.deepcopy(model).eval()
    weight = reference.base_model.encoder.layer[1].intermediate.dense.weight
    squares = torch.zeros_like(weight)
    for index in range(3):
        reference.zero_grad()
        reference(**batch_of(data, index)).loss.backward()
        squares += weight.grad.square()
    plugin, ctx = method("fwsvd", fisher_batches=3), small_context(tmp_path)
    path = "bert.encoder.layer.1.intermediate.dense"
    found = plugin.importance(model, {path: model.get_submodule(path)}, data, ctx)
    torch.testing.assert_close(found[path], squares.sum(0).sqrt())
    torch.testing.assert_close(row_weights(squares.T, Conv1D(32, 16)), squares.sum(0).sqrt())
    assert all(p.grad is None for p in model.parameters())


def test_fwsvd_minimises_the_fisher_weighted_error(tmp_path: Path) -> None:
    errors = {}
    for name in ("svd", "fwsvd"):
        data, model = small_data(tmp_path), small_model()
        plugin, ctx = method(name, multiple=1), small_context(tmp_path)
        path = "bert.encoder.layer.1.intermediate.dense"
        W = model.get_submodule(path).weight.detach().clone()
        fisher = method("fwsvd").importance(model, {path: model.get_submodule(path)}, data, ctx)[
            path
        ]
        plugin.attach(model, data, ctx)
        rank = ctx.details["ranks"][path]
        difference = (model.get_submodule(path).weight.detach() - W) * fisher
        errors[name] = float(difference.norm())
        best = torch.linalg.svdvals(W * fisher)[rank:].norm()
        if name == "fwsvd":  # Eckart-Young on the weighted matrix
            torch.testing.assert_close(difference.norm(), best)
    assert errors["fwsvd"] < errors["svd"]


@pytest.mark.parametrize("name", ["svd", "svd@same_rank", "fwsvd"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_baselines_train_at_the_same_budget(tmp_path: Path, name: str, family: str) -> None:
    kind = "causal_lm" if family == "gpt2" else "classification"
    data, model = small_data(tmp_path, kind), small_model(family, kind)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    cell, ctx = stack(name, kind, multiple=1), small_context(tmp_path, family, kind)
    run(model, cell, data, ctx)
    plugin = cell.methods["adaptation"]
    assert 0.85 * plugin.allowed < linear_parameters(model, plugin) <= plugin.allowed
    assert set(ctx.details["ranks"]) == set(plugin.shapes)
    assert set(before) - {n for n, _ in model.named_parameters()}  # dense weights are gone


@pytest.mark.parametrize("ranks", ["half", 0, True, 1.5])
def test_a_wrong_rank_is_named(tmp_path: Path, ranks: Any) -> None:
    with pytest.raises(BadInput, match="ranks"):
        method("svd", ranks=ranks, multiple=1).attach(small_model(), None, small_context(tmp_path))


@pytest.mark.parametrize("change", [{"budget": 0.0}, {"budget": 1.5}, {"of": "encoder"}])
def test_a_wrong_budget_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"softlms\.budget"):
        method("svd", **change).attach(small_model(), None, small_context(tmp_path))
