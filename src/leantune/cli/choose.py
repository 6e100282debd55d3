"""`leantune choose`: the best of a method's trials."""

from leantune.cli.flags import Arguments, path
from leantune.files.record import read_record, write_json
from leantune.run import trials

FLAGS = (
    path("trials", nargs="+", metavar="RECORD"),
    path(
        "--out",
        required=True,
    ),
)


def run(arguments: Arguments) -> None:
    write_json(arguments.out, trials.choice([read_record(file) for file in arguments.trials]))
