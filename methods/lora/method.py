"""LoRA (arXiv 2106.09685) by the peft library: W x + (alpha / rank) B A x, B starting at zero."""

from __future__ import annotations

import re

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from torch import nn
from transformers.pytorch_utils import Conv1D

from leantune.api import BadInput, Context, Data, Method, Unsupported, freeze_body
from leantune.architectures import WHAT, places


class Lora(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        targets = target_paths(model, self.params["targets"])
        config = LoraConfig(
            r=self.params["rank"],
            lora_alpha=self.params["alpha"],
            lora_dropout=self.params["dropout"],
            # Full names: a suffix such as `dense` would also reach the pooler and RoBERTa's head.
            target_modules=targets,
            fan_in_fan_out=is_transposed(model, targets),
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


def target_paths(model: nn.Module, targets: str) -> list[str]:
    """Full names of the maps that are adapted: `all` in the blocks, or with `query_value` those of peft's own table
    where it has the type of the model, else the query and value projections."""
    if targets not in ("query_value", "all"):
        raise BadInput(f"the setting targets is '{targets}'; allowed: query_value, all")
    where = places(model)
    if targets == "all":
        found = where.linears
    else:
        names = DEFAULT_TARGETS.get(model.config.model_type, [])
        # a single word of peft's is a pattern of full names
        pattern = names if isinstance(names, str) else rf"(?:.*\.)?(?:{'|'.join(names)})"
        found = tuple(p for p in where.linears if re.fullmatch(pattern, p)) or where.role("query", "value")
    if not found:
        raise Unsupported(f"this model has no {WHAT['linears' if targets == 'all' else 'query']}; use another method")
    return list(found)


def is_transposed(model: nn.Module, paths: list[str]) -> bool:
    """Whether these maps keep their weight as (in, out), as GPT-2's do."""
    return all(isinstance(model.get_submodule(path), Conv1D) for path in paths)
