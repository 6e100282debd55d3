"""SVFit against its equations, closed forms, counts and the public code of the same map."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import eigentune
import pytest
import torch
from eigentune.svd import Bases
from small import ADAPTABLE, batch_of, method, small_context, small_data, small_model, trainable
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, RobertaConfig
from transformers.pytorch_utils import Conv1D

from leantune.api import BadInput, mark_head
from leantune.svd import SVD, decompose, weight_of
from leantune.training.stack import load_method

load_method("svfit")
from leantune_plugins.svfit.method import SVFitLinear, energy_rank, energy_share  # noqa: E402  (importable once loaded)


def adapted(base: nn.Module, rank: int, residual: bool = True) -> SVFitLinear:
    base.requires_grad_(False)
    return SVFitLinear(base, decompose(weight_of(base)), rank, residual)


def layers_of(model: nn.Module) -> list[SVFitLinear]:
    return [m for m in model.modules() if isinstance(m, SVFitLinear)]


def perturb(model: nn.Module, amount: float = 0.3) -> None:
    draw = torch.Generator().manual_seed(3)
    for layer in layers_of(model):
        layer.sigma.data += amount * torch.randn(
            layer.sigma.shape, generator=draw, dtype=layer.sigma.dtype
        )


def encoder_on_meta(family: str, hidden: int, layers: int) -> nn.Module:
    shape = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
    }
    configs = {
        "bert": BertConfig(vocab_size=30522, intermediate_size=4 * hidden, **shape),
        "roberta": RobertaConfig(
            vocab_size=50265,
            max_position_embeddings=514,
            type_vocab_size=1,
            intermediate_size=4 * hidden,
            **shape,
        ),
    }
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(configs[family])
    mark_head(model, "classification")
    return model


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize(
    ("family", "width_and_layers", "targets", "count"),
    [
        ("roberta", (768, 12), "query_value", 18_432),
        ("roberta", (1024, 24), "query_value", 49_152),
        ("roberta", (768, 12), "linears", 55_296),
        ("roberta", (1024, 24), "linears", 147_456),
        ("bert", (768, 12), "query_value", 18_432),
        ("bert", (1024, 24), "linears", 147_456),
    ],
)
def test_trainable_count_without_head(
    tmp_path: Path, family: str, width_and_layers: tuple[int, int], targets: str, count: int
) -> None:
    model = encoder_on_meta(family, *width_and_layers)
    method("svfit", targets=targets).attach(
        model, None, small_context(tmp_path, family, probe=True)
    )
    assert trainable(model) == count


def test_roberta_base_head_is_counted_apart(tmp_path: Path) -> None:
    model = encoder_on_meta("roberta", 768, 12)
    method("svfit").attach(model, None, small_context(tmp_path, "roberta", probe=True))
    assert trainable(model, head=True) - trainable(model) == 592_130


@pytest.mark.parametrize(("hidden", "layers", "lora"), [(768, 12, 294_912), (1024, 24, 786_432)])
def test_ratio_to_lora_r8_is_exactly_16(
    tmp_path: Path, hidden: int, layers: int, lora: int
) -> None:
    counts = {}
    for name in ("svfit", "lora"):
        model = encoder_on_meta("roberta", hidden, layers)
        model, _ = method(name).attach(model, None, small_context(tmp_path, "roberta", probe=True))
        counts[name] = trainable(model)
    assert counts == {"lora": lora, "svfit": lora // 16}


@pytest.mark.parametrize(
    ("config", "ratio"),
    [
        (
            {
                "hidden_size": 576,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
            },
            20.0,
        ),
        (
            {
                "hidden_size": 2048,
                "num_hidden_layers": 22,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
            },
            22.2,
        ),
    ],
    ids=["smollm2-135m", "tinyllama"],
)
def test_ratio_is_not_16_where_value_is_not_square(
    tmp_path: Path, config: dict[str, int], ratio: float
) -> None:
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, intermediate_size=64, **config))
    method("svfit").attach(model, None, small_context(tmp_path, "llama", "causal_lm", probe=True))
    lora = sum(
        8 * (out + into)
        for out, into in (weight_of(layer.base).shape for layer in layers_of(model))
    )
    assert lora / trainable(model) == pytest.approx(ratio, abs=0.05)


# ------------------------------------------------------------------ the map


@pytest.mark.parametrize("point", ["svfit", "svfit@r64", "svfit@linears"])
def test_step_0_is_bitwise_the_base_model(minilm: nn.Module, tmp_path: Path, point: str) -> None:
    ids = torch.randint(1000, 30000, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = minilm(input_ids=ids).logits
        method(point).attach(minilm, None, small_context(tmp_path))
        assert torch.equal(minilm(input_ids=ids).logits, expected)


def test_step_0_without_the_residual_is_not_the_base_model(
    minilm: nn.Module, tmp_path: Path
) -> None:
    ids = torch.randint(1000, 30000, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = minilm.base_model
        expected = base(input_ids=ids).last_hidden_state
        method("svfit@no_residual").attach(minilm, None, small_context(tmp_path))
        change = (base(input_ids=ids).last_hidden_state - expected).norm() / expected.norm()
    assert change > 0.1


@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("residual", [True, False])
def test_forward_is_the_formula(conv1d: bool, residual: bool) -> None:
    torch.manual_seed(0)
    base = (Conv1D(7, 5) if conv1d else nn.Linear(5, 7)).double()
    layer = adapted(base, 3, residual)
    perturb(layer)
    W, x = weight_of(base), torch.randn(2, 4, 5, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    rest = W - (U[:, :3] * S[:3]) @ Vh[:3] if residual else torch.zeros_like(W)
    expected = x @ ((U[:, :3] * layer.sigma) @ Vh[:3] + rest).T + base.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [6, 3])
def test_sigma_gradient_is_u_dW_v(rank: int) -> None:
    """dL/dsigma_i = u_i^T (dL/dW) v_i."""
    torch.manual_seed(1)
    base = nn.Linear(9, 6).double()
    x = torch.randn(4, 9, dtype=torch.float64)
    dense = copy.deepcopy(base)
    dense(x).tanh().square().sum().backward()
    layer = adapted(base, rank)
    layer(x).tanh().square().sum().backward()
    expected = torch.einsum("or,oi,ri->r", layer.U, dense.weight.grad, layer.Vh)
    torch.testing.assert_close(layer.sigma.grad, expected, rtol=1e-12, atol=1e-12)


def test_outputs_and_gradients_agree_with_eigentune_diagonal() -> None:
    torch.manual_seed(2)
    base = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    config = eigentune.EigenTuneConfig(
        rank=4, method="diagonal", target_modules=["0", "2"], svd_backend="exact", backend="torch"
    )
    their_own = eigentune.get_eigentune_model(copy.deepcopy(base), config)  # decomposes in fp32
    for i in ("0", "2"):
        torch.testing.assert_close(
            their_own.get_submodule(i).Vh.float(),
            decompose(base.get_submodule(i).weight).Vh[:4].float(),
        )
    bases = {i: _their_bases(decompose(base.get_submodule(i).weight), 4) for i in ("0", "2")}
    theirs = eigentune.get_eigentune_model(copy.deepcopy(base), config, bases=bases).double()
    ours = nn.Sequential(adapted(base[0], 4), nn.Tanh(), adapted(base[2], 4))
    perturb(ours)
    for mine, their in zip(layers_of(ours), (theirs[0], theirs[2]), strict=True):
        their.delta.data = (mine.sigma - mine.S).detach()
    x = torch.randn(5, 10, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-14, atol=8e-16)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for mine, their in zip(layers_of(ours), (theirs[0], theirs[2]), strict=True):
        torch.testing.assert_close(
            mine.sigma.grad, their.delta.grad, rtol=1e-6, atol=1e-8
        )  # theirs sums in fp32


def _their_bases(svd: SVD, rank: int) -> Bases:
    return Bases(svd.U[:, :rank], svd.S[:rank], svd.Vh[:rank], tuple(range(rank)), "given")


# ------------------------------------------------------------------ export


@pytest.mark.parametrize("point", ["svfit", "svfit@r64", "svfit@no_residual"])
def test_merge_then_forward_fp32(minilm: nn.Module, tmp_path: Path, point: str) -> None:
    plugin, ctx = method(point), small_context(tmp_path)
    plain = copy.deepcopy(minilm)
    plugin.attach(minilm, None, ctx)
    perturb(minilm, 0.1)
    ids = torch.randint(1000, 30000, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = minilm.base_model(input_ids=ids).last_hidden_state
        exported = plugin.export(minilm, ctx)
        plain.load_state_dict(
            exported.state_dict()
        )  # strict: the original architecture, nothing more
        change = plain.base_model(input_ids=ids).last_hidden_state - expected
    assert change.norm() / expected.norm() < 1e-5
    assert not layers_of(exported)


@pytest.mark.parametrize("conv1d", [False, True])
def test_merge_then_forward_fp64(conv1d: bool) -> None:
    torch.manual_seed(4)
    base = (Conv1D(12, 16) if conv1d else nn.Linear(16, 12)).double()
    layer = adapted(base, 5)
    perturb(layer)
    x = torch.randn(7, 16, dtype=torch.float64)
    expected = layer(x)
    merged = layer.merged()
    assert type(merged) is type(base)
    torch.testing.assert_close(merged(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ADAPTABLE)
def test_every_family_trains_sigma_and_exports_what_it_computes(tmp_path: Path, name: str) -> None:
    data = small_data(tmp_path)
    model = small_model(name, pad_token_id=1 if name == "roberta" else 0)
    plugin, ctx = method("svfit", rank=5), small_context(tmp_path, name)
    model, _ = plugin.attach(model, data, ctx)
    batch = batch_of(data)
    optimizer = plugin.optimizer(plugin.parameter_groups(model, ctx), ctx)
    model(**batch).loss.backward()
    optimizer.step()
    assert all((layer.sigma != layer.S).any() for layer in layers_of(model))
    model.eval()
    expected = model(**batch).logits
    torch.testing.assert_close(
        plugin.export(model, ctx)(**batch).logits, expected, rtol=1e-4, atol=1e-5
    )


def test_gpt2_adapts_the_fused_query_key_value_map(tmp_path: Path) -> None:
    model = small_model("gpt2", "causal_lm")
    ctx = small_context(tmp_path, "gpt2", "causal_lm")
    method("svfit").attach(model, None, ctx)
    assert list(ctx.details["ranks"].values()) == [16] * 4
    assert all(
        isinstance(layer.base, Conv1D) and layer.U.shape == (48, 16) for layer in layers_of(model)
    )


# ------------------------------------------------------------------ settings, rates, cache, memory


def test_sigma_is_never_decayed_and_the_head_has_the_tasks_rate(tmp_path: Path) -> None:
    model, ctx = small_model(), small_context(tmp_path)
    plugin = method("svfit", lr=0.07)
    plugin.attach(model, None, ctx)
    sigma, head = plugin.parameter_groups(model, ctx)
    assert {id(p) for p in sigma["params"]} == {id(layer.sigma) for layer in layers_of(model)}
    assert (sigma["lr"], sigma["weight_decay"], head["lr"]) == (0.07, 0.0, ctx.head_lr)
    optimizer = torch.optim.AdamW(
        plugin.parameter_groups(model, ctx), weight_decay=0.1
    )  # as a searched decay would
    for layer in layers_of(model):
        layer.sigma.grad = torch.zeros_like(layer.sigma)
    optimizer.step()
    assert all(torch.equal(layer.sigma, layer.S) for layer in layers_of(model))


def test_the_usual_decay_would_shrink_sigma_to_0_88_in_250_steps() -> None:
    """Why it is never decayed: at its rate of 5e-2, AdamW's 0.01."""
    layer = adapted(nn.Linear(6, 6), 6)
    optimizer = torch.optim.AdamW([layer.sigma], lr=5e-2, weight_decay=0.01)
    for _ in range(250):
        layer.sigma.grad = torch.zeros_like(layer.sigma)
        optimizer.step()
    torch.testing.assert_close(
        layer.sigma / layer.S, torch.full_like(layer.S, 0.88), rtol=0, atol=5e-3
    )


