"""BitFit (arXiv 2106.10199): the bias terms of the encoder are the only part of the body that learns."""

from __future__ import annotations

from torch import nn

from leantune.api import Context, Data, Method, freeze_body
from leantune.architectures import biases


class BitFit(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        found = biases(model)
        freeze_body(model)
        for bias in found:
            bias.requires_grad_(True)
        return model, data
