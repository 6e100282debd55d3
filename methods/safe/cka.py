"""Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, equation 5 with a linear kernel)."""

from __future__ import annotations

from torch import Tensor


def cka(x: Tensor, y: Tensor) -> float:
    """Similarity in [0, 1] of two representations [tokens, d]; 1 where only rotation, shift or scale differ.

    Biased upwards where tokens are few: about d / (tokens + d) for independent ones.
    """
    x = x.float() - x.float().mean(0)  # without centring a shared mean makes anything look alike
    y = y.float() - y.float().mean(0)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))
