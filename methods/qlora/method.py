"""QLoRA (arXiv 2305.14314, equation 5): LoRA on linear maps that are frozen in 4 bits."""

from __future__ import annotations

import torch
from leantune_plugins.peft.method import Peft
from leantune_plugins.qlora.nf4 import NF4Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from leantune.api import BadInput, Context, Data
from leantune.architectures import places

COMPUTE = {"bf16": torch.bfloat16, "fp32": torch.float32}


class QLora(Peft):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        if self.params["compute"] not in COMPUTE:
            raise BadInput(f"qlora.compute is '{self.params['compute']}'; allowed: {', '.join(COMPUTE)}")
        for path in places(model).linears:
            model.set_submodule(path, NF4Linear(model.get_submodule(path), COMPUTE[self.params["compute"]]))
        return super().attach(model, data, ctx)

    def export(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Weights multiplied back from 4 bits, the update added in their own dtype: a plain `transformers` model."""
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                plain = module.get_base_layer()
                if isinstance(plain, NF4Linear):
                    plain = plain.linear()
                plain.weight.data += module.get_delta_weight("default").to(plain.weight.dtype)
                model.set_submodule(name, plain)
        for name, module in list(model.named_modules()):
            if isinstance(module, NF4Linear):
                model.set_submodule(name, module.linear())
        return model