@pytest.mark.parametrize("rank", [64, 384])
def test_weight_memory_rises_by_2_r_over_d(rank: int) -> None:
    base = nn.Linear(384, 384, bias=False, device="meta")
    layer = adapted(base, rank)
    added = sum(t.numel() for t in layer.buffers() if t.dim() == 2)
    assert added / base.weight.numel() == pytest.approx(2 * rank / 384)


def test_vectors_are_buffers_outside_the_checkpoint_and_the_weight_stays_visible() -> None:
    base = nn.Linear(4, 6)
    layer = adapted(base, 3)
    assert set(layer.state_dict()) == {"sigma", "base.weight", "base.bias"}
    assert {n for n, _ in layer.named_buffers()} == {"U", "S", "Vh"}
    assert layer.weight is base.weight
    assert layer.bias is base.bias


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.8, 2), (0.81, 3), (0.999, 4)])
def test_energy_rank(share: float, rank: int) -> None:
    assert (
        energy_rank(
            torch.tensor([4.0, 4.0, 2.0, 2.0]).sqrt() * torch.tensor([1.0, 1.0, 1.0, 0.0]), 1 - 1e-9
        )
        == 3
    )
    squares = torch.tensor([5.0, 3.0, 1.5, 0.5])
    assert energy_rank(squares.sqrt().double(), share - 1e-6) == rank


