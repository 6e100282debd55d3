"""`leantune tables`: records to CSV tables."""

from argparse import Namespace
from pathlib import Path

from leantune.cli.flags import CONFIG, config_and_output, flag
from leantune.spec.config import expand

FLAGS = (
    *CONFIG,
    flag("--output", type=Path, help="the run's folder; default: the config's `output`"),
    flag(
        "--across",
        action="append",
        default=[],
        metavar="FIELD",
        help="rank together what differs only in this field of the key: hardware, batch, ...",
    ),
)


def run(arguments: Namespace) -> None:
    from leantune.results.build import write_tables  # imports scipy: not for `--help`

    config, output = config_and_output(arguments)
    write_tables(output, expand(config), config["calibration"], arguments.across)
