"""What other optimizers do where CAME does better: transients of a step, and bf16 states after
loading."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from came_pytorch import CAME as Reference
from pytorch_optimizer import CAME as SecondOracle
from test_came import CAME, parameters, run
from torch import Tensor, nn

from leantune.meter.tensors import TensorMeter

BUILDERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "came": lambda p: CAME(p, lr=1e-3, block=4096),
    "came-pytorch": lambda p: Reference(p, lr=1e-3),
    "pytorch-optimizer": lambda p: SecondOracle(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
}


@pytest.mark.parametrize(
    ("name", "dtype", "tensors"),
    [
        ("came", torch.float32, 0.025),
        ("came", torch.bfloat16, 0.025),
        ("came-pytorch", torch.float32, 3),
        ("came-pytorch", torch.bfloat16, 4),
        ("pytorch-optimizer", torch.float32, 2),
        ("adamw", torch.float32, 2),
    ],
)
def test_transient_of_a_step_in_fp32_copies_of_the_tensor(
    name: str, dtype: torch.dtype, tensors: float
) -> None:
    p = parameters([(1024, 512)], dtype)[0]
    optimizer = BUILDERS[name]([p])
    run([p], optimizer, 1)
    meter = TensorMeter()
    with meter:
        meter.track([p], "weights")
        meter.track([p.grad], "gradients")
        meter.track([t for t in optimizer.state[p].values() if isinstance(t, Tensor)], "optimizer")
        meter.mark("optimizer")
        optimizer.step()
    assert meter.result().by_kind["temporaries"] / (4 * p.numel()) == pytest.approx(
        tensors, abs=0.025 + 0.03 * tensors
    )


@pytest.mark.parametrize(("name", "kept"), [("came", True), ("came-pytorch", False)])
def test_bf16_resume(name: str, kept: bool) -> None:
    """The reference's fp32 states turn bf16 when they are loaded, so its weights go elsewhere."""
    straight = parameters([(16, 12)], torch.bfloat16)
    optimizer = BUILDERS[name](straight)
    optimizer.param_groups[0]["lr"] = 1e-1
    run(straight, optimizer, 5)
    resumed = [nn.Parameter(p.detach().clone()) for p in straight]
    second = BUILDERS[name](resumed)
    second.load_state_dict(optimizer.state_dict())
    dtypes = {
        t.dtype for t in second.state[resumed[0]].values() if isinstance(t, Tensor) and t.dim()
    }
    assert dtypes == {torch.float32 if kept else torch.bfloat16}
    a, b = run(straight, optimizer, 5, seed=2), run(resumed, second, 5, seed=2)
    assert torch.equal(a[0], b[0]) == kept
