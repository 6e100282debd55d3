"""`leantune rerun`: failed cells are forgotten, so that the next run repeats them."""

import shlex

from leantune.cli.flags import CONFIG, Arguments, flag, path
from leantune.errors import BadInput
from leantune.files.record import STATUSES

FLAGS = (
    flag("--status", default="oom,timeout,error", help="comma-separated (oom,timeout,error)"),
    *CONFIG,
    path(
        "--output",
    ),
)


def run(arguments: Arguments) -> None:
    from leantune.results.publish import remove  # imports scipy: not for `--help`

    _, output = arguments.config_and_output()
    statuses = {*arguments.status.split(",")}
    known = {*STATUSES, "stale", "damaged"}
    if unknown := statuses - known:
        names = ", ".join(sorted(known))
        raise BadInput(f"--status: '{min(unknown)}' is no status; known: {names}")
    removed = remove(output, statuses)
    print("\n".join(map(str, removed)) or "no such record")
    if removed:
        grid = ["--config", f"grid={arguments.grid}"] if arguments.grid else []
        words = ["snakemake", "--cores", "all", "--configfile", str(arguments.config), *grid]
        print(f"run `{shlex.join(words)}` to repeat them")
