"""LeanTune: what memory-efficient fine-tuning really saves, and what it costs.

What scripts and notebooks may use is here: `apply`, `load`, `load_data`, `predict`, `read_records`.
Each imports what it needs when it is called, so that `import leantune` stays cheap.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leantune.errors import BadInput, naming_extras
from leantune.models import autoload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from leantune.api import Data
    from leantune.files.record import Record
    from leantune.spec.plugins import Plugin
    from leantune.training.apply import apply

__all__ = ["apply", "load", "load_data", "predict", "read_records"]
__version__ = "0.1.0"

# Raised whenever a number that a record holds would change; part of every comparability key.
MEASUREMENT_VERSION = 2

autoload.install()


def load(folder: Path | str) -> "PreTrainedModel":
    """An exported model (`leantune run --export FOLDER`), adapters and factored linears in place,
    in eval mode."""
    from leantune.models import export

    return export.load(folder)


@naming_extras("leantune.load_data")
def load_data(
    task: "str | Plugin",
    model: "str | Plugin",
    *,
    length: int | None = None,
    splits: Mapping[str, int] | None = None,
) -> "Data":
    """A task's examples, tokenized for a model: what `leantune run` trains on and is scored by.

    Both are names (`leantune list`) or plugins. `length` (tokens of an example at most) and the
    sizes in `splits` (`train`, `validation`, `test`, and the `seed` that draws them) are the task's
    own unless given.

    Raises BadInput for an unknown name, or a length or size that a task cannot have.
    """
    from leantune.data.load import load_data as examples_of
    from leantune.models.load import load_tokenizer
    from leantune.spec.cells import resolve_cell

    wanted = {f"task.{name}": size for name, size in (splits or {}).items()}
    wanted |= {} if length is None else {"task.length": length}
    model, task = (one if isinstance(one, str) else one.word for one in (model, task))
    cell = resolve_cell(model, task, "full", device="cpu", overrides=wanted)
    most = cell.training.get("max_new_tokens")
    tokenizer = load_tokenizer({**cell.model.raw, "folder": cell.model.folder})
    return examples_of(cell.task, tokenizer, cell.training["length"], cell.splits, most)


def predict(model: str, method: str, **words: Any) -> dict[str, Any]:
    """Memory and FLOPs of a training step, without a GPU and without weights, as a mapping: what
    `leantune predict --json` prints. `peak_bytes` are live tensors, `fits` is by card.

    Both are names; a method may be a stack. `words` are `batch`, `length`, `task`, `head`, `dtype`,
    `settings` and the other fields of `leantune.prediction.ask.Ask`. Raises BadInput naming the
    word that is wrong, Unsupported for a stack that the model or the kind of task does not do.
    """
    from leantune.prediction.ask import Ask
    from leantune.prediction.one import predict

    return predict(Ask(model, method, **words))


def read_records(folder: Path | str) -> "list[Record]":
    """The records below a folder, such as `results/records`, in the order of their paths.

    Only sound ones: a damaged file is named in a warning and left out. Raises BadInput where there
    is no such folder.
    """
    from leantune.files import record

    if not Path(folder).is_dir():
        raise BadInput(f"there is no folder {folder}; give one that holds records")
    found = [one for _, one in record.read_records(Path(folder))]
    for damaged in (one for one in found if isinstance(one, BadInput)):
        warnings.warn(str(damaged), stacklevel=2)
    return [one for one in found if not isinstance(one, BadInput)]


def __getattr__(name: str) -> Any:
    if name != "apply":  # which is imported when asked for, since its signature needs torch
        raise AttributeError(f"module 'leantune' has no attribute '{name}'")
    from leantune.training.apply import apply

    return apply
