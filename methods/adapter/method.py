"""Houlsby adapters (arXiv 1902.00751, section 2.1): x + up(gelu(down(x))) before each residual addition."""

from __future__ import annotations

from torch import nn

from leantune.api import BadInput, Context, Data, Method, Unsupported, freeze_body
from leantune.architectures import blocks, family
from leantune.modules import place_adapters


class AdapterTuning(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        where = family(ctx.family)
        if self.params["per_layer"] not in (1, 2):
            raise BadInput(f"adapter.per_layer is {self.params['per_layer']}; allowed: 1 (feed-forward only), 2")
        if not isinstance(self.params["bottleneck"], int) or self.params["bottleneck"] < 1:
            raise BadInput(f"adapter.bottleneck is {self.params['bottleneck']}; it must be a whole number above 0")
        if not where.attention_output:
            raise Unsupported(f"family '{ctx.family}' has no attention for an adapter to follow; use another method")
        # As in the paper's code: output map, dropout, adapter, then the residual addition and LayerNorm.
        places = [where.attention_dropout or where.attention_output, where.ffn_dropout or where.ffn_output]
        owned = [b.get_submodule(p) for b in blocks(model, ctx.family) for p in places[-self.params["per_layer"] :]]
        paths = {id(module): path for path, module in model.named_modules()}
        freeze_body(model)  # LayerNorms too: a trained one keeps the whole graph below it alive
        place_adapters(model, {paths[id(module)]: self.params["bottleneck"] for module in owned})
        return model, data
