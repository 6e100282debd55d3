"""LeanTune: what memory-efficient fine-tuning really saves, and what it costs."""

__version__ = "0.1.0"

# Raised whenever a number that a record holds would change; part of every comparability key.
MEASUREMENT_VERSION = 2

from typing import TYPE_CHECKING  # noqa: E402

from leantune import autoload  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedModel

autoload.install()


def load(folder: str) -> "PreTrainedModel":
    """An exported model (`leantune run --export FOLDER`), adapters and factored linears in place, in eval mode."""
    from leantune import loading

    return loading.load(folder)
