"""CAME as the optimizer of a stack: see came.py for the algorithm."""

from __future__ import annotations

import torch
from torch import nn

from leantune.api import Context, Data, Groups, Method, scale_rates

from .came import CAME


class Came(Method):
    """CAME at `lr_scale` times the rates that the other plugins chose for AdamW."""

    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        return model, data

    def optimizer(self, groups: Groups, ctx: Context) -> torch.optim.Optimizer:
        p = self.params
        return CAME(
            scale_rates(groups, p["lr_scale"]),
            betas=(p["beta1"], p["beta2"], p["beta3"]),
            eps=(p["eps1"], p["eps2"]),
            clip=p["clip"],
            weight_decay=p["weight_decay"],
            block=p["block"],
            stochastic_rounding=p["stochastic_rounding"],
            full_matrix=p["full_matrix"],
        )
