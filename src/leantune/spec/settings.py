"""Settings, `METHOD.PARAM=VALUE`: from the command line, of a record, for a stack."""

import argparse
import re
import shlex
from collections.abc import Mapping
from typing import Any

from leantune.errors import BadInput
from leantune.files.parse import parse_yaml
from leantune.files.record import Record
from leantune.spec.stacks import parse_stack


def recorded_settings(record: Record) -> dict[str, Any]:
    """What a record's cell was given beside its own words: `model` (that of the command, which a
    control's row does not name), `set` (every `--set` by its key) and `flatness`.

    Records from before `cell.settings` have it in their command only. Raises BadInput for one that
    cannot be read.
    """
    if "settings" in record["cell"]:
        return dict(record["cell"]["settings"])
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("--model", default=record["cell"]["model"])
    flags.add_argument("--set", action="append", default=[])
    flags.add_argument("--flatness", type=int, default=0)
    try:
        told, _ = flags.parse_known_args(shlex.split(record["provenance"]["command"]))
    except (ValueError, argparse.ArgumentError) as error:
        raise BadInput(
            f"the record's command cannot be read ({error}); run its cell again"
        ) from error
    return {"model": told.model, "set": parse_settings(told.set), "flatness": told.flatness}


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
