"""Every legal stack of the five: it trains with the real loop, is exported, saved and loaded, and
agrees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small import narrow_settings, run, small_context, small_data, small_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from leantune.api import BadInput
from leantune.models.export import load, save
from leantune.modules import adapters, factored_ranks
from leantune.spec.stacks import parse_stack
from leantune.training.stack import Stack

STACKS = [
    "vocab_pruning+svfit",
    "vocab_pruning+safe",
    "vocab_pruning+softlms",
    "vocab_pruning+came",
    "svfit+came",
    "safe+came",
    "softlms+came",
    "vocab_pruning+svfit+came",
    "vocab_pruning+safe+came",
]
IDS = torch.tensor([[2, 9, 17, 33, 3], [2, 8, 8, 60, 3]])


def legal_stack(name: str, kind: str) -> Stack:
    return Stack(parse_stack(name, kind, narrow_settings(name)))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def embedding(model: PreTrainedModel) -> Tensor:
    return model.get_input_embeddings().weight.detach().clone()


@pytest.mark.parametrize(("family", "kind"), [("bert", "classification"), ("llama", "causal_lm")])
@pytest.mark.parametrize("name", STACKS)
def test_it_trains_exports_loads_and_agrees(
    name: str, family: str, kind: str, tmp_path: Path
) -> None:
    words = name.split("+")
    start = small_model(family, kind)
    data, ctx, model = (
        small_data(tmp_path, kind),
        small_context(tmp_path, family, kind, steps=20),
        small_model(family, kind),
    )
    plugins = legal_stack(name, kind)
    optimizer = run(model, plugins, data, ctx)

    listed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert listed == {id(p) for p in model.parameters() if p.requires_grad}
    assert type(optimizer).__name__ == ("CAME" if "came" in words else "AdamW")
    trained = logits(model)
    assert trained.shape == logits(start).shape  # the whole vocabulary
    assert not torch.allclose(trained, logits(start), atol=1e-4)

    exported = plugins.export(model, ctx).eval()
    torch.testing.assert_close(logits(exported), trained, rtol=1e-5, atol=1e-5)
    if "vocab_pruning" in words:
        used = {i for ids in data.train["input_ids"] for i in ids} | {0, 1, 2, 3, 4}
        unused = [i for i in range(64) if i not in used]
        assert torch.equal(embedding(exported)[unused], embedding(start)[unused])
        assert ctx.details["vocabulary"]["kept"] == 64 - len(unused)

    save(exported, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(exported))
    assert type(loaded) is type(start)
    assert len(adapters(loaded)) == (8 if "safe" in words else 0)
    assert bool(factored_ranks(loaded)) == ("softlms" in words)
    plain = "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert plain == ({"safe", "softlms"}.isdisjoint(words))  # then plain transformers loads it
    if "safe" in words:
        assert ctx.details["checks"]
    if "softlms" in words:
        assert ctx.details["budget"] == "met"


@pytest.mark.parametrize(
    "name", ["svfit+safe", "safe+softlms", "vocab_pruning+svfit+softlms", "came+adafactor"]
)
def test_two_plugins_of_one_slot_are_no_stack(name: str) -> None:
    with pytest.raises(BadInput, match="one plugin per slot"):
        parse_stack(name, "classification")


def test_an_optimizers_scale_leaves_the_rate_of_thresholds_alone(tmp_path: Path) -> None:
    """It follows from the reach and the steps: scaled down with CAME's others, no budget would be
    met."""
    ctx, model, plugins = (
        small_context(tmp_path),
        small_model(),
        legal_stack("softlms+came", "classification"),
    )
    plugins.attach(model, small_data(tmp_path), ctx)
    groups = plugins.optimizer(plugins.parameter_groups(model, ctx), ctx).param_groups
    assert [g["lr"] for g in groups] == pytest.approx([4.0 / 5, 1e-3 * 0.1, 1e-3 * 0.1])
