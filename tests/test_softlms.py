"""SoftLMs and its two baselines against closed forms, counts and real MiniLM weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import ADAPTABLE, batch_of, method, run, small_context, small_data, small_model, stack, trainable
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig
from transformers.pytorch_utils import Conv1D

from leantune import loading
from leantune.api import BadInput, Unsupported, is_head, mark_head
from leantune.modules import FactoredLinear, factored_ranks, place_factored
from leantune.predict import Probe
from leantune.registry import load_method
from leantune.svd import decompose, weight_of
from leantune.train import Schedule

load_method("fwsvd")
from leantune_plugins.fwsvd.method import row_weights  # noqa: E402  (importable once loaded)
from leantune_plugins.softlms import budget  # noqa: E402
from leantune_plugins.softlms.layers import SoftLinear, saves, truncated_factors  # noqa: E402

THRESHOLDS = pytest.mark.parametrize("threshold", ["relu", "ste"])


def soft_layer(threshold: str = "relu", out: int = 6, into: int = 9, conv1d: bool = False) -> SoftLinear:
    torch.manual_seed(0)
    base = (Conv1D(out, into) if conv1d else nn.Linear(into, out)).double()
    return SoftLinear(base, decompose(weight_of(base)), threshold, 0.0, 0.05)


def soft_layers(model: nn.Module) -> list[SoftLinear]:
    return [m for m in model.modules() if isinstance(m, SoftLinear)]


def linear_parameters(model: nn.Module, plugin: Any) -> int:
    """Weights, without biases, of what now stands where the adapted linears stood."""
    maps = [model.get_submodule(name) for name in plugin.shapes]
    return sum(p.numel() for m in maps for p in m.parameters() if p.dim() == 2)


def bert_base_on_meta() -> nn.Module:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(BertConfig())
    mark_head(model, "classification")
    return model


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
        assert ranks[-1] == int((layer.values() > 0).sum()) == torch.linalg.matrix_rank(layer.weight).item()
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
    torch.testing.assert_close(layer.values().detach(), torch.where(a < S, S, 0.0), rtol=0, atol=1e-15)
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
        (768, 768, 383), (768, 3072, 614), (1024, 1024, 511), (1024, 4096, 819), (384, 384, 191), (384, 1536, 307),
    ],
)  # fmt: skip
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


# ------------------------------------------------------------------ budget


def test_halving_the_linears_of_bert_base_gives_192_and_307(tmp_path: Path) -> None:
    plugin, ctx = method("softlms@stage2", multiple=1), small_context(tmp_path, probe=True)
    plugin.attach(bert_base_on_meta(), None, ctx)
    assert plugin.dense == 84_934_656
    assert set(ctx.details["ranks"].values()) == {192, 307}


def test_halving_the_total_of_bert_base_leaves_35_5_percent_of_the_linears(tmp_path: Path) -> None:
    plugin, model, ctx = method("svd@total"), bert_base_on_meta(), small_context(tmp_path, probe=True)
    before = sum(p.numel() for p in model.parameters())
    plugin.attach(model, None, ctx)
    assert plugin.allowed / plugin.dense == pytest.approx(0.355, abs=5e-4)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(before / 2, rel=0.01)


def test_half_of_minilm_in_total_is_more_than_its_linears_and_is_refused(minilm: nn.Module, tmp_path: Path) -> None:
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
    assert set(ctx.details["ranks"].values()) == {256}  # 256 (4 * 1536 + 2 * 3840) * 12 = 42,467,328 = half


SHAPES = {"a": (24, 24), "b": (24, 96), "c": (96, 24)}


@given(
    alphas=st.lists(st.floats(0, 0.8), min_size=3, max_size=3),
    share=st.floats(0.2, 1.0),
    multiple=st.sampled_from([1, 4, 8]),
)
def test_fitted_ranks_spend_the_budget_and_never_exceed_it(alphas: list[float], share: float, multiple: int) -> None:
    spectra = {n: torch.linspace(1, 0.05, 24, dtype=torch.float64) ** (i + 1) for i, n in enumerate(SHAPES)}
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
    widest = sum(multiple * (m + n) for m, n in SHAPES.values())  # ties may move every layer at once
    assert full or allowed - kept <= widest


def test_a_higher_learned_threshold_means_a_lower_rank() -> None:
    spectra = {n: torch.linspace(1, 0, 24, dtype=torch.float64) for n in SHAPES}
    ranks = budget.fitted_ranks(spectra, {"a": 0.1, "b": 0.3, "c": 0.6}, SHAPES, 1800, 1)
    assert ranks["a"] > ranks["b"] > ranks["c"]


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
        (0.5, 0.0), (0.25, 0.0), (ctx.head_lr, None),
    ]  # fmt: skip
    assert trainable(model) == sum(m.S.numel() + 1 for m in layers)


@pytest.mark.parametrize("name", ADAPTABLE)
@THRESHOLDS
def test_both_stages_in_every_family(tmp_path: Path, name: str, threshold: str) -> None:
    """Thresholds reach the budget, the factored model comes from on_progress, learns, and is what is exported."""
    kind = "causal_lm" if name in ("llama", "gpt2") else "classification"
    data, model = small_data(tmp_path, kind), small_model(name, kind)
    ctx = small_context(tmp_path, name, kind, steps=20)
    cell = stack(
        "softlms", kind, multiple=1, threshold=threshold, alpha_reach=2.0, values_lr=1e-3, lr=1e-2, strength=10.0
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
def test_the_factored_model_equals_the_soft_model(minilm: nn.Module, tmp_path: Path, threshold: str) -> None:
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


def test_embeddings_layernorms_and_head_stay_dense_and_only_the_head_of_them_trains(tmp_path: Path) -> None:
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
            assert cell.on_progress(model, torch.optim.SGD(model.parameters()), 0.1, ctx) is not None
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
    plugin, ctx = method("svd", "causal_lm", multiple=1), small_context(tmp_path, "gpt2", "causal_lm")
    plugin.attach(model, data, ctx)
    expected = model(**batch_of(data)).logits
    dense = plugin.export(model, ctx, dense=True)
    plain.load_state_dict(dense.state_dict())
    torch.testing.assert_close(plain(**batch_of(data)).logits, expected, rtol=1e-4, atol=1e-5)


def test_exported_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model, data = small_model().eval(), small_data(tmp_path)
    plugin, ctx = method("svd", multiple=1), small_context(tmp_path)
    plugin.attach(model, data, ctx)
    loading.save(plugin.export(model, ctx), tmp_path / "out")
    loaded = loading.load(tmp_path / "out")
    assert factored_ranks(loaded) == factored_ranks(model)
    assert torch.equal(loaded(**batch_of(data)).logits, model(**batch_of(data)).logits)


# ------------------------------------------------------------------ the baselines


def test_truncated_factors_are_the_best_approximation_and_balanced() -> None:
    W = torch.randn(7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    U, S, Vh = decompose(W)
    up, down = truncated_factors(W, U, 3)
    torch.testing.assert_close(up @ down, (U[:, :3] * S[:3]) @ Vh[:3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), rtol=1e-12, atol=1e-12)


def test_half_rank_error_of_a_real_feed_forward_matrix(minilm: nn.Module) -> None:
    """The soft threshold's relative output error is far above hard truncation's at the same rank (0.68, 0.42)."""
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
        fisher = method("fwsvd").importance(model, {path: model.get_submodule(path)}, data, ctx)[path]
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
