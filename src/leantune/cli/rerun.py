"""`leantune rerun`: failed cells are forgotten, so that the next run repeats them."""

import shlex
from argparse import Namespace
from pathlib import Path

from leantune.cli.flags import CONFIG, config_and_output, flag
from leantune.errors import BadInput
from leantune.files.record import STATUSES
from leantune.spec.config import expand

FLAGS = (
    flag("--status", default="oom,timeout,error", help="comma-separated (oom,timeout,error)"),
    *CONFIG,
    flag("--output", type=Path),
)


def run(arguments: Namespace) -> None:
    from leantune.results.publish import remove  # imports scipy: not for `--help`

    config, output = config_and_output(arguments)
    statuses = {*arguments.status.split(",")}
    known = {*STATUSES, "stale", "damaged"}
    if unknown := statuses - known:
        names = ", ".join(sorted(known))
        raise BadInput(f"--status: '{min(unknown)}' is no status; known: {names}")
    removed = remove(output, expand(config), statuses)
    print("\n".join(map(str, removed)) or "no such record")
    if removed:
        grid = ["--config", f"grid={arguments.grid}"] if arguments.grid else []
        words = ["snakemake", "--cores", "all", "--configfile", str(arguments.config), *grid]
        print(f"run `{shlex.join(words)}` to repeat them")
