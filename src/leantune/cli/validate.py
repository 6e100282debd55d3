"""`leantune validate`: plugin and config files against their schemas."""

from itertools import chain
from pathlib import Path

from leantune.cli.flags import Arguments, path
from leantune.errors import BadInput
from leantune.files.parse import check, read_yaml
from leantune.spec import plugins

FLAGS = (path("paths", nargs="*", help="YAML files or folders; default: every known plugin"),)


def run(arguments: Arguments) -> None:
    named = (sorted(one.rglob("*.yaml")) if one.is_dir() else [one] for one in arguments.paths)
    known = (plugins.discover(kind).values() for kind in ("methods", "tasks", "models"))
    for file in chain.from_iterable(named if arguments.paths else known):
        _check(file)
        print(f"ok  {file}")


def _check(file: Path) -> None:
    from leantune.spec.schema import ConfigFile  # imports pydantic: not for `--help`

    content = read_yaml(file)
    if file.name in ("method.yaml", "task.yaml"):
        plugins.read(f"{file.stem}s", file)
    elif "architecture" in content:
        plugins.read("models", file)
    elif {"cells", "grids"} & {*content}:
        check(content, ConfigFile, file)
    else:
        raise BadInput(
            f"{file}: neither a method.yaml, a task.yaml, a model nor a config; "
            "nothing to check it by"
        )
