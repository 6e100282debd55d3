"""Stacks of methods: `vocab_pruning+svfit@r64+came` as parts with their settings resolved.
Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from leantune.errors import BadInput
from leantune.spec import plugins
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


def merged_spec(plugin: Plugin[MethodFile]) -> MethodFile:
    """A method's spec with what it inherits from its `base` (params, kinds, supports) filled in."""
    own = plugin.spec
    if own.base is None:
        return own
    parent = merged_spec(plugins.get("methods", own.base))
    inherited = {
        "supports": own.supports or parent.supports,
        "params": {**parent.params, **own.params},
        "kinds": {**parent.kinds, **own.kinds},
    }
    return own.model_copy(update=inherited)


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
    parts: dict[str, Part] = {}
    for word in text.split("+"):
        name, _, point = word.partition("@")
        part = _resolve(plugins.get("methods", name), point or None, kind, overrides or {})
        if part.slot in parts:
            raise BadInput(
                f"stack '{text}': '{parts[part.slot].plugin.name}' and '{name}' both take the slot "
                f"'{part.slot}'; a stack holds one plugin per slot"
            )
        parts[part.slot] = part
    if "control" in parts and len(parts) > 1:
        raise BadInput(
            f"stack '{text}': the control '{parts['control'].plugin.name}' cannot be stacked"
        )
    if not {"control", "adaptation"} & set(parts):
        parts["adaptation"] = _resolve(plugins.get("methods", "full"), None, kind, overrides or {})
    unused = {k.partition(".")[0] for k in overrides or {}} - {
        p.plugin.name for p in parts.values()
    }
    if unused:
        raise BadInput(f"a setting names '{sorted(unused)[0]}', which is not in the stack '{text}'")
    return tuple(parts[slot] for slot in SLOTS if slot in parts)


def _resolve(
    plugin: Plugin[MethodFile], point: str | None, kind: str, overrides: Mapping[str, Any]
) -> Part:
    spec = merged_spec(plugin)
    points = spec.points
    if point is not None and point not in points:
        raise BadInput(
            f"method '{plugin.name}' has no point '{point}'; its points: {', '.join(points) or 'none'}"
        )
    own = {
        k.partition(".")[2]: v for k, v in overrides.items() if k.partition(".")[0] == plugin.name
    }
    kinds = cast(dict[str, dict[str, Any]], spec.kinds)
    # generation is the same training, with a loss on fewer tokens
    alike = kinds.get("causal_lm", {}) if kind == "generation" else {}
    defaults = {**spec.params, **kinds.get(kind, alike)}
    allowed = set(defaults) | {k for p in points.values() for k in p}
    for key in own:
        if key not in allowed:
            raise BadInput(
                f"method '{plugin.name}' has no setting '{key}'; its settings: {', '.join(sorted(allowed))}"
            )
    return Part(plugin, point, {**defaults, **points.get(point or "", {}), **own})


def stack_name(parts: tuple[Part, ...]) -> str:
    """The canonical name: slot order, `full` only when it is alone."""
    names = [p.name for p in parts]
    return "+".join(n for n in names if n != "full" or len(names) == 1)


def unsupported_reason(
    parts: tuple[Part, ...], model: Plugin[ModelFile], kind: str, device: str | None = None
) -> str | None:
    """Why this stack cannot run on this model, kind of task and device; None where nothing speaks
    against it.

    Without a device (a prediction) only model and kind are looked at.
    """
    if parts[0].slot != "control" and kind not in model.spec.kinds:
        return f"model '{model.name}' does not do {kind}; it does {', '.join(model.spec.kinds)}"
    for part in parts:
        spec = merged_spec(part.plugin)
        if spec.disabled is not None:
            return f"method '{part.plugin.name}' is disabled: {spec.disabled}"
        facts = {"families": model.spec.family, "tasks": kind, "devices": device}
        for key, value in facts.items():
            allowed = getattr(spec.supports, key, None)
            if allowed is None or value is None or (part.slot == "control" and key == "families"):
                continue
            if value not in allowed:
                return (
                    f"method '{part.plugin.name}' supports {key} {', '.join(allowed)}; "
                    f"this is {value}"
                )
    return None
