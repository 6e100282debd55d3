"""CAME: every exact check of its specification, against came-pytorch 0.1.3 and pytorch_optimizer
4.1."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from came_pytorch import CAME as Reference
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_optimizer import CAME as SecondOracle
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
)

from leantune.errors import BadInput
from leantune.meter.tensors import TensorMeter
from leantune.training.stack import load_method

CAME = sys.modules[load_method("came").__module__].CAME
SHAPES = [(7,), (), (5, 3), (1, 6), (6, 1), (1, 1), (2, 5, 3), (2, 2, 3, 4)]


def parameters(
    shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype))
        for s in shapes
    ]


def run(
    params: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    steps: int,
    gradient: Callable[[int, nn.Parameter, torch.Generator], Tensor] | None = None,
    seed: int = 1,
) -> list[Tensor]:
    """Steps on gradients that differ in scale by tensor and step, the same for every optimizer."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for i, p in enumerate(params):
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            g = (
                gradient(step, p, generator)
                if gradient
                else (noise + 0.3) * 10.0 ** (-i) * (1 + step % 5)
            )
            p.grad = g.to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in params]


def close(a: list[Tensor], b: list[Tensor], rtol: float) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol)


# ------------------------------------------------------------------ the same as the reference


@pytest.mark.parametrize("block", [0, 11])
@pytest.mark.parametrize("clip", [1.0, math.inf])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_equal_to_came_pytorch_0_1_3(decay: float, clip: float, block: int) -> None:
    assert version("came-pytorch") == "0.1.3"
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    optimizer = CAME(ours, lr=1e-2, weight_decay=decay, clip=clip, block=block)
    reference = Reference(theirs, lr=1e-2, weight_decay=decay, clip_threshold=clip)
    a, b = run(ours, optimizer, 200), run(theirs, reference, 200)
    close(a, b, 1e-12)
    for p, q in zip(ours, theirs, strict=True):
        close(
            list(optimizer.state[p].values()),
            [reference.state[q][k] for k in optimizer.state[p]],
            1e-11,
        )
    assert all(not torch.equal(x, p) for x, p in zip(a, parameters(SHAPES), strict=True))


@pytest.mark.parametrize("block", [0, 7])
def test_equal_to_pytorch_optimizer_4_1(block: int) -> None:
    assert version("pytorch-optimizer").startswith("4.1")
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    close(
        run(ours, CAME(ours, lr=1e-2, block=block), 50),
        run(theirs, SecondOracle(theirs, lr=1e-2), 50),
        1e-12,
    )


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    block=st.integers(1, 60),
    betas=st.tuples(st.floats(0.5, 0.95), st.floats(0.5, 0.999), st.floats(0.5, 0.9999)),
)
def test_block_size_never_matters(
    shape: tuple[int, ...], block: int, betas: tuple[float, float, float]
) -> None:
    ours, theirs = parameters([shape]), parameters([shape])
    a = run(ours, CAME(ours, lr=1e-2, betas=betas, block=block), 5)
    close(a, run(theirs, Reference(theirs, lr=1e-2, betas=betas), 5), 1e-11)


def test_memory_formats_and_frozen_parameters() -> None:
    ours, theirs = parameters([(3, 4, 5, 2), (6, 4)]), parameters([(3, 4, 5, 2), (6, 4)])
    ours[0] = nn.Parameter(ours[0].detach().to(memory_format=torch.channels_last))
    ours[1] = nn.Parameter(ours[1].detach().t().contiguous().t())
    frozen = nn.Parameter(torch.ones(2, 2))
    optimizer = CAME([*ours, frozen], lr=1e-2, block=6)
    close(run(ours, optimizer, 3), run(theirs, Reference(theirs, lr=1e-2), 3), 1e-12)
    assert torch.equal(frozen, torch.ones(2, 2))
    assert frozen not in optimizer.state


