"""AdapterDrop (arXiv 2010.11918), specialised: no adapters in the lowest layers, while training and afterwards."""

from __future__ import annotations

from leantune_plugins.adapter.method import AdapterTuning
from torch import nn

from leantune.api import BadInput, Context, Data
from leantune.architectures import blocks
from leantune.modules import Adapter


class AdapterDrop(AdapterTuning):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        layers, drop = blocks(model), self.params["drop"]
        count = len(layers) // 2 if drop == "half" else drop
        if not isinstance(count, int) or not 0 <= count < len(layers):
            raise BadInput(f"adapterdrop.drop is {drop!r}; give `half` or a number from 0 to {len(layers) - 1}")
        model, data = super().attach(model, data, ctx)
        dropped = {id(m) for layer in layers[:count] for m in layer.modules()}
        for name, module in list(model.named_modules()):
            if isinstance(module, Adapter) and id(module) in dropped:
                model.set_submodule(name, module.base)
        return model, data
