"""Houlsby adapters (arXiv 1902.00751, section 2.1): x + up(gelu(down(x))) before each residual addition."""

from __future__ import annotations

from torch import nn

from leantune.api import BadInput, Context, Data, Method, freeze_body
from leantune.architectures import places
from leantune.modules import place_adapters


class AdapterTuning(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        where = places(model)
        if self.params["per_layer"] not in (1, 2):
            raise BadInput(f"adapter.per_layer is {self.params['per_layer']}; allowed: 1 (feed-forward only), 2")
        if not isinstance(self.params["bottleneck"], int) or self.params["bottleneck"] < 1:
            raise BadInput(f"adapter.bottleneck is {self.params['bottleneck']}; it must be a whole number above 0")
        # As in the paper's code: output map, dropout, adapter, then the residual addition and LayerNorm.
        owned = {*where.ffn_output, *(where.attention_output if self.params["per_layer"] == 2 else ())}
        freeze_body(model)  # LayerNorms too: a trained one keeps the whole graph below it alive
        in_order = [path for path, _ in model.named_modules() if path in owned]
        place_adapters(model, dict.fromkeys(in_order, self.params["bottleneck"]))
        return model, data