class Aliased(torch.optim.Optimizer):
    """The 1-D update of came-pytorch 0.1.2: the momentum itself is multiplied by the rate at each
    step."""

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            m = state.setdefault("m", torch.zeros_like(p))
            v = state.setdefault("v", torch.zeros_like(p))
            v.mul_(0.999).add_(p.grad**2 + 1e-30, alpha=1 - 0.999)
            u = v.rsqrt() * p.grad
            u.div_((u.norm() / u.numel() ** 0.5).clamp(min=1.0))
            update = m.mul_(0.9).add_(u, alpha=1 - 0.9)
            p.sub_(update.mul_(self.param_groups[0]["lr"]))


def test_unequal_to_the_aliasing_of_0_1_2_on_vectors() -> None:
    ours, aliased = parameters([(7,)]), parameters([(7,)])
    start = ours[0].detach().clone()
    moved = (run(ours, CAME(ours, lr=1e-2), 50)[0] - start).norm()
    stuck = (run(aliased, Aliased(aliased, lr=1e-2), 50)[0] - start).norm()
    assert moved > 5 * stuck


# ------------------------------------------------------------------ closed forms


def test_first_step_of_a_matrix_is_11_11_rates() -> None:
    """RMS (1 - b1) / (b1 sqrt(1 - b3)), for a rank-one gradient: its factored moments are exact."""
    p = nn.Parameter(torch.zeros(40, 30, dtype=torch.float64))
    sign = torch.sign(
        torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    run([p], CAME([p], lr=1.0), 1, lambda *_: sign)
    expected = (1 - 0.9) / (0.9 * math.sqrt(1 - 0.9999))
    assert expected == pytest.approx(11.11, abs=5e-3)
    assert p.square().mean().sqrt().item() == pytest.approx(expected, rel=1e-9)


def test_constant_gradient_approaches_48_4_rates() -> None:
    p = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    optimizer = CAME([p], lr=1.0)
    steps = []
    for _ in range(400):
        before = p.detach().clone()
        run([p], optimizer, 1, lambda *_: torch.ones(4, 3))
        steps.append((p - before).abs().max().item())
    # residual EMA of a constant update: (1 - b3) sum of (b1^t)^2 = (1 - b3) b1^2 / (1 - b1^2), b3^t
    # still 1
    limit = 1 / math.sqrt((1 - 0.9999) * 0.81 / (1 - 0.81))
    assert limit == pytest.approx(48.4, abs=0.05)
    assert max(steps) == pytest.approx(limit, rel=0.02)


def test_fine_tuning_runs_hot_against_adam() -> None:
    """The update over the rate is about 20, 10 and 6.9 times Adam's at steps 25, 125 and 250 (2.3
    with b3 0.999)."""

    def ratio(beta3: float) -> dict[int, float]:
        noisy, adam = (nn.Parameter(torch.zeros(64, 48)) for _ in range(2))
        pair = CAME([noisy], lr=1.0, betas=(0.9, 0.999, beta3)), torch.optim.Adam([adam], lr=1.0)
        generator = torch.Generator().manual_seed(0)
        found = {}
        for step in range(1, 251):
            noisy.grad = adam.grad = torch.randn(64, 48, generator=generator)
            before = noisy.detach().clone(), adam.detach().clone()
            for optimizer in pair:
                optimizer.step()
            found[step] = ((noisy - before[0]).norm() / (adam - before[1]).norm()).item()
        return found

    hot = ratio(0.9999)
    assert hot[25] == pytest.approx(20, rel=0.1)
    assert hot[125] == pytest.approx(10, rel=0.15)
    assert hot[250] == pytest.approx(6.9, rel=0.1)
    assert ratio(0.999)[250] == pytest.approx(2.3, rel=0.1)


@pytest.mark.parametrize("block", [0, 12])
def test_rows_with_zero_gradient_do_not_move(block: int) -> None:
    p = parameters([(6, 4)], torch.float32)[0]
    start = p.detach().clone()
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1])[:, None]
    run(
        [p],
        CAME([p], lr=0.1, block=block),
        20,
        lambda s, p, g: torch.randn(6, 4, generator=g) * mask,
    )
    assert torch.equal(p[[1, 4]], start[[1, 4]])
    assert (p[[0, 2, 3, 5]] != start[[0, 2, 3, 5]]).all()


