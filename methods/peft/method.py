"""Any tuner of the peft library: its layers around the linear maps of the blocks, merged at the export."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import peft
from leantune_plugins.lora.method import Lora, is_transposed, target_paths
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from leantune.api import BadInput, Context, Data, Unsupported, freeze_body


class Peft(Lora):
    """Attaches as `lora` does, for any config class; merged at the export as there."""

    tuner: BaseTuner  # peft's own object around the attached model

    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        config = self._config(self.settings(model, ctx))
        freeze_body(model)
        head = [p for p in model.parameters() if p.requires_grad]
        # The class itself, since `inject_adapter_in_model` refuses tuners whose layers share tensors, such as VeRA.
        try:
            self.tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, "default")
        except TypeError as error:  # what peft raises for a kind of layer that the tuner does not know
            raise Unsupported(f"{self.params['tuner']} does not fit family '{ctx.family}': {error}") from error
        for p in head:  # peft froze all that is not its own
            p.requires_grad_(True)
        return model, data

    def settings(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """The fields of the tuner's config class."""
        targets = target_paths(model, self.params["targets"])
        named = {"r": self.params["rank"], "lora_alpha": self.params["alpha"], "lora_dropout": self.params["dropout"]}
        return {
            "target_modules": targets,
            "fan_in_fan_out": is_transposed(model, targets),
            **{name: value for name, value in named.items() if value is not None},
            **self.params["config"],
        }

    def _config(self, settings: dict[str, Any]) -> peft.PeftConfig:
        name = self.params["tuner"]
        made = getattr(peft, name, None)
        if not (isinstance(made, type) and issubclass(made, peft.PeftConfig)):
            raise BadInput(
                f"the setting tuner is '{name}', which is no config class of peft; give one such as LoraConfig"
            )
        if issubclass(made, peft.PromptLearningConfig):
            raise Unsupported(f"{name} adds tokens to the input and not layers to the model; take a tuner of layers")
        known = {f.name for f in fields(made)}
        if "fan_in_fan_out" not in known:
            del settings["fan_in_fan_out"]
        unknown = sorted(set(settings) - known)
        if unknown:
            raise BadInput(f"{name} has no field '{unknown[0]}'; set rank or alpha to null, or mend the setting config")
        try:
            return made(**settings)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{name} refuses these settings: {error}") from error
