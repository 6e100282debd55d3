"""`leantune schema`: what a YAML file may hold, for an editor that checks it as it is written."""

import json

from leantune.cli.flags import Arguments, flag

FLAGS = (flag("kind", choices=["config", "method", "task", "model"], help="of YAML file"),)


def run(arguments: Arguments) -> None:
    from leantune.spec.schema import schema  # imports pydantic: not for `--help`

    print(json.dumps(schema(arguments.kind), indent=1))
