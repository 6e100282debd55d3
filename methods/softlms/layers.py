"""SoftLMs' layer while thresholds train, and the plain modules it becomes."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from leantune.modules import FactoredLinear
from leantune.svd import SVD, weight_of


def soft(S: Tensor, alpha: Tensor) -> Tensor:
    """The textbook soft threshold, relu(S - alpha)."""
    return F.relu(S - alpha)


def straight_through(S: Tensor, alpha: Tensor, temperature: Tensor) -> Tensor:
    """S * 1[S > alpha]; the indicator's gradient is that of sigmoid((S - alpha) / temperature)."""
    gate = torch.sigmoid((S - alpha) / temperature)
    return S * (gate + ((alpha < S).to(S.dtype) - gate).detach())


class SoftLinear(nn.Module):
    """y = ((x Vh^T) * s) U^T + b with s = threshold(S, alpha * S_0): x [..., in], y [..., out], k = min(out, in).

    Trainable: `alpha`, a scalar in units of the largest singular value, and S [k], since the soft threshold
    shrinks every value that it keeps. U [out, k] and Vh [k, in] are frozen.
    """

    scale: Tensor

    def __init__(self, base: nn.Module, svd: SVD, threshold: str, alpha: float, temperature: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.temperature = temperature
        self.conv1d = isinstance(base, Conv1D)
        dtype = weight_of(base).dtype
        self.U = nn.Parameter(svd.U.to(dtype), requires_grad=False)
        self.Vh = nn.Parameter(svd.Vh.to(dtype), requires_grad=False)
        self.S = nn.Parameter(svd.S.clone())
        self.alpha = nn.Parameter(torch.full_like(svd.S[0], alpha))
        self.register_buffer("scale", svd.S[0].clone(), persistent=False)
        self.bias = base.bias

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def weight(self) -> Tensor:
        """The soft map multiplied out, [out, in]."""
        return (self.U * self.values().to(self.U.dtype)) @ self.Vh

    def values(self) -> Tensor:
        """s [k], the thresholded singular values."""
        alpha = self.alpha * self.scale
        if self.threshold == "ste":
            return straight_through(self.S, alpha, self.temperature * self.scale)
        return soft(self.S, alpha)

    def kept(self) -> Tensor:
        """How many values the threshold keeps, a 0-dim integer tensor."""
        return (self.alpha * self.scale < self.S).sum()

    def forward(self, x: Tensor) -> Tensor:
        projected = F.linear(x, self.Vh)
        return F.linear(projected * self.values().to(projected.dtype), self.U, self.bias)

    @torch.no_grad()
    def set_rank(self, rank: int) -> None:
        """Move the threshold as little as needed for it to keep exactly `rank` values, or all that are positive."""
        S = self.S.sort(descending=True).values
        low = S[rank].clamp(min=0) if rank < len(S) else torch.zeros_like(S[0])
        alpha = self.alpha * self.scale
        if not low <= alpha < S[rank - 1]:
            # Rounded up and back, low / scale * scale may fall below low and keep one value more.
            moved = low / self.scale
            self.alpha.copy_(torch.nextafter(moved, moved + 1) if moved * self.scale < low else moved)

    @torch.no_grad()
    def exported(self) -> nn.Module:
        """The same map as a FactoredLinear, or as the original kind of dense layer where that is not larger."""
        s, order = self.values().sort(descending=True)
        rank = int(self.kept())
        if not saves(rank, *self.shape):
            return dense_module(self.weight.detach(), self.bias, self.conv1d)
        index, root = order[:rank], s[:rank].sqrt().to(self.U.dtype)
        return factored_module(self.U[:, index] * root, root[:, None] * self.Vh[index], self.bias)


def saves(rank: int, out_features: int, in_features: int) -> bool:
    """Whether two factors of this rank have fewer parameters than the dense matrix."""
    return rank * (out_features + in_features) < out_features * in_features


def truncated_factors(weight: Tensor, U: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(up [out, r], down [r, in]) with up @ down = U_r U_r^T W, balanced so that both have equal norms per rank.

    For U of W's own SVD this is the truncated SVD with sqrt(S) on either side.
    """
    up = U[:, :rank]
    down = up.T @ weight.to(up.dtype)
    root = down.norm(dim=1).clamp(min=math.sqrt(torch.finfo(up.dtype).tiny)).sqrt()
    return up * root, down / root[:, None]


def factored_module(up: Tensor, down: Tensor, bias: Tensor | None) -> FactoredLinear:
    """A trainable FactoredLinear that holds these tensors."""
    rank, in_features = down.shape
    module = FactoredLinear(in_features, up.shape[0], rank, bias=bias is not None, device="meta")
    module.up.weight, module.down.weight = nn.Parameter(up.contiguous()), nn.Parameter(down.contiguous())
    if bias is not None:
        module.up.bias = nn.Parameter(bias.detach())
    return module


def dense_module(weight: Tensor, bias: Tensor | None, conv1d: bool) -> nn.Module:
    """A trainable Conv1D or nn.Linear with this weight [out, in]."""
    out_features, in_features = weight.shape
    with torch.device("meta"):
        module = Conv1D(out_features, in_features) if conv1d else nn.Linear(in_features, out_features, bias is not None)
    module.weight = nn.Parameter((weight.T if conv1d else weight).contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach())
    return module
