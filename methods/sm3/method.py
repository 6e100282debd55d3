"""SM3, pytorch-optimizer's."""

from __future__ import annotations

import torch
from pytorch_optimizer import SM3
from torch import nn

from leantune.api import Context, Data, Groups, Method, scale_rates


class Sm3(Method):
    """SM3 with momentum at `lr_scale` times the rates that the other plugins chose for AdamW."""

    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        return model, data

    def optimizer(self, groups: Groups, ctx: Context) -> torch.optim.Optimizer:
        return SM3(
            scale_rates(groups, self.params["lr_scale"]),
            momentum=self.params["momentum"],
            beta=self.params["beta"],
            foreach=False,  # tensor by tensor on every device, so that the transient is one tensor's
        )
