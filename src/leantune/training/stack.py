"""A stack of methods at work: one object that calls each hook on the plugins that have it."""

import importlib
import sys
import types
from pathlib import Path

import torch
from torch import Tensor, nn

from leantune.api import Change, Context, Data, Groups, Method
from leantune.architectures import WHAT, has
from leantune.errors import BadInput, Unsupported, naming_extras
from leantune.spec.plugins import get, roots
from leantune.spec.stacks import Part

_PACKAGE = "leantune_plugins"


class Stack:
    """The plugins of a cell in slot order, from `leantune.spec.stacks.parse_stack`."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.methods: dict[str, Method] = {
            p.slot: load_method(p.plugin.name)(p.params) for p in parts
        }

    @property
    def control(self) -> Method | None:
        return self.methods.get("control")

    @property
    def trains(self) -> bool:
        """False for a stack that only evaluates the model (zero-shot)."""
        return all(p.plugin.spec.trains for p in self.parts)

    @property
    def resumable(self) -> bool:
        """Whether a run can go on from its model, optimizer and details: no plugin keeps anything
        else meanwhile.

        Its yaml may say so (`resumable`); else a plugin without hooks inside the loop has nothing
        to keep.
        """
        hooks = ("penalty", "on_step", "on_progress")
        promised = [(p.plugin.spec.resumable, self.methods[p.slot]) for p in self.parts]
        return all(
            not any(_overrides(method, hook) for hook in hooks) if said is None else said
            for said, method in promised
        )

    def overrides(self, hook: str) -> bool:
        """Whether any plugin has a `hook` of its own."""
        return any(_overrides(method, hook) for method in self.methods.values())

    def attach(
        self, model: nn.Module, data: Data | None, ctx: Context
    ) -> tuple[nn.Module, Data | None]:
        """Vocabulary first, then adaptation; the optimizer slot has nothing to attach to.

        While memory is predicted only the vocabulary slot is given data, which say how many rows it
        keeps. Raises Unsupported naming what a plugin needs and the model does not have.
        """
        for part in self.parts:
            needs = (part.plugin.spec.supports and part.plugin.spec.supports.needs) or []
            missing = [need for need in needs if need not in has(model)] if needs else []
            if missing:
                raise Unsupported(
                    f"'{part.plugin.name}' needs {WHAT[missing[0]]}, and this "
                    f"{type(model).__name__} has none; use another method"
                )
        for slot in ("vocabulary", "adaptation"):
            if slot in self.methods:
                given = data if slot == "vocabulary" or not ctx.probe else None
                model, data = self.methods[slot].attach(model, given, ctx)
        return model, data

    def parameter_groups(self, model: nn.Module, ctx: Context) -> Groups:
        return self.methods["adaptation"].parameter_groups(model, ctx)

    def optimizer(self, groups: Groups, ctx: Context) -> torch.optim.Optimizer:
        chooser = self.methods.get("optimizer", self.methods["adaptation"])
        return chooser.optimizer(groups, ctx)

    def penalty(self, model: nn.Module) -> Tensor | None:
        terms = [t for t in (m.penalty(model) for m in self.methods.values()) if t is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        for method in self.methods.values():
            method.on_step(model, step, ctx)

    def on_progress(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: float, ctx: Context
    ) -> Change | None:
        """All plugins see the check; the changes they make are joined into one."""
        joined = None
        for method in self.methods.values():
            change = method.on_progress(model, optimizer, progress, ctx)
            if change is not None:
                model = change.model
                again = change.new_optimizer or (joined is not None and joined.new_optimizer)
                joined = Change(model, again)
        return joined

    def export(self, model: nn.Module, ctx: Context) -> nn.Module:
        for slot in ("adaptation", "vocabulary"):
            if slot in self.methods:
                model = self.methods[slot].export(model, ctx)
        return model


def _overrides(method: Method, hook: str) -> bool:
    return getattr(type(method), hook) is not getattr(Method, hook)


def context_cache(cache: Path, model_hash: str) -> Path:
    """The folder for results that depend on a model's weights only."""
    folder = cache / "derived" / model_hash[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_method(name: str) -> type[Method]:
    """The plugin class of a method, from its own `method.py` or, where it has none, its base's."""
    plugin = get("methods", name)
    if not (plugin.folder / "method.py").is_file():
        if plugin.spec.base is None:
            raise BadInput(f"{plugin.folder}: neither a method.py nor a key 'base' in method.yaml")
        return load_method(plugin.spec.base)
    package = sys.modules.setdefault(_PACKAGE, types.ModuleType(_PACKAGE))
    package.__path__ = [str(root / "methods") for root in roots()]
    with naming_extras(f"method '{name}'"):
        module = importlib.import_module(f"{_PACKAGE}.{name}.method")
    classes = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise BadInput(
            f"{plugin.folder}/method.py: expected one subclass of Method, found {len(classes)}"
        )
    return classes[0]
