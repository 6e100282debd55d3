"""AdaLomo (arXiv 2310.10195, algorithm 1): LOMO with a factored second moment and grouped normalisation."""

from __future__ import annotations

from typing import Any

import torch
from leantune_plugins.lomo.method import InBackward, Lomo
from torch import Tensor


class AdaptiveInBackward(InBackward):
    """u = g / sqrt(v), v from row and column means of g^2; then u / max(1, RMS(u) / clip) times max(eps2, RMS(p))."""

    def update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        grad, state = grad.float(), self.state[p]
        weight = group["step"] ** group["decay_rate"]  # 1 - beta2
        update = grad.square().add_(group["eps1"])
        if p.dim() < 2:
            if not state:
                state["square"] = torch.zeros_like(update)
            torch.rsqrt(state["square"].lerp_(update, weight), out=update)
        else:
            if not state:
                state["row"] = update.new_zeros(update.shape[:-1])
                state["column"] = update.new_zeros((*update.shape[:-2], update.shape[-1]))
            row = state["row"].lerp_(update.mean(-1), weight)
            column = state["column"].lerp_(update.mean(-2), weight)
            torch.mul((row / row.mean(-1, keepdim=True)).rsqrt_()[..., None], column.rsqrt()[..., None, :], out=update)
        update.mul_(grad)
        update.div_(_rms(update).div_(group["clip"]).clamp_(min=1.0))
        update.mul_(_rms(p.float()).clamp_(min=group["eps2"]))
        p.add_(update.to(p.dtype), alpha=-group["lr"])


def _rms(x: Tensor) -> Tensor:
    return x.norm() / x.numel() ** 0.5


class AdaLomo(Lomo):
    """AdaLomo at `lr_scale` times the rates that the other plugins chose for AdamW."""

    made = AdaptiveInBackward