# ------------------------------------------------------------------ state


def _meta(name: str) -> tuple[nn.Module, int, int]:
    """A model on the meta device and the bytes of CAME's and AdamW's states that the specification
    states."""
    small = {
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "num_labels": 2,
        "max_position_embeddings": 514,
    }
    with torch.device("meta"):
        if name == "bert-large":
            wide = dict(
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
            )
            return (
                AutoModelForPreTraining.from_config(AutoConfig.for_model("bert", **wide)),
                1_350_181_840,
                2_689_808_864,
            )
        if name == "gpt2-medium":
            config = AutoConfig.for_model("gpt2", n_embd=1024, n_layer=24, n_head=16)
            return GPT2LMHeadModel(config), 1_424_151_176, 2_838_585_344
        if name == "roberta-base":
            config = AutoConfig.for_model("roberta", vocab_size=50265, **small)
            return AutoModelForSequenceClassification.from_config(config), 500_847_360, 997_177_360
        config = AutoConfig.for_model("xlm-roberta", vocab_size=250_002, **small)
        return AutoModelForSequenceClassification.from_config(config), 1_116_037_320, 2_224_361_488


@pytest.mark.parametrize("name", ["bert-large", "gpt2-medium", "roberta-base", "xlm-r-base"])
def test_state_bytes_equal_the_formula(name: str) -> None:
    model, expected, adam = _meta(name)
    params = list(model.parameters())
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer = CAME(params, lr=1e-3, block=2**40)
    optimizer.step()
    held = sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values())
    formula = sum(
        4 * p.numel() + 8 * (p.shape[0] + p.shape[1]) if p.dim() == 2 else 8 * p.numel()
        for p in params
    )
    assert held == formula == expected
    assert 8 * sum(p.numel() for p in params) == adam
    assert held / adam == pytest.approx(0.5, abs=0.005)


