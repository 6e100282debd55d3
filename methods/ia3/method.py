"""IA3 (arXiv 2205.05638, section 3.3) by the peft library: l * (W x) for keys and values, W (l * x) after the FFN."""

from __future__ import annotations

from typing import Any

from leantune_plugins.peft.method import Peft
from torch import nn

from leantune.api import Context
from leantune.architectures import places


class IA3(Peft):
    def settings(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        where = places(model)
        inner = list(where.ffn_linears)
        targets = [*where.role("key", "value"), *inner]
        return {**super().settings(model, ctx), "target_modules": targets, "feedforward_modules": inner}
