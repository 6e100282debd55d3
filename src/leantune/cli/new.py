"""`leantune new`: a method or task folder that validates and runs as it is, to be edited from
there."""

import re
import shlex
from pathlib import Path
from string import Template

from leantune.cli.flags import Arguments, flag, path
from leantune.errors import BadInput
from leantune.spec import plugins

FLAGS = (
    flag("kind", choices=["method", "task"]),
    flag("name"),
    path("--at", metavar="DIR", help="the plugin root (default: this checkout)"),
)
TEMPLATES = Path(__file__).with_name("templates")


def run(arguments: Arguments) -> None:
    root = arguments.at or plugins.checkout()
    if root is None:
        raise BadInput(
            "give --at DIR, a folder of your own: LeanTune is installed here and is no place for it"
        )
    folder = create(arguments.kind, arguments.name, root)
    print(f"made {folder}; edit it, then: leantune validate {shlex.quote(str(folder))}")
    if root.absolute() not in plugins.roots():
        print(f"to use it: export LEANTUNE_PLUGINS={shlex.quote(str(root.absolute()))}")


def create(kind: str, name: str, root: Path) -> Path:
    """Write the folder of a new method or task below `root`. Raises BadInput where it exists or the
    name is bad."""
    pattern = r"[a-z][a-z0-9_]*" if kind == "method" else r"[a-z][a-z0-9-]*"
    if not re.fullmatch(pattern, name):
        raise BadInput(f"'{name}' cannot name a {kind}: use {pattern}")
    folder = root / f"{kind}s" / name
    if folder.exists():
        raise BadInput(f"{folder} exists already; choose another name or edit it")
    title = name.replace("_", " ").capitalize()
    words = {"name": name, "title": title, "cls": name.title().replace("_", "")}
    folder.mkdir(parents=True)
    for template in (TEMPLATES / kind).iterdir():
        text = Template(template.read_text(encoding="utf-8")).substitute(words)
        (folder / template.stem).write_text(text, encoding="utf-8")  # without the last suffix
    return folder
