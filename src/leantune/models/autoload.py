"""`import leantune` teaches `transformers` our checkpoints, whichever of the two is imported first.

Nothing heavy is imported here: where `transformers` is not loaded yet, its own import completes the
registration, so the command line and the DAG, which never load it, pay nothing. There is no shorter
way: transformers looks for no plugins, and to import it takes seconds.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# every model class needs it, so it comes before any `from_pretrained`
_READY = "transformers.modeling_utils"


def install() -> None:
    """Register now if `transformers` is loaded, else as soon as it is."""
    if _READY in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterTransformers())


def _register() -> None:
    import leantune.models.export  # noqa: F401  registers as it is imported


class _AfterTransformers:
    """An import finder that finds nothing of its own: it lets `_READY` load as usual, then
    registers."""

    def find_spec(self, name: str, *where: Any) -> ModuleSpec | None:
        if name != _READY:
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register()

            loader.exec_module = execute_and_register
        return spec
