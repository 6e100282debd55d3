"""Our adapters against those of the library `adapters` 1.3.0, which needs transformers 4.57: `make
oracle-test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_env import ask
from small import ADAPTABLE, batch_of, method, small_context, small_data, small_model
from torch import Tensor, nn

from leantune.modules import Adapter, adapters

pytestmark = pytest.mark.oracle_env


def stirred(model: Any, folder: Path, family: str, **params: Any) -> list[Adapter]:
    """Saves the plain model, then attaches adapters that are as if trained; the adapters, lowest
    first."""
    model.save_pretrained(folder / "model")
    method("adapter", **params).attach(model, None, small_context(folder, family))
    torch.manual_seed(3)
    for adapter in adapters(model):
        for p in adapter.own_parameters():
            nn.init.normal_(p, std=0.05)
    return adapters(model)


def own(found: list[Adapter]) -> dict[str, nn.Parameter]:
    return {
        f"{i}.{side}.{name}": p
        for i, a in enumerate(found)
        for side in ("down", "up")
        for name, p in getattr(a, side).named_parameters()
    }


def theirs(
    folder: Path,
    found: list[Adapter],
    batch: dict[str, Tensor],
    seed: int | None = None,
    **config: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    weights = {f"adapter.{name}": p.detach() for name, p in own(found).items()}
    dtype = str(found[0].down.weight.dtype).removeprefix("torch.")
    return ask("houlsby", folder, {**batch, **weights}, config=config, dtype=dtype, seed=seed)


def real_batch() -> dict[str, Tensor]:
    """Three sequences of MiniLM's ids, the last one padded."""
    ids = torch.randint(1000, 30000, (3, 17), generator=torch.Generator().manual_seed(0))
    attention = torch.ones_like(ids)
    attention[2, 11:] = 0
    return {
        "input_ids": ids * attention,
        "attention_mask": attention,
        "labels": torch.tensor([0, 1, 1]),
    }


def assert_same(
    model: Any, found: list[Adapter], batch: dict[str, Tensor], answer: dict[str, Tensor]
) -> None:
    """Logits, loss and every gradient to 1e-10 in fp64."""
    result = model(**batch)
    result.loss.backward()
    torch.testing.assert_close(result.logits.detach(), answer["logits"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.loss.detach(), answer["loss"], rtol=1e-10, atol=1e-12)
    for name, p in own(found).items():
        torch.testing.assert_close(
            p.grad, answer[f"gradient.{name}"], rtol=1e-9, atol=1e-12, msg=name
        )
        assert p.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("per_layer", [2, 1])
def test_logits_and_gradients_are_the_librarys_on_minilm(
    minilm: Any, tmp_path: Path, per_layer: int
) -> None:
    """double_seq_bn with the paper's activation; the same shape after the feed-forward map only."""
    found = stirred(minilm, tmp_path, "bert", per_layer=per_layer)
    minilm.double()
    batch = real_batch()
    config = {"reduction_factor": 384 / 48, "non_linearity": "gelu", "mh_adapter": per_layer == 2}
    answer, counts = theirs(tmp_path, found, batch, **config)
    assert counts["adapters"] == len(found) == 6 * per_layer
    assert (
        counts["parameters"]
        == sum(p.numel() for p in own(found).values())
        == 6 * per_layer * 37_296
    )
    assert counts["trained_in_the_base"] == []  # LayerNorms stay frozen in the library too
    assert_same(minilm, found, batch, answer)


def test_the_librarys_default_activation_is_another_than_the_papers(
    minilm: Any, tmp_path: Path
) -> None:
    """Negative control: double_seq_bn as it comes has swish, where the paper's code has gelu."""
    found = stirred(minilm, tmp_path, "bert")
    minilm.double()
    answer, _ = theirs(tmp_path, found, real_batch(), reduction_factor=8)
    assert (minilm(**real_batch()).logits - answer["logits"]).abs().max() > 1e-3


def test_dropout_comes_before_the_adapter_in_both(minilm: Any, tmp_path: Path) -> None:
    """In train mode, with one seed, the same numbers are dropped at the same places."""
    found = stirred(minilm, tmp_path, "bert")
    minilm.double().train()
    batch = real_batch()
    answer, _ = theirs(tmp_path, found, batch, seed=5, reduction_factor=8, non_linearity="gelu")
    torch.manual_seed(5)
    assert_same(minilm, found, batch, answer)
    assert (minilm.eval()(**batch).logits - answer["logits"]).abs().max() > 1e-6


@pytest.mark.parametrize("family", ADAPTABLE)
def test_places_are_the_librarys_in_every_family(tmp_path: Path, family: str) -> None:
    """Decoders too, of which the paper has none."""
    model = small_model(family, pad_token_id=1 if family == "roberta" else 0)
    found = stirred(model, tmp_path, family, bottleneck=4)
    model.double().eval()
    batch = batch_of(small_data(tmp_path))
    answer, counts = theirs(tmp_path, found, batch, reduction_factor=4, non_linearity="gelu")
    assert counts["adapters"] == len(found) == 8
    assert_same(model, found, batch, answer)


def test_24_adapters_of_bert_base_have_1789056_parameters_in_the_library(tmp_path: Path) -> None:
    model = small_model(
        "bert", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=32
    )
    found = stirred(model, tmp_path, "bert", bottleneck=48)
    _, counts = theirs(tmp_path, found, batch_of(small_data(tmp_path)), reduction_factor=16)
    assert (counts["adapters"], counts["parameters"]) == (24, 1_789_056)
