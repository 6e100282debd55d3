"""IA3 (arXiv 2205.05638, section 3.3) by the peft library: l * (W x) for keys and values, W (l * x) after the FFN."""

from __future__ import annotations

from typing import Any

from leantune_plugins.peft.method import Peft, paths
from torch import nn

from leantune.api import Context
from leantune.architectures import blocks, family


class IA3(Peft):
    def settings(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        where = family(ctx.family)
        outputs = {id(block.get_submodule(where.ffn_output)) for block in blocks(model, ctx.family)}
        inner = [name for name, module in model.named_modules() if id(module) in outputs]
        places = [*paths(model, ctx, where.key_value), *inner]
        return {**super().settings(model, ctx), "target_modules": places, "feedforward_modules": inner}
