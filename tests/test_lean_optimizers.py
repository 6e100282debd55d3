"""GaLore, 8-bit AdamW, and the optimizers that step within the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_optimizer import AdaLOMO
from small import batch_of, run, small_context, small_data, small_model, stack
from torch import nn

from leantune.api import Unsupported
from leantune.prediction import one
from leantune.prediction.ask import Ask
from leantune.training.loop import Schedule, train

NAMES = ["lomo", "adalomo", "galore", "adamw_8bit"]


def optimizer(
    name: str, params: list[nn.Parameter], lr: float, tmp_path: Path, **settings: Any
) -> torch.optim.Optimizer:
    return (
        stack(name, lr_scale=1.0, **settings)
        .methods["optimizer"]
        .optimizer([{"params": params, "lr": lr}], small_context(tmp_path))
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_the_body_and_the_head(tmp_path: Path, name: str) -> None:
    data, ctx, model, plain = (
        small_data(tmp_path),
        small_context(tmp_path),
        small_model(),
        small_model(),
    )
    used = run(model, stack(name), data, ctx)
    # A key's bias changes no attention: its gradient is rounding error, which a clip or a
    # projection may leave at zero.
    still = [
        n
        for (n, p), q in zip(model.named_parameters(), plain.parameters(), strict=True)
        if torch.equal(p, q) and not n.endswith("key.bias")
    ]
    assert still == []
    assert {g["lr"] for g in used.param_groups} == {0.0}  # the schedule reached its end


def test_lomo_is_sgd(tmp_path: Path) -> None:
    ours, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    lomo, sgd = (
        optimizer("lomo", list(ours.parameters()), 0.1, tmp_path),
        torch.optim.SGD(plain.parameters(), 0.1),
    )
    for _ in range(3):
        for model in (ours, plain):
            (100 * model(torch.ones(1, 3))).square().sum().backward()
        assert all(p.grad is None for p in ours.parameters())
        torch.nn.utils.clip_grad_value_(plain.parameters(), 1.0)
        lomo.step()
        sgd.step()
        sgd.zero_grad()
    assert all(
        torch.equal(p, q) for p, q in zip(ours.parameters(), plain.parameters(), strict=True)
    )


def test_adalomo_steps_as_the_library_does(tmp_path: Path) -> None:
    ours = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    theirs = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    theirs.load_state_dict(ours.state_dict())
    made, library = (
        optimizer("adalomo", list(ours.parameters()), 0.1, tmp_path),
        AdaLOMO(theirs, lr=0.1, loss_scale=0),
    )
    x = torch.randn(4, 5)
    for _ in range(4):
        ours(x).square().mean().backward()
        made.step()
        library.fused_backward(theirs(x).square().mean(), 0.1)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"clip": 1.0}, {"accumulate": 2}])
def test_what_needs_all_gradients_is_refused(tmp_path: Path, settings: dict) -> None:
    data, ctx, model, used = (
        small_data(tmp_path),
        small_context(tmp_path),
        small_model(),
        stack("lomo"),
    )
    used.attach(model, data, ctx)
    with pytest.raises(
        Unsupported, match=r"within the backward pass.*task\.clip=0 and task\.accumulate=1"
    ):
        train(model, used, iter([batch_of(data)]), Schedule(steps=1, **settings), ctx)


def test_an_optimizer_that_was_replaced_steps_no_more(tmp_path: Path) -> None:
    weight, used = (
        nn.Parameter(torch.zeros(2, 2)),
        stack("lomo", lr_scale=1.0, clip=None).methods["optimizer"],
    )
    for _ in range(2):
        used.optimizer([{"params": [weight], "lr": 1.0}], small_context(tmp_path))
    weight.sum().backward()
    assert torch.equal(weight.detach(), -torch.ones(2, 2))


@pytest.mark.parametrize(
    "name", ["safe+lomo", "softlms@stage2+adalomo", "lora+galore", "svfit+adamw_8bit"]
)
def test_stacks(tmp_path: Path, name: str) -> None:
    data, ctx, model, used = (
        small_data(tmp_path),
        small_context(tmp_path),
        small_model(),
        stack(name),
    )
    run(model, used, data, ctx)
    assert torch.isfinite(used.export(model, ctx).eval()(**batch_of(data)).logits).all()


def test_adalora_needs_the_gradients(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="reads the gradients"):
        run(small_model(), stack("adalora+lomo"), small_data(tmp_path), small_context(tmp_path))


@pytest.mark.process
def test_what_is_saved_at_bert_base() -> None:
    """Of AdamW's states: nothing, a row and a column of each matrix, rank 8, and a quarter;
    gradients within backward."""
    found = {n: one.predict(Ask("bert-base", n, batch=1, length=32)) for n in ("full", *NAMES)}
    states = {
        n: r["optimizer_state_bytes"] / found["full"]["optimizer_state_bytes"]
        for n, r in found.items()
    }
    assert states["lomo"] == 0
    assert states["adalomo"] < 0.002
    assert states["galore"] < 0.02
    assert 0.25 < states["adamw_8bit"] < 0.26
    assert {n: found[n]["by_kind"]["gradients"] for n in ("lomo", "adalomo")} == {
        "lomo": 0,
        "adalomo": 0,
    }
    assert found["lomo"]["peak_bytes"] < 0.45 * found["full"]["peak_bytes"]


def test_projected_states_make_a_run_start_over() -> None:
    assert not stack("galore").resumable
    assert stack("adamw_8bit").resumable
    assert stack("adalomo").resumable


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_scaled(tmp_path: Path, name: str) -> None:
    groups = [
        {"params": [nn.Parameter(torch.zeros(shape))], "lr": 0.1} for shape in ((20, 20), (3,))
    ]
    made = stack(name, lr_scale=0.5).methods["optimizer"].optimizer(groups, small_context(tmp_path))
    assert {g["lr"] for g in made.param_groups} == {0.05}
