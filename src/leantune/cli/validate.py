"""`leantune validate`: plugin and config files against their schemas."""

from argparse import Namespace
from itertools import chain
from pathlib import Path

from leantune.cli.flags import flag
from leantune.errors import BadInput
from leantune.files import parse
from leantune.spec import plugins

FLAGS = (
    flag(
        "paths",
        nargs="*",
        type=Path,
        help="YAML files or folders; default: every known plugin",
    ),
)


def run(arguments: Namespace) -> None:
    files = chain.from_iterable(
        sorted(path.rglob("*.yaml")) if path.is_dir() else [path] for path in arguments.paths
    )
    if not arguments.paths:
        kinds = ("methods", "tasks", "models")
        files = chain.from_iterable(plugins.discover(kind).values() for kind in kinds)
    for file in files:
        _check(file)
        print(f"ok  {file}")


def _check(file: Path) -> None:
    from leantune.spec.schema import FILES

    spec = parse.read_yaml(file)
    schema = {"method.yaml": "method", "task.yaml": "task"}.get(file.name)
    if schema is None and "architecture" in spec:
        schema = "model"
    elif schema is None and {"cells", "grids"} & {*spec}:
        schema = "config"
    if schema is None:
        raise BadInput(
            f"{file}: neither a method.yaml, a task.yaml, a model nor a config; "
            "nothing to check it by"
        )
    parse.check(spec, FILES[schema], file)
    if schema in ("method", "task") and spec["name"] != file.parent.name:
        raise BadInput(
            f"{file}: key 'name' is '{spec['name']}' but the folder is called '{file.parent.name}'"
        )
