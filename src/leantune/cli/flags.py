"""Flags as data: how one is written down, how its value is read, and those that several
subcommands share."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from leantune.errors import BadInput

if TYPE_CHECKING:
    from leantune.spec.schema import ConfigFile


class Arguments(Namespace):
    """The values of one call's flags, and what several subcommands make of them."""

    def config_and_output(self) -> tuple[ConfigFile, Path]:
        """Of the flags of a config: its content, and the run's folder."""
        from leantune.spec.config import load_config  # imports yaml: not for `--help`

        config = load_config(self.config, self.grid)
        return config, self.output or Path(config.output)

    def settings_and_method(self) -> tuple[dict[str, Any], str]:
        """Of the flags of a cell: the settings set by hand, and the stack with its point."""
        from leantune.spec.settings import parse_settings

        settings = parse_settings(self.settings)
        given = {"task.batch": self.batch, "task.length": self.seq, "task.dtype": self.dtype}
        settings |= {key: value for key, value in given.items() if value is not None}
        if self.point and ("+" in self.method or "@" in self.method):
            raise BadInput("--point goes with a single method; in a stack write METHOD@POINT")
        return settings, f"{self.method}@{self.point}" if self.point else self.method


class Flag(NamedTuple):
    """A flag or an argument: what `ArgumentParser.add_argument` is called with."""

    names: tuple[str, ...]
    words: dict[str, Any]
    instead: str  # of the flags with the same word here, only one may be given; "": of no others


def flag(*names: str, instead: str = "", **words: Any) -> Flag:
    return Flag(names, words, instead)


def path(*names: str, **words: Any) -> Flag:
    """A flag whose value is a file or folder; its default is written as text."""
    return flag(*names, type=Path, **words)


def bounded(what: type, rule: str, holds: Callable[[Any], bool]) -> Callable[[str], Any]:
    """Reads a number for which `holds` is true; `rule` says what it must be."""

    def value(text: str) -> Any:
        number = what(text)
        if not holds(number):
            raise ArgumentTypeError(f"'{text}' must {rule}")
        return number

    value.__name__ = what.__name__  # argparse's word where a value is wrong
    return value


def several(name: str, what: type[str] | type[int], **words: Any) -> Flag:
    """A flag that takes several values, `a,b` or given again; its value is a list."""

    def values(text: str) -> list[Any]:
        return [what(word) for word in text.split(",")]

    values.__name__ = f"list of {what.__name__}"  # argparse's word where a value is wrong
    return flag(name, type=values, action="extend", default=[], **words)


COUNT = bounded(int, "be more than 0", lambda n: n > 0)
MINUTES = bounded(float, "be more than 0", lambda n: n > 0)
NOT_NEGATIVE = bounded(int, "not be negative", lambda n: n >= 0)
GRID = flag("--grid", help="only this one of the config's grids")
CONFIG = (path("--config", default="config/config.yaml"), GRID)
TRUST = flag(
    "--trust-remote-code",
    action="append",
    default=[],
    metavar="MODEL",
    help="run the code beside the weights of this model, whose file must ask for it too",
)
DEVICE = flag("--device", choices=["auto", "cpu", "cuda"], default="auto")
SETTINGS = flag(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    dest="settings",
    help="METHOD.PARAM=VALUE or task.steps=VALUE",
)
CELL = (
    flag("--model", required=True),
    flag("--task", required=True),
    flag(
        "--method",
        required=True,
        metavar="STACK",
        help="lora, svfit@r64, vocab_pruning+came, ...",
    ),
    flag("--point", help="the named setting of a single method; the same as METHOD@POINT"),
    flag("--seed", type=int, default=0),
    flag("--batch", type=int, help="sequences per step (the task's)"),
    flag("--seq", type=int, help="tokens per sequence (the task's)"),
    flag(
        "--dtype",
        choices=["fp32", "bf16"],
        help="of the forward and backward pass (the task's)",
    ),
    DEVICE,
    SETTINGS,
    TRUST,
)
