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
    from leantune.results.load import load

    config, output = arguments.config_and_output()
    results = load(output, expand(config))
    print(comparison.compare_published(results.records, arguments.published))
    page = output / "report" / "index.html"
    if page.is_file():
        print(f"the report is in {page}")
    faults = build.not_allowed(results, config.allowed_statuses)
    checks = calibration.rows(results.entries, config.calibration.model_dump())
    if wrong := calibration.failed(checks):
        faults += [f"{calibration.table(wrong)}\n{len(wrong)} checks of the meter failed"]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0
