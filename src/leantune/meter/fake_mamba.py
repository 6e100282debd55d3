"""What Mamba's fused kernel allocates, for fake tensors: its saved tensors and temporaries, and no
values.

Follows `MambaInnerFn` of mamba-ssm (state-spaces/mamba, ops/selective_scan_interface.py and
csrc/selective_scan): the forward pass keeps its input, the projection x_dbl, B, C, the scan's
output and its chunk states; the backward pass recomputes the convolution and delta. Without the
kernel transformers runs a scan token by token, whose memory is another. `fake_cuda.cuda_path` puts
`kernel` in place of transformers' `mamba_inner_fn` while a fake step runs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2048  # tokens between two states that the scan keeps
MODELLING = "transformers.models.mamba.modeling_mamba"


def kernel(*given: Any, delta_bias: Tensor, **settings: Any) -> Tensor:
    """What transformers' `mamba_inner_fn` is replaced by; B and C are None there, since they depend
    on the input."""
    *before, A, _, _, D = given
    out: Tensor = _Inner.apply(*before, A, D, delta_bias)
    return out


class _Inner(torch.autograd.Function):
    """xz: (batch, 2 x inner, length) with the gate in its second half; A: (inner, states) in
    fp32."""

    @staticmethod
    def forward(  # type: ignore[override]  # of any arguments
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
        projections = (x_proj, dt_proj, out_proj, out_bias)
        ctx.dtypes = [None if t is None else t.dtype for t in projections]
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
        delta = _delta(dt_proj, x_dbl, batch)
        B, C = (
            part.view(batch, length, 1, states).permute(0, 2, 3, 1).contiguous()
            for part in (x_dbl[:, rank : rank + states], x_dbl[:, -states:])
        )
        gated, out = torch.empty_like(z), torch.empty_like(delta)
        chunks = torch.empty(
            batch, inner, -(-length // CHUNK), 2 * states, dtype=A.dtype, device=A.device
        )
        kept = (x_dbl, x_proj, dt_proj, out_proj, A, B, C, D, delta_bias, chunks, out)
        ctx.save_for_backward(xz, conv_weight, conv_bias, *kept)
        return F.linear(gated.transpose(1, 2), out_proj, out_bias)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]  # of any arguments
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        xz, conv_weight, conv_bias, x_dbl, x_proj, dt_proj, out_proj, *others = ctx.saved_tensors
        A, B, C, D, delta_bias, _, out = others
        x, _ = xz.chunk(2, dim=1)
        batch, inner, length = x.shape
        rank, states = dt_proj.size(1), A.size(1)
        gradient = gradient.contiguous()
        convolved = torch.empty_like(x)
        delta = _delta(dt_proj, x_dbl, batch)
        d_xz = torch.empty_like(xz)  # the kernels write both halves in place
        flat = gradient.permute(2, 0, 1).reshape(gradient.size(2), batch * length)
        d_out = (out_proj.t() @ flat).view(inner, batch, length).transpose(0, 1)
        gated = torch.empty_like(out)
        d_convolved, d_delta = torch.empty_like(convolved), torch.empty_like(delta)
        d_A, d_D, d_bias = torch.zeros_like(A), torch.zeros_like(D), torch.zeros_like(delta_bias)
        d_B, d_C = _summed(B), _summed(C)
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
        d_conv = _summed(conv_weight)
        d_conv_bias = None if conv_bias is None else _summed(conv_bias)
        found = zip((d_x_proj, d_dt_proj, d_out_proj), ctx.dtypes[:3], strict=True)
        projections = [t.to(dtype) for t, dtype in found]
        return d_xz, d_conv, d_conv_bias, *projections, d_out_bias, d_A, d_D, d_bias


def _delta(dt_proj: Tensor, x_dbl: Tensor, batch: int) -> Tensor:
    """(batch, inner, length), from the first columns of the projection."""
    flat = dt_proj @ x_dbl[:, : dt_proj.size(1)].t()
    return flat.view(dt_proj.size(0), batch, -1).transpose(0, 1)


def _summed(like: Tensor) -> Tensor:
    """A gradient that the kernel sums in float32 and then casts."""
    return torch.zeros_like(like, dtype=torch.float32).to(like.dtype)
