"""A frozen linear map in 4-bit NormalFloat with double quantisation (arXiv 2305.14314, sections 3 and equation 5)."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import QuantState, create_dynamic_map, dequantize_4bit, quantize_4bit, quantize_blockwise
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK, OUTER_BLOCK = 64, 256  # weights that share a scale, scales that share a scale of their own
with torch.device("cpu"):  # the values of 8-bit scales; bitsandbytes would make them on the device of the first use
    CODE = create_dynamic_map()


class NF4Linear(nn.Linear):
    """y = x W^T + b with W [out, in] kept in 4 bits, and made anew for each product, forward and backward.

    The tensors are bitsandbytes'. They are plain ones here and not its `Params4bit`, so that the module also lives on
    the meta device and in a memory prediction.
    """

    def __init__(self, linear: nn.Linear, compute: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute, self.plain = compute, linear.weight.dtype
        packed, state = quantize_4bit(linear.weight.detach(), blocksize=BLOCK, quant_type="nf4")
        offset = state.absmax.mean()
        scales, outer = quantize_blockwise(state.absmax - offset, code=CODE, blocksize=OUTER_BLOCK)
        self.packed = nn.Parameter(packed, requires_grad=False)  # uint8 [out * in / 2, 1]
        self.register_parameter("bias", linear.bias)
        self.register_buffer("scales", scales)  # uint8 [out * in / 64]
        self.register_buffer("outer_scales", outer.absmax)
        self.register_buffer("outer_code", outer.code)
        self.register_buffer("offset", offset)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """W [out, in]."""
        outer = QuantState(absmax=self.outer_scales, code=self.outer_code, blocksize=OUTER_BLOCK, dtype=torch.float32)
        state = QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=self.offset,
            state2=outer,
        )
        return dequantize_4bit(self.packed.detach(), state)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W in the dtype that it had: for code that looks at a linear's weight."""
        return self.dequantized(self.plain)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out], in x's dtype."""
        return _Product.apply(x, self).to(x.dtype)  # type: ignore[no-untyped-call]

    def linear(self) -> nn.Linear:
        """A plain linear map with the same values."""
        weight = self.weight
        made = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device=weight.device, dtype=weight.dtype
        )
        made.weight = nn.Parameter(weight)
        made.bias = self.bias
        return made


class _Product(torch.autograd.Function):
    """x W^T + b that keeps neither x nor W for the backward pass: b and W are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        bias = None if layer.bias is None else layer.bias.to(layer.compute)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(layer.compute), layer.dequantized(layer.compute), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        layer: NF4Linear = ctx.layer
        return (gradient.to(layer.compute) @ layer.dequantized(layer.compute)).to(ctx.dtype), None
