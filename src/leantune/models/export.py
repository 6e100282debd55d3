"""Save and load exported models, those with adapters or factored linears too, without remote code.

Such a checkpoint keeps the original class in `config.json` and lists its changed modules under
`quantization_config`, the one place where `transformers` lets a library change the modules of a
model before its weights are read. Once `register` has run (`import leantune` sees to it), every
`from_pretrained` understands it. Without it `transformers` warns of an unknown quantization type
and of weights that it did not use or had to make up, and the model is not the one that was saved.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from leantune.errors import BadInput
from leantune.modules import adapter_bottlenecks, factored_ranks, place_adapters, place_factored

FORMAT = "leantune"


class ChangedModules(QuantizationConfigMixin):
    """Which modules of the checkpoint are ours: path to bottleneck size, and path to rank."""

    def __init__(
        self,
        adapters: Mapping[str, int] | None = None,
        factored: Mapping[str, int] | None = None,
        quant_method: str = FORMAT,
    ) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]  # not one of transformers' own
        self.adapters = dict(adapters or {})
        self.factored = dict(factored or {})


class ModuleSwapper(HfQuantizer):
    """Puts our modules in place while the model is still on the meta device."""

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        changed = self.quantization_config
        assert isinstance(changed, ChangedModules)
        place_factored(model, changed.factored)
        place_adapters(model, changed.adapters)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:  # else the Trainer refuses to go on training a loaded model
        return True


def register() -> None:
    """Teach `transformers` our checkpoints; a second call changes nothing."""
    if FORMAT not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(FORMAT)(ChangedModules)
        register_quantizer(FORMAT)(ModuleSwapper)


def save(model: PreTrainedModel, folder: Path | str) -> None:
    """Write an exported model as a `transformers` checkpoint (safetensors).

    Without our modules it is a plain checkpoint; with them `import leantune` is needed where it is
    loaded.
    """
    adapters, factored = adapter_bottlenecks(model), factored_ranks(model)
    model.config.__dict__.pop("quantization_config", None)
    if adapters or factored:
        model.config.quantization_config = ChangedModules(adapters, factored)
    model.save_pretrained(folder)


def load(folder: Path | str) -> PreTrainedModel:
    """The model that `save` wrote, in eval mode, in the class that it was trained in.

    Raises BadInput where the folder holds no checkpoint.
    """
    register()
    if not (Path(folder) / "config.json").is_file():
        raise BadInput(f"{folder} holds no config.json; give the folder that an export wrote")
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    names = config.architectures or []
    if len(names) != 1 or not hasattr(transformers, names[0]):
        raise BadInput(
            f"{folder}/config.json: key 'architectures' names no class of transformers; save it "
            "again"
        )
    return getattr(transformers, names[0]).from_pretrained(folder, trust_remote_code=False)


register()
