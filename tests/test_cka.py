"""Linear CKA, by which SAFE ranks its adapters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leantune.training.stack import load_method

load_method("safe")  # makes the plugin's own modules importable
from leantune_plugins.safe.cka import cka  # noqa: E402  the path is set above


def noise(tokens: int, width: int, seed: int) -> Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def test_cka_of_a_representation_with_itself_is_one() -> None:
    assert cka(noise(200, 16, 0), noise(200, 16, 0)) == pytest.approx(1, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-3, 3))
def test_cka_does_not_see_rotation_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    x = noise(100, 8, seed)
    y = x @ noise(8, 8, seed + 1) + noise(100, 8, seed + 2)
    rotation = torch.linalg.qr(noise(8, 8, seed + 3)).Q
    assert cka(x, scale * y @ rotation + shift) == pytest.approx(cka(x, y), rel=1e-3)


def test_cka_follows_its_formula() -> None:
    x, y = noise(50, 6, 0), noise(50, 6, 0) @ noise(6, 4, 1) + 2 * noise(50, 4, 2)
    k, l = (
        x @ x.T,
        y @ y.T,
    )  # the same number from the n x n kernels: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
    centre = torch.eye(50) - 1 / 50
    k, l = centre @ k @ centre, centre @ l @ centre
    expected = (k * l).sum() / ((k * k).sum() * (l * l).sum()).sqrt()
    assert cka(x, y) == pytest.approx(float(expected), rel=1e-5)
    assert 0.2 < cka(x, y) < 0.9


def test_cka_is_centred() -> None:
    """Independent data with one common mean looks alike where the mean is left in."""
    x, y = noise(4000, 8, 0) + 5, noise(4000, 8, 1) + 5
    uncentred = float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))
    assert uncentred > 0.9
    assert cka(x, y) < 0.02


def test_cka_is_biased_with_few_tokens() -> None:
    """0.25 for independent data at n = 200, d = 64; hence several probe tokens a dimension."""
    few = sum(cka(noise(200, 64, s), noise(200, 64, s + 99)) for s in range(5)) / 5
    many = cka(noise(20_000, 64, 0), noise(20_000, 64, 1))
    assert few == pytest.approx(0.25, abs=0.015)
    assert many < 0.005
