"""`leantune choose`: the best of a method's trials."""

from argparse import Namespace
from pathlib import Path

from leantune.cli.flags import flag
from leantune.files.record import read_record, write_json
from leantune.run import trials

FLAGS = (
    flag("trials", nargs="+", type=Path, metavar="RECORD"),
    flag("--out", required=True, type=Path),
)


def run(arguments: Namespace) -> None:
    write_json(arguments.out, trials.choice([read_record(file) for file in arguments.trials]))
