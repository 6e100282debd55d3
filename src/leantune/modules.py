"""The modules that an exported model may hold beside those of `transformers`, rebuilt from plain
data on load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from leantune.svd import weight_of

if TYPE_CHECKING:  # its import registers leantune.models.export, which needs this module
    from transformers.modeling_utils import PreTrainedModel


class FactoredLinear(nn.Module):
    """A linear map of rank r as two: y = (x D^T) U^T + b, `down` D [r, in] and `up` U [out, r] with
    the bias."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    @property
    def rank(self) -> int:
        return self.down.out_features

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # nn.Module says Tensor or Module
        return self.up.bias

    @property
    def weight(self) -> Tensor:
        """The map multiplied out, [out, in]: for code that looks at a linear's weight; nothing here
        uses it."""
        return self.up.weight @ self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        return self.up(self.down(x))

    @classmethod
    def like(cls, linear: nn.Module, rank: int) -> FactoredLinear:
        """An uninitialised map of rank r with the shape, bias, device and dtype of a Linear or
        Conv1D."""
        weight = weight_of(linear)
        out_features, in_features = weight.shape
        return cls(
            in_features,
            out_features,
            rank,
            bias=linear.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )


def factored_ranks(model: nn.Module) -> dict[str, int]:
    """Plain data from which `place_factored` rebuilds a model's factored linears: path to rank."""
    return {name: m.rank for name, m in model.named_modules() if isinstance(m, FactoredLinear)}


def place_factored(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put an uninitialised FactoredLinear of the given rank at every path, in place of the linear
    there."""
    for path, rank in ranks.items():
        model.set_submodule(path, FactoredLinear.like(model.get_submodule(path), rank))


class Adapter(nn.Module):
    """A module and a bottleneck behind it (arXiv 1902.00751, section 2.1): z = x +
    up(gelu(down(x))), x = base(.).

    It stands where `base`, a block's output map or the dropout after it, stood, so the bottleneck
    comes before the residual addition and LayerNorm. `down` is [h, d], `up` is [d, h], both with a
    bias: 2 d h + h + d parameters.
    """

    def __init__(
        self,
        base: nn.Module,
        width: int,
        bottleneck: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(width, bottleneck, device=device, dtype=dtype)
        self.up = nn.Linear(bottleneck, width, device=device, dtype=dtype)
        for linear in (self.down, self.up):
            # near the identity: the paper's deviation, cut at two of them
            nn.init.trunc_normal_(linear.weight, std=1e-3, a=-2e-3, b=2e-3)
            nn.init.zeros_(linear.bias)

    @property
    def weight(self) -> Tensor:
        """The wrapped map's own weight: some models read it."""
        return self.base.weight  # type: ignore[return-value]  # nn.Module says Tensor or Module

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]  # nn.Module says Tensor or Module

    def own_parameters(self) -> list[nn.Parameter]:
        """What the adapter adds, without what it wraps."""
        return [*self.down.parameters(), *self.up.parameters()]

    def bottlenecked(self, x: Tensor) -> Tensor:
        """The adapter alone: x [..., d], what `base` gives, to z [..., d]."""
        return x + self.up(nn.functional.gelu(self.down(x)))

    def forward(self, x: Tensor) -> Tensor | tuple[Any, ...]:
        """What `base` takes to z [..., d]; of several values that it gives, the first is meant."""
        given = self.base(x)
        if isinstance(given, tuple):  # a mixture of experts may give its routing too
            return (self.bottlenecked(given[0]), *given[1:])
        return self.bottlenecked(given)


def adapters(model: nn.Module) -> list[Adapter]:
    """The model's adapters, lowest first; within a block attention before feed-forward."""
    return [m for m in model.modules() if isinstance(m, Adapter)]


def adapter_bottlenecks(model: nn.Module) -> dict[str, int]:
    """Plain data from which `place_adapters` rebuilds the model's adapters: path to bottleneck
    size."""
    return {
        name: m.down.out_features for name, m in model.named_modules() if isinstance(m, Adapter)
    }


def place_adapters(model: PreTrainedModel, bottlenecks: Mapping[str, int]) -> None:
    """Put a fresh Adapter of the given bottleneck around the module at every path."""
    hidden = model.config.get_text_config().hidden_size
    for path, bottleneck in bottlenecks.items():
        base = model.get_submodule(path)
        # MobileBERT's blocks are narrower than its hidden states; a dropout has no width of its own
        width = weight_of(base).shape[0] if hasattr(base, "weight") else hidden
        model.set_submodule(path, Adapter(base, width, bottleneck, model.device, model.dtype))
