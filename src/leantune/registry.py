"""Discovery and validation of plugins: methods, tasks, models. Never imports torch, so the DAG builds fast.

The search path is the checkout's (or the wheel's) `methods/ tasks/ models/`, then every folder in
`LEANTUNE_PLUGINS`, then the entry points of group `leantune.plugins` (each a package that holds the folders).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leantune.errors import BadInput
from leantune.reading import read_yaml, validate

if TYPE_CHECKING:
    from leantune.api import Method

SLOTS = ("vocabulary", "adaptation", "optimizer", "control")
_PACKAGE = "leantune_plugins"


@dataclass(frozen=True)
class Plugin:
    """One method, task or model: its parsed YAML and where it was found."""

    kind: str  # methods | tasks | models
    name: str
    file: Path  # the YAML
    spec: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.file.parent


@dataclass(frozen=True)
class Part:
    """One plugin of a stack with its settings resolved: defaults, task kind, point, overrides, in that order."""

    plugin: Plugin
    point: str | None
    params: dict[str, Any]

    @property
    def name(self) -> str:
        return self.plugin.name + (f"@{self.point}" if self.point else "")

    @property
    def slot(self) -> str:
        return str(self.plugin.spec["slot"])

    @property
    def source(self) -> str | None:
        """Where the values of the point are from, as its method.yaml says; None without a point."""
        return self.plugin.spec.get("sources", {}).get(self.point)


# ------------------------------------------------------------------ where plugins are


def roots() -> list[Path]:
    """The folders that may hold methods/, tasks/ and models/, in order of precedence."""
    own = checkout() or Path(__file__).resolve().parent / "plugins"
    extra = [Path(p).expanduser().absolute() for p in os.environ.get("LEANTUNE_PLUGINS", "").split(os.pathsep) if p]
    for folder in extra:
        if not folder.is_dir():
            raise BadInput(f"LEANTUNE_PLUGINS names '{folder}', which is not a folder; mend or unset the variable")
    for entry in importlib.metadata.entry_points(group="leantune.plugins"):
        try:
            found = importlib.util.find_spec(entry.value)
        except ModuleNotFoundError:  # of the package around it
            found = None
        if found is None or not found.submodule_search_locations:
            raise BadInput(
                f"the entry point '{entry.name}' of leantune.plugins names '{entry.value}', which is not a package that "
                "can be imported; mend or uninstall its distribution"
            )
        extra.append(Path(next(iter(found.submodule_search_locations))))
    return [own, *extra]


def checkout() -> Path | None:
    """The repository's folder where LeanTune runs from one, None where it is installed."""
    source = Path(__file__).resolve().parents[1]
    root = source.parent
    return root if source.name == "src" and (root / "methods").is_dir() else None


def _yaml_files(kind: str) -> Iterator[Path]:
    for root in roots():
        pattern = "*.yaml" if kind == "models" else f"*/{kind[:-1]}.yaml"
        yield from sorted((root / kind).glob(pattern))


