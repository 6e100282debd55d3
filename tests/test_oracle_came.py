"""The negative control of CAME: came-pytorch 0.1.2, which scales its 1-D momentum by the rate:
`make oracle-test`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle_env import ask
from test_came import CAME, Aliased, parameters
from torch import Tensor

STEPS, LR = 50, 1e-2


@pytest.mark.oracle_env
def test_unequal_to_came_pytorch_0_1_2_on_vectors_only(tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = [(7,), (5, 3), (2, 5, 3)]
    start = parameters(shapes)
    draw = torch.Generator().manual_seed(1)
    gradients = [
        torch.randn(STEPS, *shape, generator=draw, dtype=torch.float64) + 0.3 for shape in shapes
    ]
    tensors = {f"weight{i}": p.detach() for i, p in enumerate(start)}
    tensors |= {f"gradient{i}": g for i, g in enumerate(gradients)}
    found, about = ask("came_0_1_2", tmp_path, tensors, weights=len(shapes), steps=STEPS, lr=LR)
    assert about["version"] == "0.1.2"
    old = [found[f"weight{i}"] for i in range(len(shapes))]

    def stepped(optimizer: type) -> list[Tensor]:
        params = parameters(shapes)
        made = optimizer(params, lr=LR)
        for step in range(STEPS):
            for p, g in zip(params, gradients, strict=True):
                p.grad = g[step].clone()
            made.step()
        return [p.detach() for p in params]

    ours = stepped(CAME)
    for a, b in zip(ours[1:], old[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (ours[0] - start[0]).norm() > 5 * (old[0] - start[0]).norm()
    torch.testing.assert_close(stepped(Aliased)[0], old[0], rtol=1e-12, atol=1e-12)
