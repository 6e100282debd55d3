"""`leantune claims`: what papers claim against what was measured."""

from leantune.cli.flags import GRID, Arguments, flag, path
from leantune.errors import BadInput

FLAGS = (
    flag(
        "methods", nargs="*", metavar="METHOD", help="only these; default: every method with claims"
    ),
    path("--config", instead="place", default="config/config.yaml"),
    GRID,
    path(
        "--records",
        instead="place",
        metavar="FOLDER",
        help="a folder of records, such as results/records",
    ),
    path(
        "--output",
        help="the run's folder; default: the config's, or the one above FOLDER",
    ),
)


def run(arguments: Arguments) -> None:
    from leantune.results.claims import ledger  # imports scipy: not for `--help`

    records = arguments.records
    if records is None:
        _, output = arguments.config_and_output()
        records = output / "records"
    elif records.is_dir():
        output = arguments.output or records.parent
    else:
        raise BadInput(f"--records {records} is no folder; name one that holds records")
    print(ledger.describe(ledger.write(records, output, arguments.methods)))
