"""`leantune gate`: whether a run ended as its config allows."""

import sys

from leantune.cli.flags import CONFIG, Arguments, path
from leantune.spec.config import expand

FLAGS = (
    *CONFIG,
    path(
        "--output",
    ),
    path("--published", default="results", help="compare with these results"),
)


def run(arguments: Arguments) -> int:
    from leantune.results import build, calibration, comparison  # import scipy: not for `--help`

    config, output = arguments.config_and_output()
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
