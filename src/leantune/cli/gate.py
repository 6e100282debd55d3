"""`leantune gate`: whether a run ended as its config allows."""

import sys
from argparse import Namespace
from pathlib import Path

from leantune.cli.flags import CONFIG, config_and_output, flag
from leantune.spec.config import expand

FLAGS = (
    *CONFIG,
    flag("--output", type=Path),
    flag("--published", type=Path, default=Path("results"), help="compare with these results"),
)


def run(arguments: Namespace) -> int:
    from leantune.results import build, calibration, comparison  # import scipy: not for `--help`

    config, output = config_and_output(arguments)
    print(comparison.compare_published(output / "records", arguments.published))
    page = output / "report" / "index.html"
    if page.is_file():
        print(f"the report is in {page}")
    faults = build.not_allowed(output, expand(config), config["allowed_statuses"])
    if wrong := build.miscalibrated(output, config["calibration"]):
        faults += [f"{calibration.table(wrong)}\n{len(wrong)} checks of the meter failed"]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0
