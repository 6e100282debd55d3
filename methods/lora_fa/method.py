"""LoRA-FA (arXiv 2308.03303): W x + (alpha / rank) B A x with A frozen, so that its input is not kept."""

from __future__ import annotations

from leantune_plugins.peft.method import Peft
from torch import nn

from leantune.api import Context, Data


class LoraFA(Peft):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        model, data = super().attach(model, data, ctx)
        for name, p in model.named_parameters():
            if ".lora_A." in name:
                p.requires_grad_(False)
        return model, data
