"""Houlsby adapters: counts, placement, start, and what a frozen prefix frees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import (
    ADAPTABLE,
    batch_of,
    method,
    small_context,
    small_data,
    small_model,
    stack,
    trainable,
)
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import leantune
from leantune.api import BadInput, Unsupported, mark_head
from leantune.architectures import blocks
from leantune.modules import Adapter, adapter_bottlenecks, adapters, place_adapters


def classifier(width: int, layers: int) -> RobertaForSequenceClassification:
    config = RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    with torch.device("meta"):
        model = RobertaForSequenceClassification(config)
    mark_head(model, "classification")
    return model


def test_one_adapter_has_74544_parameters() -> None:
    adapter = Adapter(nn.Identity(), 768, 48, device="meta")
    assert sum(p.numel() for p in adapter.own_parameters()) == 74_544


@pytest.mark.parametrize(
    ("width", "layers", "bottleneck", "counts"),
    [
        (768, 12, 16, (608_640, 304_320)),
        (768, 12, 48, (1_789_056, 894_528)),
        (768, 12, 64, (2_379_264, 1_189_632)),
        (1024, 24, 16, (1_622_784, 811_392)),
        (1024, 24, 64, (6_343_680, 3_171_840)),
    ],
)
def test_adapters_of_a_model(
    tmp_path: Path, width: int, layers: int, bottleneck: int, counts: tuple[int, int]
) -> None:
    for per_layer, count in zip((2, 1), counts, strict=True):
        model = classifier(width, layers)
        plugin = method("adapter", bottleneck=bottleneck, per_layer=per_layer)
        plugin.attach(model, None, small_context(tmp_path, "roberta", probe=True))
        assert len(adapters(model)) == per_layer * layers
        assert trainable(model) == count


@pytest.mark.parametrize("name", ADAPTABLE)
def test_fresh_adapters_change_almost_nothing_in_every_family(tmp_path: Path, name: str) -> None:
    kind = "causal_lm" if name in ("llama", "gpt2") else "classification"
    data, ctx = small_data(tmp_path, kind), small_context(tmp_path, name, kind)
    model = small_model(name, kind).eval()
    batch = batch_of(data)
    before = model(**batch).logits
    method("adapter", kind).attach(model, data, ctx)
    assert len(adapters(model)) == 2 * len(blocks(model, name))
    after = model(**batch).logits
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.equal(before, after)


def test_the_bottleneck_comes_between_dropout_and_the_residual_addition(tmp_path: Path) -> None:
    """A block's output is LayerNorm(adapter(dropout(dense(x))) + residual), as in figure 2 and the
    paper's code."""
    model = small_model("bert", hidden_dropout_prob=0.5).train()
    method("adapter").attach(model, None, small_context(tmp_path))
    output = model.bert.encoder.layer[0].output
    (adapter,) = adapters(output)
    for p in adapter.own_parameters():
        nn.init.normal_(p)
    x, residual = torch.randn(2, 3, 32), torch.randn(2, 3, 16)
    torch.manual_seed(5)
    y = nn.functional.dropout(output.dense(x), 0.5)
    z = (
        y
        + nn.functional.gelu(y @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T
        + adapter.up.bias
    )
    torch.manual_seed(5)
    assert torch.allclose(output(x, residual), output.LayerNorm(z + residual), atol=1e-5)


def test_a_wrapped_map_still_shows_its_weight(tmp_path: Path) -> None:
    model = small_model("llama", "causal_lm")
    before = model.model.layers[0].mlp.down_proj.weight
    method("adapter", "causal_lm").attach(
        model, None, small_context(tmp_path, "llama", "causal_lm")
    )
    assert isinstance(model.model.layers[0].mlp.down_proj, Adapter)
    assert model.model.layers[0].mlp.down_proj.weight is before


def test_layer_norms_of_the_base_stay_frozen(tmp_path: Path) -> None:
    model = small_model("bert")
    method("adapter").attach(model, None, small_context(tmp_path))
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert norms
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def test_place_adapters_rebuilds_the_same_modules(tmp_path: Path) -> None:
    first, second = small_model("bert"), small_model("bert")
    method("adapter", bottleneck=5).attach(first, None, small_context(tmp_path))
    place_adapters(second, adapter_bottlenecks(first))
    assert list(second.state_dict()) == list(first.state_dict())
    assert [tuple(v.shape) for v in second.state_dict().values()] == [
        tuple(v.shape) for v in first.state_dict().values()
    ]


@pytest.mark.parametrize(
    ("setting", "value"), [("per_layer", 3), ("bottleneck", 0), ("bottleneck", 1.5)]
)
def test_settings_are_checked(tmp_path: Path, setting: str, value: float) -> None:
    with pytest.raises(BadInput, match=f"adapter.{setting}"):
        method("adapter", **{setting: value}).attach(
            small_model("bert"), None, small_context(tmp_path)
        )


def test_an_adapter_follows_a_mixture_that_gives_its_routing_too() -> None:
    """gpt-oss's does: the first of its values are the hidden states."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = GptOssConfig(**sizes, **heads, num_local_experts=2, num_experts_per_tok=1)
    handle = leantune.apply(GptOssForCausalLM(config), "adapter")
    ids = torch.arange(8)[None]
    handle.model(input_ids=ids, labels=ids).loss.backward()
    found = adapters(handle.model)
    assert len(found) == 4
    assert all(p.grad is not None for one in found for p in one.own_parameters())


def test_a_model_without_attention_is_unsupported(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 64}
    model = MambaForCausalLM(MambaConfig(**sizes))
    with pytest.raises(Unsupported, match=r"needs attention .* MambaForCausalLM has none"):
        stack("adapter", "causal_lm").attach(model, None, small_context(tmp_path, "mamba"))


def kept_for_backward(model: nn.Module, batch: int, length: int) -> int:
    """Bytes of the distinct storages that autograd keeps, weights left out."""
    weights = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    ids = torch.zeros(batch, length, dtype=torch.long, device="meta")
    labels = torch.zeros(batch, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(ids, labels=labels).loss
    assert loss.requires_grad
    return sum(s.nbytes() for s in kept.values())


def test_only_a_frozen_prefix_frees_activations(tmp_path: Path) -> None:
    """roberta-base shapes, h = 48, batch 8 x 128, dropout 0.1: MiB kept for the backward pass, head
    included."""
    model = classifier(768, 12)
    method("adapter").attach(model, None, small_context(tmp_path, "roberta", probe=True))
    model.train()

    def mib(frozen_layers: set[int]) -> float:
        for i, adapter in enumerate(adapters(model)):
            for p in adapter.own_parameters():
                p.requires_grad_(i // 2 not in frozen_layers)
        return round(kept_for_backward(model, 8, 128) / 2**20, 1)

    assert [mib(set(range(n))) for n in (0, 3, 6, 9)] == [663.3, 490.0, 316.7, 143.4]
    assert [mib(set(range(6, 12))), mib(set(range(1, 12, 2)))] == [625.1, 625.1]
    assert mib(set(range(1, 12))) == 593.2