@functools.cache
def _discovered(kind: str, _environment: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in _yaml_files(kind):
        name = file.stem if kind == "models" else file.parent.name
        found.setdefault(name, file)
    return found


def discover(kind: str) -> dict[str, Path]:
    """Name to YAML file of every plugin of a kind (`methods`, `tasks`, `models`); the first found wins."""
    return _discovered(kind, os.environ.get("LEANTUNE_PLUGINS", ""))


@functools.cache
def _load(kind: str, file: Path) -> Plugin:
    spec = read_yaml(file)
    validate(spec, kind[:-1], file)
    name = file.stem if kind == "models" else file.parent.name
    if spec["name"] != name:
        raise BadInput(f"{file}: key 'name' is '{spec['name']}' but the folder or file is called '{name}'")
    unknown = set(spec.get("sources", ())) - set(spec.get("points", ())) if kind == "methods" else set()
    if unknown:
        raise BadInput(f"{file}: key 'sources' names '{min(unknown)}', which is none of its points")
    return Plugin(kind, name, file, spec)


def get(kind: str, name: str) -> Plugin:
    """One plugin by name. Raises BadInput with the known names, or with what is wrong in its YAML."""
    known = discover(kind)
    if name not in known:
        raise BadInput(f"unknown {kind[:-1]} '{name}'; known: {', '.join(sorted(known))}")
    return _load(kind, known[name])


# ------------------------------------------------------------------ stacks


def merged_spec(plugin: Plugin) -> dict[str, Any]:
    """A method's spec with what it inherits from its `base` (params, kinds, supports) filled in."""
    if "base" not in plugin.spec:
        return plugin.spec
    parent = merged_spec(get("methods", plugin.spec["base"]))
    own = plugin.spec
    return {
        **{k: parent[k] for k in ("supports",) if k in parent},
        **own,
        "params": {**parent.get("params", {}), **own.get("params", {})},
        "kinds": {**parent.get("kinds", {}), **own.get("kinds", {})},
    }


def plugin_names(stack: str) -> list[str]:
    """The plugins that a stack such as `vocab_pruning+svfit@r64` names, without their points, known or not."""
    return [word.partition("@")[0] for word in stack.split("+")]


def parse_stack(text: str, kind: str, overrides: Mapping[str, Any] | None = None) -> tuple[Part, ...]:
    """The parts of a stack `vocab_pruning+svfit@r64+came` for a task of `kind`, in slot order.

    `overrides` maps `method.param` to a value. A stack without an adaptation or control gets `full`.
    Raises BadInput for an unknown name, point or setting, or two plugins in one slot.
    """
    parts: dict[str, Part] = {}
    for word in text.split("+"):
        name, _, point = word.partition("@")
        part = _resolve(get("methods", name), point or None, kind, overrides or {})
        if part.slot in parts:
            raise BadInput(
                f"stack '{text}': '{parts[part.slot].plugin.name}' and '{name}' both take the slot "
                f"'{part.slot}'; a stack holds one plugin per slot"
            )
        parts[part.slot] = part
    if "control" in parts and len(parts) > 1:
        raise BadInput(f"stack '{text}': the control '{parts['control'].plugin.name}' cannot be stacked")
    if not {"control", "adaptation"} & set(parts):
        parts["adaptation"] = _resolve(get("methods", "full"), None, kind, overrides or {})
    unused = {k.partition(".")[0] for k in overrides or {}} - {p.plugin.name for p in parts.values()}
    if unused:
        raise BadInput(f"a setting names '{sorted(unused)[0]}', which is not in the stack '{text}'")
    return tuple(parts[slot] for slot in SLOTS if slot in parts)


def _resolve(plugin: Plugin, point: str | None, kind: str, overrides: Mapping[str, Any]) -> Part:
    spec = merged_spec(plugin)
    points = spec.get("points", {})
    if point is not None and point not in points:
        raise BadInput(f"method '{plugin.name}' has no point '{point}'; its points: {', '.join(points) or 'none'}")
    own = {k.partition(".")[2]: v for k, v in overrides.items() if k.partition(".")[0] == plugin.name}
    kinds = spec.get("kinds", {})
    alike = kinds.get("causal_lm", {}) if kind == "generation" else {}  # the same training, with a loss on fewer tokens
    defaults = {**spec.get("params", {}), **kinds.get(kind, alike)}
    allowed = set(defaults) | {k for p in points.values() for k in p}
    for key in own:
        if key not in allowed:
            raise BadInput(f"method '{plugin.name}' has no setting '{key}'; its settings: {', '.join(sorted(allowed))}")
    return Part(plugin, point, {**defaults, **points.get(point or "", {}), **own})


def stack_name(parts: tuple[Part, ...]) -> str:
    """The canonical name: slot order, `full` only when it is alone."""
    names = [p.name for p in parts]
    return "+".join(n for n in names if n != "full" or len(names) == 1)


def unsupported_reason(parts: tuple[Part, ...], model: Plugin, kind: str, device: str | None = None) -> str | None:
    """Why this stack cannot run on this model, kind of task and device; None where nothing speaks against it.

    Without a device (a prediction) only model and kind are looked at.
    """
    if parts[0].slot != "control" and kind not in model.spec["kinds"]:
        return f"model '{model.name}' does not do {kind}; it does {', '.join(model.spec['kinds'])}"
    for part in parts:
        spec = merged_spec(part.plugin)
        if "disabled" in spec:
            return f"method '{part.plugin.name}' is disabled: {spec['disabled']}"
        supports = spec.get("supports", {})
        facts = {"families": model.spec["family"], "tasks": kind, "devices": device}
        for key, value in facts.items():
            if value is None or (part.slot == "control" and key == "families"):
                continue
            if key in supports and value not in supports[key]:
                return f"method '{part.plugin.name}' supports {key} {', '.join(supports[key])}; this is {value}"
    return None


def load_method(name: str) -> type[Method]:
    """The plugin class of a method, from its own `method.py` or, where it has none, its base's."""
    from leantune.api import Method

    plugin = get("methods", name)
    if not (plugin.folder / "method.py").is_file():
        if "base" not in plugin.spec:
            raise BadInput(f"{plugin.folder}: neither a method.py nor a key 'base' in method.yaml")
        return load_method(plugin.spec["base"])
    package = sys.modules.setdefault(_PACKAGE, types.ModuleType(_PACKAGE))
    package.__path__ = [str(root / "methods") for root in roots()]
    module = importlib.import_module(f"{_PACKAGE}.{name}.method")
    classes = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise BadInput(f"{plugin.folder}/method.py: expected one subclass of Method, found {len(classes)}")
    return classes[0]


# ------------------------------------------------------------------ content hashes


def _digest(*chunks: bytes | str) -> str:
    sha = hashlib.sha256()
    for chunk in chunks:
        data = chunk.encode() if isinstance(chunk, str) else chunk
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()


def _code(folder: Path) -> list[bytes | str]:
    chunks: list[bytes | str] = []
    for file in sorted(folder.glob("*.py")):
        chunks += [file.name, file.read_bytes()]
    return chunks


@functools.cache
def _method_code_hash(plugin_file: Path, base: str | None) -> str:
    inherited = _base_hash(base) if base else ""
    return _digest(inherited, *_code(plugin_file.parent))


def _base_hash(name: str) -> str:
    plugin = get("methods", name)
    return _method_code_hash(plugin.file, plugin.spec.get("base"))


def stack_hash(parts: tuple[Part, ...]) -> str:
    """Hash of the code and the resolved settings of a stack: what a record of it depends on."""
    chunks = []
    for part in parts:
        settings = json.dumps([part.slot, part.params], sort_keys=True)
        chunks += [part.name, settings, _method_code_hash(part.plugin.file, part.plugin.spec.get("base"))]
    return _digest(*chunks)


@functools.cache
def _folder_code_hash(folder: Path) -> str:
    return _digest(*_code(folder))


def task_hash(task: Plugin, settings: Mapping[str, Any]) -> str:
    """Hash of a task's data definition, loader code and resolved training settings."""
    keep = {k: task.spec[k] for k in ("kind", "source", "files", "dataset", "metric") if k in task.spec}
    keep["metric"] = {k: v for k, v in keep["metric"].items() if k != "target"}
    code = _folder_code_hash(loader_folder(task.spec, task.folder))
    return _digest(json.dumps([keep, settings], sort_keys=True), code)


def loader_folder(spec: Mapping[str, Any], folder: Path) -> Path:
    """Where a task's task.py is: in its own folder, or in that of the task named by its key `loader`."""
    return get("tasks", spec["loader"]).folder if "loader" in spec else folder


def model_hash(model: Plugin) -> str:
    """Hash of where a model's weights come from and of its architecture."""
    keep = {k: model.spec[k] for k in ("family", "source", "architecture")}
    return _digest(json.dumps(keep, sort_keys=True))
