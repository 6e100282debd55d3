"""A control of the memory meter: `head`, holding one more tensor of known size."""

from __future__ import annotations

import torch
from leantune_plugins.head.method import Head
from torch import nn

from leantune.api import Context, Data

NAME = "control_ballast"


class Allocate(Head):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        model, data = super().attach(model, data, ctx)
        device = next(model.parameters()).device
        ballast = torch.zeros(self.params["bytes"], dtype=torch.uint8, device=device)
        model.register_buffer(NAME, ballast, persistent=False)
        return model, data

    def export(self, model: nn.Module, ctx: Context) -> nn.Module:
        delattr(model, NAME)
        return model
