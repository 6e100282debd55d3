"""Settings as words, `METHOD.PARAM=VALUE`: from the command line, from a record's command, for a
stack."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from leantune.errors import BadInput
from leantune.files.parse import parse_yaml
from leantune.spec.stacks import parse_stack


def command_flags(command: str) -> list[tuple[str, str]]:
    """The flags and values of a record's command. Raises BadInput for one that cannot be read."""
    try:
        words = shlex.split(command)[2:]
    except ValueError as error:
        raise BadInput(
            f"the record's command cannot be read ({error}); run its cell again"
        ) from error
    return list(zip(words[::2], words[1::2], strict=False))


def command_settings(command: str) -> dict[str, Any]:
    """What a record's command sets (`--set`)."""
    return parse_settings([value for flag, value in command_flags(command) if flag == "--set"])


def parse_settings(words: list[str]) -> dict[str, Any]:
    """`["lora.rank=4", "task.steps=10"]` as a mapping; values are YAML scalars or lists."""
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*", key):
            raise BadInput(
                f"--set '{word}' is not of the form METHOD.PARAM=VALUE or task.KEY=VALUE"
            )
        settings[key] = parse_yaml(value, f"--set '{word}'")
        if isinstance(settings[key], str) and re.fullmatch(
            r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", settings[key]
        ):
            settings[key] = float(settings[key])  # YAML 1.1 reads 1e-3 as a string
    return settings


def settings_of_stack(settings: Mapping[str, Any], method: str, kind: str) -> dict[str, Any]:
    """Those of the settings that concern a stack: the task's and those of its parts."""
    parts = parse_stack(method, kind)
    stacked = {"task", *(part.plugin.name for part in parts)}  # `came` trains with `full`'s rate
    return {key: value for key, value in settings.items() if key.partition(".")[0] in stacked}
