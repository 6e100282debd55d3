"""Scale tuning: y = s * (x W^T + b) with s [out] trained, as one of the vectors of IA3 (arXiv
2205.05638)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leantune.api import Context, Data, Method, freeze_body
from leantune.architectures import family, linears


class ScaledLinear(nn.Module):
    """A frozen linear map [out, in] whose outputs are scaled."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(torch.ones_like(base.weight[:, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The same map as a plain one."""
        self.base.weight.mul_(self.scale[:, None])
        if self.base.bias is not None:
            self.base.bias.mul_(self.scale)
        return self.base


class ScaleTuning(Method):
    def attach(
        self, model: nn.Module, data: Data | None, ctx: Context
    ) -> tuple[nn.Module, Data | None]:
        freeze_body(model)
        for parent, attribute, linear in linears(model, ctx.family, family(ctx.family).linears):
            setattr(parent, attribute, ScaledLinear(linear))
        return model, data

    def export(self, model: nn.Module, ctx: Context) -> nn.Module:
        for name, module in list(model.named_modules()):
            if isinstance(module, ScaledLinear):
                model.set_submodule(name, module.merged())
        return model
