"""LeanTune: what memory-efficient fine-tuning really saves, and what it costs."""

__version__ = "0.1.0"

# Raised whenever a number that a record holds would change; part of every comparability key.
MEASUREMENT_VERSION = 2

from typing import TYPE_CHECKING, Any  # noqa: E402

from leantune.models import autoload  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from leantune.training.apply import apply as apply

autoload.install()


def load(folder: str) -> "PreTrainedModel":
    """An exported model (`leantune run --export FOLDER`), adapters and factored linears in place,
    in eval mode."""
    from leantune.models import export

    return export.load(folder)


def __getattr__(name: str) -> Any:
    if name == "apply":  # imported when asked for: it needs torch, and `import leantune` does not
        from leantune.training.apply import apply

        return apply
    raise AttributeError(f"module 'leantune' has no attribute '{name}'")
