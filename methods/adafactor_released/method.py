"""The Adafactor that CAME was compared with, as its authors released it (their CAME/adafactor.py, MIT)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from leantune.api import Context, Data, Groups, Method, scale_rates


class AliasedAdafactor(torch.optim.Optimizer):
    """Adafactor with a constant beta2 and the released code's aliasing: `update` is `exp_avg`, so scaling it by the
    rate shrinks the momentum at each step. A constant update u then moves by (1 - beta1) lr u, a tenth of what it
    should.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad.float() if p.dtype in (torch.bfloat16, torch.float16) else p.grad, group)
        return loss

    def _step(self, p: Tensor, grad: Tensor, group: dict) -> None:
        state, beta2 = self.state[p], group["beta2"]
        if not state:
            state["exp_avg"] = torch.zeros_like(grad)
            if p.dim() >= 2:
                state["exp_avg_sq_row"] = grad.new_zeros(p.shape[:-1])
                state["exp_avg_sq_col"] = grad.new_zeros((*p.shape[:-2], p.shape[-1]))
            else:
                state["exp_avg_sq"] = torch.zeros_like(grad)
        square = grad.square() + group["eps"]
        if p.dim() >= 2:
            row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            row.mul_(beta2).add_(square.mean(-1), alpha=1.0 - beta2)
            col.mul_(beta2).add_(square.mean(-2), alpha=1.0 - beta2)
            update = (row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1) * col.rsqrt().unsqueeze(-2)
        else:
            update = state["exp_avg_sq"].mul_(beta2).add_(square, alpha=1.0 - beta2).rsqrt()
        update.mul_(grad)
        rms = update.norm() / update.numel() ** 0.5
        update.div_((rms / group["clip"]).clamp(min=1.0))
        state["exp_avg"].mul_(group["beta1"]).add_(update, alpha=1.0 - group["beta1"])
        update = state["exp_avg"].mul_(group["lr"])  # the released slip: no copy
        p.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(update)


class AdafactorReleased(Method):
    """The baseline of the CAME paper's figures; `adafactor` is the one to use."""

    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        return model, data

    def optimizer(self, groups: Groups, ctx: Context) -> torch.optim.Optimizer:
        settings = {k: v for k, v in self.params.items() if k != "lr_scale"}
        return AliasedAdafactor(scale_rates(groups, self.params["lr_scale"]), settings)
