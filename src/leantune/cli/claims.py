"""`leantune claims`: what papers claim against what was measured."""

from argparse import Namespace
from pathlib import Path

from leantune.cli.flags import GRID, config_and_output, flag
from leantune.errors import BadInput

FLAGS = (
    flag(
        "methods", nargs="*", metavar="METHOD", help="only these; default: every method with claims"
    ),
    flag("--config", instead="place", type=Path, default=Path("config/config.yaml")),
    GRID,
    flag(
        "--records",
        instead="place",
        type=Path,
        metavar="FOLDER",
        help="a folder of records, such as results/records",
    ),
    flag(
        "--output",
        type=Path,
        help="the run's folder; default: the config's, or the one above FOLDER",
    ),
)


def run(arguments: Namespace) -> None:
    from leantune.results.claims import ledger  # imports scipy: not for `--help`

    records = arguments.records
    if records is None:
        _, output = config_and_output(arguments)
        records = output / "records"
    elif records.is_dir():
        output = arguments.output or records.parent
    else:
        raise BadInput(f"--records {records} is no folder; name one that holds records")
    print(ledger.describe(ledger.write(records, output, arguments.methods)))
