"""`leantune tune`: a cell for each of several settings."""

from leantune.cli.flags import CELL, MINUTES, Arguments, flag, path
from leantune.run import trials

FLAGS = (
    *CELL,
    flag(
        "--search",
        action="append",
        default=[],
        metavar="METHOD.PARAM=V,V,...",
        help="values to try; default: those under `search:` of the method's yaml",
    ),
    path("--output", default="runs/default", help="the run's folder (runs/default)"),
    flag(
        "--timeout",
        type=MINUTES,
        default=60.0,
        metavar="MINUTES",
        help="end a trial after this (60)",
    ),
)


def run(arguments: Arguments) -> None:
    settings, method = arguments.settings_and_method()
    grid = trials.parse_grid(arguments.search) or trials.default_grid(method)
    where = (arguments.seed, arguments.device)
    cells = trials.trials(arguments.model, arguments.task, method, grid, *where, settings)
    records = [trials.run(cell, arguments.output, arguments.timeout) for cell in cells]
    print(trials.describe(grid, cells, records))
