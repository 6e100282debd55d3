"""What only transformers can tell of a model, as JSON, for a process without torch.

`python -m leantune.models.facts` reads one question on its standard input: `parameters` of a
configuration and what its modules have, or the configuration of a `gguf` file.
"""

import json
import sys
from typing import Any

from leantune.architectures import has
from leantune.errors import BadInput, naming_extras
from leantune.models.load import empty_model, parameter_counts


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Raises BadInput where the file is none that transformers reads."""
    if "parameters" in question:
        spec = question["parameters"]
        model = empty_model(spec, spec["kinds"][0], 2)
        return {**parameter_counts(model), "has": has(model)}
    return _gguf_config(question["gguf"])


def _gguf_config(file: str) -> dict[str, Any]:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with naming_extras(file, "gguf"):
        try:
            config = dict(load_gguf_checkpoint(file, return_tensors=False)["config"])
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise BadInput(
                f"{file} is no GGUF file of an architecture that transformers reads "
                f"({str(error).splitlines()[0][:200]})"
            ) from error
    return json.loads(json.dumps(config, default=float))  # type: ignore[no-any-return]  # numpy's numbers


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
