"""`import leantune` teaches `transformers` our checkpoints, whichever of the two is imported first.

Nothing heavy is imported here: where `transformers` is not loaded yet, its own import completes the
registration, so the command line and the DAG, which never load it, pay nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# every model class needs it, so it comes before any `from_pretrained`
_READY = "transformers.modeling_utils"


def install() -> None:
    """Register now if `transformers` is loaded, else as soon as it is."""
    if _READY in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTransformers())


def _register() -> None:
    importlib.import_module("leantune.models.export")  # registers as it is imported


class _AfterTransformers:
    """An import finder that finds nothing of its own: it lets `_READY` load as usual, then
    registers."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _READY:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
