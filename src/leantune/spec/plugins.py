"""Discovery and validation of plugins: methods, tasks, models. Never imports torch, so the DAG
builds fast.

The search path is the checkout's (or the wheel's) `methods/ tasks/ models/`, then every folder in
`LEANTUNE_PLUGINS`, then the entry points of group `leantune.plugins` (each a package that holds the
folders).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from leantune.errors import BadInput
from leantune.files.parse import check, read_yaml

if TYPE_CHECKING:
    from leantune.spec.schema import MethodFile, ModelFile, TaskFile

Spec = TypeVar("Spec")  # what a kind of plugin declares: MethodFile, ...


@dataclass(frozen=True)
class Plugin(Generic[Spec]):
    """One method, task or model: its YAML file as the typed `spec` that the harness reads, a
    method's with what it inherits from its `base`, and as the `raw` mapping that content hashes and
    loaders take, with each value just as the file has it."""

    kind: str  # methods | tasks | models
    name: str
    file: Path  # the YAML
    spec: Spec
    raw: dict[str, Any]
    word_of_place: str = ""  # of a model without a file of ours: what names it in a command

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def word(self) -> str:
        """What names it in a command and a config."""
        return self.word_of_place or self.name


# ------------------------------------------------------------------ where plugins are


def roots() -> list[Path]:
    """The folders that may hold methods/, tasks/ and models/, in order of precedence."""
    own = checkout() or Path(__file__).resolve().parents[1] / "plugins"
    named = filter(None, os.environ.get("LEANTUNE_PLUGINS", "").split(os.pathsep))
    extra = [Path(folder).expanduser().absolute() for folder in named]
    if missing := [folder for folder in extra if not folder.is_dir()]:
        raise BadInput(
            f"LEANTUNE_PLUGINS names '{missing[0]}', which is not a folder; "
            "mend or unset the variable"
        )
    for entry in importlib.metadata.entry_points(group="leantune.plugins"):
        try:
            found = importlib.util.find_spec(entry.value)
        except ModuleNotFoundError:  # of the package around it
            found = None
        if found is None or not found.submodule_search_locations:
            raise BadInput(
                f"the entry point '{entry.name}' of leantune.plugins names '{entry.value}', which "
                "is not a package that can be imported; mend or uninstall its distribution"
            )
        extra.append(Path(next(iter(found.submodule_search_locations))))
    return [own, *extra]


def checkout() -> Path | None:
    """The repository's folder where LeanTune runs from one, None where it is installed."""
    source = Path(__file__).resolve().parents[2]
    root = source.parent
    return root if source.name == "src" and (root / "methods").is_dir() else None


@functools.cache
def _discovered(kind: str, _environment: str) -> dict[str, Path]:
    pattern = "*.yaml" if kind == "models" else f"*/{kind[:-1]}.yaml"
    found: dict[str, Path] = {}
    for file in chain.from_iterable(sorted((root / kind).glob(pattern)) for root in roots()):
        found.setdefault(_name(kind, file), file)  # the first wins
    return found


def _name(kind: str, file: Path) -> str:
    return file.stem if kind == "models" else file.parent.name


def discover(kind: str) -> dict[str, Path]:
    """Name to YAML file of every plugin of a kind (`methods`, `tasks`, `models`)."""
    return _discovered(kind, os.environ.get("LEANTUNE_PLUGINS", ""))


@functools.cache
def read(kind: str, file: Path) -> Plugin[Any]:
    """The plugin that a YAML file declares. Raises BadInput with what is wrong in it."""
    from leantune.spec.schema import FILES

    raw = read_yaml(file)
    spec = check(raw, FILES[kind[:-1]], file)
    name = _name(kind, file)
    if spec.name != name:
        raise BadInput(
            f"{file}: key 'name' is '{spec.name}' but the folder or file is called '{name}'"
        )
    if kind == "methods" and spec.base:
        parent = get("methods", spec.base).spec
        inherited = {
            "supports": spec.supports or parent.supports,
            "params": {**parent.params, **spec.params},
            "kinds": {**parent.kinds, **spec.kinds},
        }
        spec = spec.model_copy(update=inherited)
    return Plugin(kind, name, file, spec, raw)


@overload
def get(kind: Literal["methods"], name: str) -> Plugin[MethodFile]: ...
@overload
def get(kind: Literal["tasks"], name: str) -> Plugin[TaskFile]: ...
@overload
def get(kind: Literal["models"], name: str) -> Plugin[ModelFile]: ...
@overload
def get(kind: str, name: str) -> Plugin[Any]: ...
def get(kind: str, name: str) -> Plugin[Any]:
    """One plugin by name, a model also by where it is (see spec/models.py). Raises BadInput with
    the known names, or with what is wrong in its YAML."""
    known = discover(kind)
    if name in known:
        return read(kind, known[name])
    said = f"unknown {kind[:-1]} '{name}'; known: {', '.join(sorted(known))}"
    if kind == "models":
        from leantune.spec import models  # here, as it needs this module

        if found := models.find(name):
            return found
        said += f"; or give {models.WORDS}"
    raise BadInput(said)
