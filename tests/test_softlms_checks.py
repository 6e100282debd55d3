"""SoftLMs: the scale of its thresholds on real weights, and what it costs while they train."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leantune.svd import decompose, weight_of
from leantune.training.stack import load_method

load_method("softlms")
from leantune_plugins.softlms.layers import SoftLinear  # noqa: E402  (importable once loaded)


def test_half_the_parameters_need_a_threshold_of_about_2_which_usual_rates_never_reach(
    minilm: nn.Module,
) -> None:
    """1.85 (query) to 2.63 (feed-forward) in MiniLM's third layer; AdamW at 1e-4 moves a scalar
    0.025 in 250 steps."""
    layer, needed = minilm.base_model.encoder.layer[2], {}
    for name in ("attention.self.query", "intermediate.dense"):
        linear = layer.get_submodule(name)
        soft = SoftLinear(linear, decompose(weight_of(linear)), "relu", 0.0, 0.05)
        out, into = soft.shape
        soft.set_rank(out * into // 2 // (out + into))
        needed[name] = float(soft.alpha * soft.scale)
    assert needed["attention.self.query"] == pytest.approx(1.85, abs=5e-3)
    assert needed["intermediate.dense"] == pytest.approx(2.63, abs=5e-3)

    alpha = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([alpha], lr=1e-4, weight_decay=0.0)
    for _ in range(250):
        alpha.grad = torch.tensor(-1.0)
        optimizer.step()
    assert alpha.item() == pytest.approx(0.025, rel=1e-3)


@pytest.mark.parametrize(
    ("out", "into", "times"), [(3072, 768, 1.25), (768, 3072, 1.25), (768, 768, 2.0)]
)
def test_vectors_cost_more_than_the_dense_weights_while_thresholds_train(
    out: int, into: int, times: float
) -> None:
    linear = nn.Linear(into, out, device="meta")
    soft = SoftLinear(linear, decompose(weight_of(linear)), "relu", 0.0, 0.05)
    held = sum(t.numel() for t in [*soft.parameters(), *soft.buffers()] if t.dim() == 2)
    assert held / (out * into) == times