def test_state_keys_and_shapes() -> None:
    params = parameters([(7,), (5, 3), (2, 5, 3)])
    optimizer = CAME(params, lr=1e-3)
    run(params, optimizer, 1)
    shapes = [{k: tuple(v.shape) for k, v in optimizer.state[p].items()} for p in params]
    assert shapes[0] == {"exp_avg": (7,), "exp_avg_sq": (7,)}
    for p, found in zip(params[1:], shapes[1:], strict=True):
        row, col = tuple(p.shape[:-1]), (*p.shape[:-2], p.shape[-1])
        assert found == {
            "exp_avg": tuple(p.shape),
            "exp_avg_sq_row": row,
            "exp_avg_res_row": row,
            "exp_avg_sq_col": col,
            "exp_avg_res_col": col,
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [0, 8])
def test_resume_is_bit_exact(dtype: torch.dtype, block: int, tmp_path: Path) -> None:
    straight, resumed = parameters(SHAPES, dtype), parameters(SHAPES, dtype)
    optimizer = CAME(straight, lr=1e-2, block=block)
    run(straight, optimizer, 5)
    torch.save([optimizer.state_dict(), straight], tmp_path / "checkpoint.pt")
    expected = run(straight, optimizer, 5, seed=2)

    state, weights = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    for p, w in zip(resumed, weights, strict=True):
        p.data.copy_(w)
    second = CAME(resumed, lr=1e-2, block=block)
    second.load_state_dict(state)
    states = [t for s in second.state.values() for t in s.values()]
    assert {t.dtype for t in states} == {torch.float32}
    found = run(resumed, second, 5, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_loaded_state_is_not_shared() -> None:
    first, second = parameters([(4, 3)]), parameters([(4, 3)])
    a, b = CAME(first, lr=1e-2), CAME(second, lr=1e-2)
    run(first, a, 2)
    b.load_state_dict(a.state_dict())
    before = a.state[first[0]]["exp_avg"].clone()
    run(second, b, 1)
    assert torch.equal(a.state[first[0]]["exp_avg"], before)


def test_deepcopy_of_weights_and_optimizer_continues_alike() -> None:
    params = parameters([(4, 3), (3,)])
    optimizer = CAME(params, lr=1e-2)
    run(params, optimizer, 2)
    twins, copied = copy.deepcopy((params, optimizer))
    close(run(params, optimizer, 2), run(twins, copied, 2), 0.0)


@pytest.mark.parametrize(("cls", "low", "high"), [(CAME, 0.0, 0.05), (Reference, 2.9, 3.1)])
def test_transient_of_a_step_is_under_5_percent_of_the_tensor(
    cls: type, low: float, high: float
) -> None:
    p = parameters([(1024, 512)], torch.float32)[0]
    optimizer = cls([p], lr=1e-3, **({"block": 4096} if cls is CAME else {}))
    run([p], optimizer, 1)
    meter = TensorMeter()
    with meter:
        meter.track([p], "weights")
        meter.track([p.grad], "gradients")
        meter.track([t for t in optimizer.state[p].values() if isinstance(t, Tensor)], "optimizer")
        meter.mark("optimizer")
        optimizer.step()
    assert low < meter.result().by_kind["temporaries"] / p.nbytes < high


# ------------------------------------------------------------------ bf16


@pytest.mark.parametrize("shape", [(64, 32), (256,)])
@pytest.mark.parametrize("block", [0, 300])
def test_stochastic_rounding_moves_bf16_weights_that_stall(
    shape: tuple[int, ...], block: int
) -> None:
    def distance(dtype: torch.dtype, stochastic: bool) -> float:
        p = nn.Parameter(torch.ones(shape).to(dtype))
        optimizer = CAME([p], lr=1e-6, block=block, stochastic_rounding=stochastic)
        torch.manual_seed(0)
        run([p], optimizer, 100, lambda *_: torch.ones(shape))
        return (1 - p.double()).mean().item()

    exact = distance(torch.float32, False)
    assert distance(torch.bfloat16, False) < 0.01 * exact
    assert distance(torch.bfloat16, True) == pytest.approx(exact, rel=0.25)
    assert exact == distance(torch.float32, True)


@pytest.mark.parametrize("block", [0, 8])
def test_bf16_rounds_the_fp32_step_to_nearest(block: int) -> None:
    low, exact = (
        parameters([(5, 3), (7,)], torch.bfloat16),
        parameters([(5, 3), (7,)], torch.bfloat16),
    )
    exact = [nn.Parameter(p.float()) for p in exact]
    # one line of arithmetic
    grads = lambda s, p, g: torch.randn(p.shape, generator=g).bfloat16()  # noqa: E731
    a = run(low, CAME(low, lr=1e-2, weight_decay=0.1, block=block), 1, grads)
    b = run(exact, CAME(exact, lr=1e-2, weight_decay=0.1, block=block), 1, grads)
    assert all(torch.equal(x, y.bfloat16()) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------ a pruned matrix


def pruned_and_full(
    gradient_scale: float, full_matrix: bool, block: int = 0, steps: int = 30
) -> tuple[Tensor, Tensor]:
    """The used rows after `steps`, in the run on them alone and in the run on the whole matrix."""
    rows, size = torch.tensor([1, 2, 5, 8, 20]), (40, 6)
    full = parameters([size])[0]
    part = nn.Parameter(full.detach()[rows].clone())  # the mark of a part
    part.full_numel = full.numel()  # type: ignore[attr-defined]
    a = CAME([part], lr=1e-2, block=block, full_matrix=full_matrix)
    b = CAME([full], lr=1e-2, block=block)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        g = torch.randn(5, 6, generator=generator, dtype=torch.float64) * gradient_scale
        g[step % 5] = 0  # a used token that this batch lacks
        g[(step + 1) % 5] *= 10.0 ** (step % 3)  # surprises, which the clip is for
        part.grad, full.grad = g, torch.zeros(size, dtype=torch.float64).index_copy(0, rows, g)
        a.step(), b.step()
    return part.detach(), full.detach()[rows]


@pytest.mark.parametrize("block", [0, 13])
@pytest.mark.parametrize(
    "scale", [1.0, 1e-6, 1e-15, 1e-17]
)  # at 1e-15 the unused rows' eps decide the means
def test_pruned_rows_step_as_in_the_whole_matrix(scale: float, block: int) -> None:
    part, full = pruned_and_full(scale, True, block)
    torch.testing.assert_close(part, full, rtol=1e-9, atol=1e-9)


def test_without_the_setting_pruning_changes_the_step() -> None:
    part, full = pruned_and_full(1.0, False)
    assert not torch.allclose(part, full, rtol=1e-3)


# ------------------------------------------------------------------ errors and settings


def test_no_learning_rate_is_an_error() -> None:
    with pytest.raises(BadInput, match="learning rate"):
        CAME(parameters([(2, 2)]))
    CAME([{"params": parameters([(2, 2)]), "lr": 1e-3}])


@pytest.mark.parametrize(
    "wrong", [{"betas": (0.9, 1.0, 0.9)}, {"clip": 0.0}, {"eps": (-1.0, 0.0)}, {"lr": -1.0}]
)
def test_bad_settings_are_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="CAME needs"):
        CAME(parameters([(2, 2)]), **{"lr": 1e-3, **wrong})


def test_sparse_gradients_are_an_error() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(BadInput, match="sparse"):
        CAME(embedding.parameters(), lr=1e-3).step()


def test_complex_parameters_are_an_error() -> None:
    p = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    p.grad = torch.zeros_like(p)
    with pytest.raises(BadInput, match="complex"):
        CAME([p], lr=1e-3).step()


def test_closure_is_evaluated_with_gradients() -> None:
    p = nn.Parameter(torch.ones(3, 2))

    def closure() -> Tensor:
        loss = p.square().sum()
        p.grad = torch.autograd.grad(loss, p)[0]
        return loss

    assert CAME([p], lr=1e-3).step(closure).item() == 6.0
    assert (p < 1).all()


def test_plugin_scales_every_rate() -> None:
    from leantune.spec.stacks import parse_stack

    (part,) = [x for x in parse_stack("came@b3_999", "classification") if x.slot == "optimizer"]
    groups = [
        {"params": parameters([(2, 2)]), "lr": 1e-3},
        {"params": parameters([(3,)]), "lr": 1e-2},
    ]
    optimizer = load_method("came")({**part.params, "lr_scale": 0.5}).optimizer(
        groups, SimpleNamespace()
    )
    assert [g["lr"] for g in optimizer.param_groups] == [5e-4, 5e-3]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999, 0.999)
    assert groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("shape", [(300, 64), (3, 40, 64)])
def test_predicted_memory_of_the_blocked_step_is_the_real_one(shape: tuple[int, ...]) -> None:
    """On fake tensors one tensor of a shape and two of its blocks stand for all: the peak must be
    the same."""
    from leantune.meter.fake_cuda import QuickFakeMode
    from leantune.meter.tensors import TensorMeter

    def peak() -> int:
        params = [nn.Parameter(torch.zeros(shape)) for _ in range(3)]
        optimizer = CAME(params, lr=1e-3, block=1024)
        meter = TensorMeter()
        with meter:
            meter.track(params, "weights")
            for _ in range(2):
                for p in params:
                    p.grad = torch.ones(shape)
                optimizer.step()
        return meter.result().peak_bytes

    real = peak()
    with QuickFakeMode():
        assert peak() == real
