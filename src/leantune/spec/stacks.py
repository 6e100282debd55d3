"""Stacks of methods: `vocab_pruning+svfit@r64+came` as parts with their settings resolved.
Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from leantune.errors import BadInput
from leantune.spec import models, plugins
from leantune.spec.plugins import Plugin

if TYPE_CHECKING:
    from leantune.spec.schema import MethodFile, ModelFile

SLOTS = ("vocabulary", "adaptation", "optimizer", "control")


@dataclass(frozen=True)
class Part:
    """One plugin of a stack with its settings resolved: defaults, task kind, point, overrides, in
    that order."""

    plugin: Plugin[MethodFile]
    point: str | None
    params: dict[str, Any]

    @property
    def name(self) -> str:
        return self.plugin.name + (f"@{self.point}" if self.point else "")

    @property
    def slot(self) -> str:
        return self.plugin.spec.slot

    @property
    def source(self) -> str | None:
        """Where the values of the point are from, as its method.yaml says; None without a point."""
        return self.plugin.spec.sources.get(self.point or "")


def plugin_names(stack: str) -> list[str]:
    """The plugins that a stack such as `vocab_pruning+svfit@r64` names, without their points, known
    or not."""
    return [word.partition("@")[0] for word in stack.split("+")]


def parse_stack(
    text: str, kind: str, overrides: Mapping[str, Any] | None = None
) -> tuple[Part, ...]:
    """The parts of a stack `vocab_pruning+svfit@r64+came` for a task of `kind`, in slot order.

    `overrides` maps `method.param` to a value. A stack without an adaptation or control gets
    `full`. Raises BadInput for an unknown name, point or setting, or two plugins in one slot.
    """
    overrides = overrides or {}
    named = [_part(word, kind, overrides) for word in text.split("+")]
    parts = {part.slot: part for part in named}
    for part in named:
        if (other := parts[part.slot]) is not part:
            raise BadInput(
                f"stack '{text}': '{part.plugin.name}' and '{other.plugin.name}' both take the "
                f"slot '{part.slot}'; a stack holds one plugin per slot"
            )
    if "control" in parts and len(parts) > 1:
        name = parts["control"].plugin.name
        raise BadInput(f"stack '{text}': the control '{name}' cannot be stacked")
    if not {"control", "adaptation"} & {*parts}:
        parts["adaptation"] = _part("full", kind, overrides)
    known = {part.plugin.name for part in parts.values()}
    if unused := {key.partition(".")[0] for key in overrides} - known:
        raise BadInput(f"a setting names '{min(unused)}', which is not in the stack '{text}'")
    return tuple(parts[slot] for slot in SLOTS if slot in parts)


def _part(word: str, kind: str, overrides: Mapping[str, Any]) -> Part:
    """One word of a stack, `svfit@r64`, with its settings."""
    name, _, point = word.partition("@")
    plugin = plugins.get("methods", name)
    points, kinds = plugin.spec.points, cast(dict[str, dict[str, Any]], plugin.spec.kinds)
    if point and point not in points:
        known = ", ".join(points) or "none"
        raise BadInput(f"method '{name}' has no point '{point}'; its points: {known}")
    # both are the training of a causal language model, with a loss on fewer tokens
    alike = kind in ("generation", "seq2seq_lm") and kind not in kinds
    like = "causal_lm" if alike else kind
    defaults = {**plugin.spec.params, **kinds.get(like, {})}
    words = [(*key.partition("."), value) for key, value in overrides.items()]
    own = {param: value for method, _, param, value in words if method == name}
    allowed = {*defaults, *chain.from_iterable(points.values())}
    if unknown := [param for param in own if param not in allowed]:
        raise BadInput(
            f"method '{name}' has no setting '{unknown[0]}'; "
            f"its settings: {', '.join(sorted(allowed))}"
        )
    return Part(plugin, point or None, {**defaults, **points.get(point, {}), **own})


def stack_name(parts: tuple[Part, ...]) -> str:
    """The canonical name: slot order, `full` only when it is alone."""
    names = [p.name for p in parts]
    return "+".join(n for n in names if n != "full" or len(names) == 1)


def unsupported_reason(
    parts: tuple[Part, ...], model: Plugin[ModelFile], kind: str, device: str | None = None
) -> str | None:
    """Why this stack cannot run on this model, kind of task and device; None where nothing speaks
    against it.

    Without a device (a prediction) only model and kind are looked at, and what the model has only
    where its file says it.
    """
    if parts[0].slot != "control" and kind not in model.spec.kinds:
        return f"model '{model.name}' does not do {kind}; it does {', '.join(model.spec.kinds)}"
    for part in parts:
        spec = part.plugin.spec
        if spec.disabled is not None:
            return f"method '{part.plugin.name}' is disabled: {spec.disabled}"
        family = None if part.slot == "control" else model.spec.family
        for key, value in {"families": family, "tasks": kind, "devices": device}.items():
            allowed = getattr(spec.supports, key, None)
            if value and allowed is not None and value not in allowed:
                return (
                    f"method '{part.plugin.name}' supports {key} {', '.join(allowed)}; "
                    f"this is {value}"
                )
        needs = (spec.supports and spec.supports.needs) or []
        given = model.spec.has
        if needs and given is None and device is not None:
            given = models.has(model)  # a prediction finds out when the method is attached
        missing = [] if given is None else [need for need in needs if need not in given]
        if missing and part.slot != "control":
            return (
                f"method '{part.plugin.name}' needs {missing[0]}, which {model.name} does not have"
            )
    return None
