"""`leantune tables`: records to CSV tables."""

from leantune.cli.flags import CONFIG, Arguments, flag, path
from leantune.spec.config import expand

FLAGS = (
    *CONFIG,
    path("--output", help="the run's folder; default: the config's `output`"),
    flag(
        "--across",
        action="append",
        default=[],
        metavar="FIELD",
        help="rank together what differs only in this field of the key: hardware, batch, ...",
    ),
)


def run(arguments: Arguments) -> None:
    from leantune.results.build import write_tables  # imports scipy: not for `--help`

    config, output = arguments.config_and_output()
    write_tables(output, expand(config), config.calibration.model_dump(), arguments.across)
