"""The optimizer baselines: Adafactor from a library, Adafactor as CAME's authors released it, and
SM3."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForPreTraining

from leantune.spec.stacks import parse_stack
from leantune.training.stack import load_method

SHAPES = [(7,), (5, 3), (2, 5, 3)]
NAMES = ["adafactor", "adafactor_released", "sm3", "came"]


def build(
    name: str, params: list[nn.Parameter], lr: float = 1e-2, **changes: Any
) -> torch.optim.Optimizer:
    """A plugin's optimizer as a cell makes it, at a `lr_scale` of 1 unless changed."""
    (part,) = [p for p in parse_stack(name, "classification") if p.slot == "optimizer"]
    method = load_method(part.plugin.name)({**part.params, "lr_scale": 1.0, **changes})
    return method.optimizer([{"params": params, "lr": lr}], SimpleNamespace())


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype))
        for s in SHAPES
    ]


def run(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) + 0.2).to(
                p.dtype
            )
        optimizer.step()
    return [p.detach().clone() for p in params]


def moments(params: list[nn.Parameter], beta2: Any, clip: float, steps: int) -> list[list[Tensor]]:
    """Adafactor's clipped update u of each step, written out from its paper; `beta2` is a function
    of the step."""
    generator = torch.Generator().manual_seed(1)
    row, col = (
        [torch.zeros(p.shape[:-1]) for p in params],
        [torch.zeros_like(p.sum(-2) if p.dim() > 1 else p) for p in params],
    )
    out = []
    for t in range(1, steps + 1):
        updates = []
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=generator, dtype=torch.float64) + 0.2
            q, b = g**2 + 1e-30, beta2(t)
            if p.dim() > 1:
                row[i] = b * row[i] + (1 - b) * q.mean(-1)
                col[i] = b * col[i] + (1 - b) * q.mean(-2)
                v = row[i][..., :, None] * col[i][..., None, :] / row[i].mean(-1)[..., None, None]
            else:
                col[i] = v = b * col[i] + (1 - b) * q
            u = g / v.sqrt()
            updates.append(u / max(1.0, u.square().mean().sqrt().item() / clip))
        out.append(updates)
    return out


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adafactor_follows_its_paper_at_a_given_rate(decay: float) -> None:
    params, expected = parameters(), [p.detach().clone() for p in parameters()]
    found = run(params, build("adafactor", params, weight_decay=decay), 20)
    m = [torch.zeros_like(p) for p in expected]
    for updates in moments(params, lambda t: 1 - t**-0.8, 1.0, 20):
        for i, u in enumerate(updates):
            m[i] = 0.9 * m[i] + 0.1 * 1e-2 * u
            expected[i] = expected[i] * (1 - 1e-2 * decay) - m[i]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adafactor_released_scales_its_momentum_by_the_rate(decay: float) -> None:
    params, expected = parameters(), [p.detach().clone() for p in parameters()]
    found = run(params, build("adafactor_released", params, weight_decay=decay), 20)
    m = [torch.zeros_like(p) for p in expected]
    for updates in moments(params, lambda t: 0.999, 1.0, 20):
        for i, u in enumerate(updates):
            m[i] = 1e-2 * (0.9 * m[i] + 0.1 * u)
            expected[i] = expected[i] * (1 - 1e-2 * decay) - m[i]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_adafactor_released_moves_9_7_times_less() -> None:
    """Noisy gradients of one direction: the fixed one moves by lr a step, the released one by a
    tenth."""
    distance = {}
    for name in ("adafactor", "adafactor_released"):
        p = nn.Parameter(torch.zeros(40, 30))
        optimizer = build(name, [p], lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            p.grad = 1 + 0.1 * torch.randn(40, 30, generator=generator)
            optimizer.step()
        distance[name] = p.detach().norm().item()
    assert distance["adafactor"] / distance["adafactor_released"] == pytest.approx(9.7, abs=0.3)


def test_sm3_is_adagrad_on_vectors() -> None:
    ours, theirs = (nn.Parameter(torch.ones(6, dtype=torch.float64)) for _ in range(2))
    pair = build("sm3", [ours], momentum=0.0), torch.optim.Adagrad([theirs], lr=1e-2, eps=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        ours.grad = theirs.grad = torch.randn(6, generator=generator, dtype=torch.float64)
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_sm3_covers_an_element_by_the_smaller_of_row_and_column_maximum() -> None:
    p = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    optimizer = build("sm3", [p], lr=1.0, momentum=0.0)
    first, second = (
        torch.tensor([[3.0, 1.0], [1.0, 1.0]]).double(),
        torch.full((2, 2), 2.0).double(),
    )
    for g in (first, second):
        p.grad = g
        optimizer.step()
    cover = torch.tensor(
        [[9.0, 1.0], [1.0, 1.0]]
    ).double()  # min(row max, column max) of the first squares
    expected = -1.0 - second / (cover + second**2).sqrt()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


def state_bytes(name: str, model: nn.Module, **changes: Any) -> int:
    params = list(model.parameters())
    for p in params:
        p.grad = torch.empty_like(p)
    if name == "came":
        changes["block"] = 2**40
    optimizer = build(name, params, **changes)
    optimizer.step()
    return sum(
        t.nbytes
        for s in optimizer.state.values()
        for t in s.values()
        if isinstance(t, Tensor) and t.dim()
    )


@pytest.mark.process
def test_states_on_bert_large_pre_training() -> None:
    """Adafactor without momentum is 0.1 to 0.3 % of Adam; with it, as SM3, within 2 MB of CAME."""
    wide = dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    with torch.device("meta"):
        model = AutoModelForPreTraining.from_config(AutoConfig.for_model("bert", **wide))
    adam = 8 * sum(p.numel() for p in model.parameters())
    came = state_bytes("came", model)
    assert came == 1_350_181_840
    assert 0.001 < state_bytes("adafactor@no_momentum", model) / adam < 0.003
    for name in ("adafactor", "adafactor_released", "sm3"):
        assert abs(state_bytes(name, model) - came) < 2e6, name


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_scaled_and_every_parameter_moves(name: str) -> None:
    params, start = parameters(torch.float32), parameters(torch.float32)
    optimizer = build(name, params, lr=1e-3, lr_scale=0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [5e-4]
    run(params, optimizer, 2)
    assert all((p != q).all() for p, q in zip(params, start, strict=True))