def test_energy_share_is_that_of_the_squares() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert [energy_share(values, r) for r in (1, 2, 3, 4)] == pytest.approx(
        [9 / 14, 13 / 14, 1.0, 1.0]
    )


def test_99_percent_of_the_energy_is_not_low_rank_on_minilm(
    minilm: nn.Module, tmp_path: Path
) -> None:
    ctx = small_context(tmp_path)
    method("svfit", rank=0.99, targets="linears").attach(minilm, None, ctx)
    by_kind: dict[str, list[int]] = {}
    for path, rank in ctx.details["ranks"].items():
        kind = path.split("layer.")[1].partition(".")[2]
        by_kind.setdefault(kind, []).append(rank)
    means = {kind: sum(ranks) / len(ranks) for kind, ranks in by_kind.items()}
    feed_forward = [means.pop("intermediate.dense"), means.pop("output.dense")]
    assert min(means.values()) == pytest.approx(256, abs=1)
    assert max(means.values()) == pytest.approx(268, abs=1)
    assert sum(feed_forward) / 2 == pytest.approx(355, abs=1)


@pytest.mark.parametrize("rank", [0, -1, 1.5, "half", True])
def test_a_wrong_rank_is_named(tmp_path: Path, rank: Any) -> None:
    with pytest.raises(BadInput, match=r"svfit\.rank"):
        method("svfit", rank=rank).attach(small_model(), None, small_context(tmp_path))


def test_predicting_an_energy_rank_asks_for_an_integer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--set svfit\.rank="):
        method("svfit", rank=0.9).attach(small_model(), None, small_context(tmp_path, probe=True))


def test_a_probe_writes_no_cache(tmp_path: Path) -> None:
    model = encoder_on_meta("bert", 64, 2)
    method("svfit").attach(model, None, small_context(tmp_path, probe=True))
    assert not list(tmp_path.iterdir())
