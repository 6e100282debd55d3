"""LoRA (arXiv 2106.09685) by the peft library: W x + (alpha / rank) B A x, B starting at zero."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from leantune.api import BadInput, Context, Data, Method, freeze_body
from leantune.architectures import family, linears


class Lora(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        where = family(ctx.family)
        targets = {"query_value": where.query_value, "all": where.linears}
        if self.params["targets"] not in targets:
            raise BadInput(f"lora.targets is '{self.params['targets']}'; allowed: {', '.join(targets)}")
        found = {id(child) for _, _, child in linears(model, ctx.family, targets[self.params["targets"]])}
        config = LoraConfig(
            r=self.params["rank"],
            lora_alpha=self.params["alpha"],
            lora_dropout=self.params["dropout"],
            # Full names: a suffix such as `dense` would also reach the pooler and RoBERTa's head.
            target_modules=[name for name, module in model.named_modules() if id(module) in found],
            fan_in_fan_out=ctx.family == "gpt2",  # its Conv1D keeps the weight as (in, out)
        )
        freeze_body(model)
        head = [p for p in model.parameters() if p.requires_grad]
        inject_adapter_in_model(config, model)
        for p in head:  # peft froze all that is not its own
            p.requires_grad_(True)
        return model, data

    def export(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The update merged into the weights: a plain `transformers` model."""
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, module.get_base_layer())
        return model
