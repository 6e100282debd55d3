"""AdapterDrop: nothing below the lowest adapter is kept or computed backwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import method, small_context, small_model, trainable

from leantune.api import BadInput
from leantune.modules import adapters
from leantune.prediction import one
from leantune.prediction.ask import Ask


def test_the_lowest_layers_have_no_adapters(tmp_path: Path) -> None:
    model, ctx, full = small_model(), small_context(tmp_path), small_model()
    method("adapterdrop").attach(model, None, ctx)
    method("adapter").attach(full, None, ctx)
    found = {name.split(".")[3] for name, m in model.named_modules() if m in adapters(model)}
    assert found == {"2", "3"}
    assert 2 * trainable(model) == trainable(full)


@pytest.mark.parametrize("drop", [4, -1, "most", 1.5])
def test_a_layer_must_be_left(tmp_path: Path, drop: object) -> None:
    with pytest.raises(BadInput, match="a number from 0 to 3"):
        method("adapterdrop", drop=drop).attach(small_model(), None, small_context(tmp_path))


def test_activations_and_work_below_the_lowest_adapter_vanish() -> None:
    """12 layers: with 11 dropped nearly nothing is kept, and each layer dropped saves the same."""
    kept = [
        one.predict(
            Ask("bert-base", "adapterdrop", batch=8, length=64, settings={"adapterdrop.drop": n})
        )
        for n in (0, 5, 10)
    ]
    activations = [r["by_kind"]["activations"] for r in kept]
    flops = [r["flops_per_step"] for r in kept]
    full = one.predict(Ask("bert-base", "adapter", batch=8, length=64))
    assert activations[0] == full["by_kind"]["activations"]
    assert activations[0] - activations[1] == pytest.approx(
        activations[1] - activations[2], rel=0.1
    )
    assert activations[2] < 0.25 * activations[0]
    assert flops[0] - flops[1] == pytest.approx(flops[1] - flops[2], rel=0.02)
    assert flops[2] < 0.65 * flops[0]  # the forward pass of all layers is left
