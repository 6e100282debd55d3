"""What SVFit keeps for backward, in bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leantune.svd import decompose, weight_of
from leantune.training.stack import load_method

load_method("svfit")
from leantune_plugins.svfit.method import SVFitLinear  # noqa: E402  (importable once loaded)


def adapted(base: nn.Module, rank: int, residual: bool = True) -> SVFitLinear:
    base.requires_grad_(False)
    return SVFitLinear(base, decompose(weight_of(base)), rank, residual)


class _TwoLow(nn.Module):
    """LoRA r=8 without dropout."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.A, self.B = (
            base,
            nn.Linear(384, 8, bias=False),
            nn.Linear(8, 384, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.B(self.A(x)) * 2.0


class _Materialised(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.inner = adapted(base, 384)

    def forward(self, x: Tensor) -> Tensor:
        f = self.inner
        return F.linear(x, f.weight + (f.U * (f.sigma - f.S)) @ f.Vh, f.bias)


@pytest.mark.parametrize(
    ("kind", "mebibytes"), [("lora", 6.25), (64, 2.0), (96, 3.0), (384, 12.0)], ids=str
)
def test_bytes_kept_for_backward(kind: str | int, mebibytes: float) -> None:
    """Query and value sharing x = 4096 x 384 fp32; parameters, vectors and other small tensors are
    not counted."""
    pair = [nn.Linear(384, 384).requires_grad_(False) for _ in range(2)]
    layers = [_TwoLow(b) if kind == "lora" else adapted(b, int(kind)) for b in pair]
    assert _saved_mebibytes(layers) == pytest.approx(mebibytes, abs=0.01)


def test_materialising_the_weight_keeps_the_input_too() -> None:
    """One layer that builds W + U diag(.) Vh: the input, 6 MiB, and a matrix of the weight's."""
    saved = _saved_mebibytes([_Materialised(nn.Linear(384, 384).requires_grad_(False))])
    assert saved == pytest.approx(6.0 + 384 * 384 * 4 / 2**20, abs=0.1)


def _saved_mebibytes(layers: list[nn.Module]) -> float:
    held = {
        t.untyped_storage().data_ptr()
        for layer in layers
        for t in (*layer.parameters(), *layer.buffers())
    }
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(4096, 384, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = [layer(x) for layer in layers]
    assert all(y.requires_grad for y in kept)
    return sum(storages.values()) / 2**20
