"""BitFit (arXiv 2106.10199): the bias terms of the encoder are the only part of the body that learns."""

from __future__ import annotations

from torch import nn

from leantune.api import Context, Data, Method, Unsupported, freeze_body
from leantune.architectures import family


class BitFit(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        base = getattr(model, model.base_model_prefix, model)
        # The module that holds the list of blocks, so that DeBERTa's LayerNorm behind them counts too.
        encoder = base.get_submodule(family(ctx.family).layers.rpartition(".")[0])
        biases = [p for name, p in encoder.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not biases:
            raise Unsupported(f"'bitfit' trains biases, and family '{ctx.family}' has none; use lora or adapter")
        freeze_body(model)
        for bias in biases:
            bias.requires_grad_(True)
        return model, data
