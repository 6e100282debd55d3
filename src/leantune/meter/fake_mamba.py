"""What Mamba's fused kernel allocates, for fake tensors: its saved tensors and temporaries, and no
values.

Follows `MambaInnerFn` of mamba-ssm (state-spaces/mamba, ops/selective_scan_interface.py and
csrc/selective_scan): the forward pass keeps its input, the projection x_dbl, B, C, the scan's
output and its chunk states; the backward pass recomputes the convolution and delta. Without the
kernel transformers runs a scan token by token, whose memory is another. `kernel` stands in place of
transformers' `mamba_inner_fn` while a fake step runs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2048  # tokens between two states that the scan keeps
MODELLING = "transformers.models.mamba.modeling_mamba"


@contextlib.contextmanager
def kernel() -> Iterator[None]:
    """Let transformers' Mamba train through the simulated kernel."""
    module: Any = sys.modules.get(MODELLING)
    if module is None:  # no Mamba in this process
        yield
        return
    before = module.mamba_inner_fn
    module.mamba_inner_fn = _inner
    try:
        yield
    finally:
        module.mamba_inner_fn = before


def _inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    out_proj: Tensor,
    out_bias: Tensor | None,
    A: Tensor,
    B: None,
    C: None,
    D: Tensor,
    delta_bias: Tensor,
    **settings: Any,
) -> Tensor:
    return _Inner.apply(
        xz, conv_weight, conv_bias, x_proj, dt_proj, out_proj, out_bias, A, D, delta_bias
    )  # type: ignore[no-untyped-call,no-any-return]


class _Inner(torch.autograd.Function):
    """xz: (batch, 2 x inner, length) with the gate in its second half; A: (inner, states) in fp32."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        xz: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        x_proj: Tensor,
        dt_proj: Tensor,
        out_proj: Tensor,
        out_bias: Tensor | None,
        A: Tensor,
        D: Tensor,
        delta_bias: Tensor,
    ) -> Tensor:
        ctx.dtypes = (
            x_proj.dtype,
            dt_proj.dtype,
            out_proj.dtype,
            None if out_bias is None else out_bias.dtype,
        )
        if torch.is_autocast_enabled("cpu"):
            low = torch.get_autocast_dtype("cpu")
            x_proj, dt_proj, out_proj = x_proj.to(low), dt_proj.to(low), out_proj.to(low)
            out_bias = None if out_bias is None else out_bias.to(low)
        xz = xz.contiguous()
        x, z = xz.chunk(2, dim=1)
        batch, inner, length = x.shape
        rank, states = dt_proj.size(1), A.size(1)
        convolved = torch.empty_like(x)
        x_dbl = F.linear(convolved.transpose(1, 2).reshape(batch * length, inner), x_proj)
        delta = (dt_proj @ x_dbl[:, :rank].t()).view(inner, batch, length).transpose(0, 1)
        B, C = (
            part.view(batch, length, 1, states).permute(0, 2, 3, 1).contiguous()
            for part in (x_dbl[:, rank : rank + states], x_dbl[:, -states:])
        )
        gated, out = torch.empty_like(z), torch.empty_like(delta)
        chunks = torch.empty(
            batch, inner, -(-length // CHUNK), 2 * states, dtype=A.dtype, device=A.device
        )
        ctx.save_for_backward(
            xz,
            conv_weight,
            conv_bias,
            x_dbl,
            x_proj,
            dt_proj,
            out_proj,
            A,
            B,
            C,
            D,
            delta_bias,
            chunks,
            out,
        )
        return F.linear(gated.transpose(1, 2), out_proj, out_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (
            xz,
            conv_weight,
            conv_bias,
            x_dbl,
            x_proj,
            dt_proj,
            out_proj,
            A,
            B,
            C,
            D,
            delta_bias,
            _,
            out,
        ) = ctx.saved_tensors
        x, _ = xz.chunk(2, dim=1)
        batch, inner, length = x.shape
        rank, states = dt_proj.size(1), A.size(1)
        gradient = gradient.contiguous()
        convolved = torch.empty_like(x)
        delta = (dt_proj @ x_dbl[:, :rank].t()).view(inner, batch, length).transpose(0, 1)
        d_xz = torch.empty_like(xz)  # the kernels write both halves in place
        flat = gradient.permute(2, 0, 1).reshape(gradient.size(2), batch * length)
        d_out = (out_proj.t() @ flat).view(inner, batch, length).transpose(0, 1)
        gated = torch.empty_like(out)
        d_convolved, d_delta = torch.empty_like(convolved), torch.empty_like(delta)
        d_A, d_D, d_bias = torch.zeros_like(A), torch.zeros_like(D), torch.zeros_like(delta_bias)
        d_B, d_C = (torch.zeros_like(t, dtype=torch.float32).to(t.dtype) for t in (B, C))
        del d_out
        d_out_proj = flat @ gated.transpose(0, 1).reshape(inner, batch * length).t()
        d_out_bias = None if ctx.dtypes[3] is None else gradient.sum(dim=(0, 1)).to(ctx.dtypes[3])
        d_x_dbl = torch.empty_like(x_dbl)
        d_x_dbl[:, rank : rank + states] = d_B.permute(0, 3, 1, 2).reshape(batch * length, states)
        d_x_dbl[:, -states:] = d_C.permute(0, 3, 1, 2).reshape(batch * length, states)
        flat_delta = d_delta.transpose(0, 1).reshape(inner, batch * length)
        d_dt_proj = flat_delta @ x_dbl[:, :rank]
        d_x_dbl[:, :rank] = flat_delta.t() @ dt_proj
        d_flat = d_convolved.transpose(0, 1).reshape(inner, batch * length)
        d_x_proj = d_x_dbl.t() @ convolved.transpose(1, 2).reshape(batch * length, inner)
        d_flat.addmm_(x_proj.t(), d_x_dbl.t())
        d_conv = torch.zeros_like(conv_weight, dtype=torch.float32).to(conv_weight.dtype)
        d_conv_bias = (
            None
            if conv_bias is None
            else torch.zeros_like(conv_bias, dtype=torch.float32).to(conv_bias.dtype)
        )
        types = ctx.dtypes
        return (
            d_xz,
            d_conv,
            d_conv_bias,
            d_x_proj.to(types[0]),
            d_dt_proj.to(types[1]),
            d_out_proj.to(types[2]),
            d_out_bias,
            d_A,
            d_D,
            d_bias,
        )
