"""`leantune run`: one cell, and its record."""

from functools import partial

from leantune.cli.flags import CELL, COUNT, MINUTES, NOT_NEGATIVE, Arguments, flag, path
from leantune.errors import BadInput
from leantune.run import supervisor, trials
from leantune.spec.cells import resolve_cell
from leantune.spec.trials import chosen_settings

FLAGS = (
    *CELL,
    path("--out", required=True, metavar="FILE", help="where the record goes"),
    flag("--trial", type=int, metavar="N", help="a tuning trial: scored on the validation split"),
    flag(
        "--timeout",
        type=MINUTES,
        default=60.0,
        metavar="MINUTES",
        help="end the cell after this (60)",
    ),
    flag(
        "--attempt",
        type=COUNT,
        default=1,
        help="which attempt of the scheduler this is (1)",
    ),
    flag(
        "--attempts",
        type=COUNT,
        default=1,
        help="how many it has; before the last, oom exits 75 (1)",
    ),
    flag("--threads", type=COUNT, default=1, help="CPU threads of torch (1)"),
    flag("--force", action="store_true", help="run even where the prediction says it does not fit"),
    flag(
        "--limit-mb",
        type=NOT_NEGATIVE,
        default=0,
        metavar="MIB",
        help="do not start where the prediction needs more (0: what the machine has)",
    ),
    path("--export", metavar="FOLDER", help="save the trained model here"),
    flag(
        "--flatness",
        type=NOT_NEGATIVE,
        default=0,
        metavar="DRAWS",
        help="random changes after training that tell how flat the minimum is (0)",
    ),
    path(
        "--tuning",
        nargs="*",
        default=[],
        metavar="FILE",
        help="settings chosen by `leantune choose` for parts of the stack",
    ),
    flag("--hardware", metavar="NAME", help="refuse to run on a machine of another kind"),
)


def run(arguments: Arguments) -> int:
    settings, method = arguments.settings_and_method()
    resolved = partial(
        resolve_cell,
        arguments.model,
        arguments.task,
        method,
        arguments.seed,
        trial=arguments.trial,
        device=arguments.device,
        flatness=arguments.flatness,
    )
    cell, tuning = resolved(overrides=settings), None
    if arguments.hardware and arguments.hardware != cell.hardware:
        raise BadInput(
            f"the run was planned for '{arguments.hardware}', this machine is '{cell.hardware}'; "
            "correct `hardware:` in the config, or let the scheduler choose among machines of one "
            "kind"
        )
    if arguments.tuning:
        choices = [trials.read_choice(file) for file in arguments.tuning]
        # Settings given by hand come last: they win over what was chosen.
        cell = resolved(overrides={**chosen_settings(cell, choices), **settings})
        tuning = {choice["method"]: choice for choice in choices}
    return supervisor.run(
        cell,
        arguments.out,
        timeout_minutes=arguments.timeout,
        attempt=arguments.attempt,
        attempts=arguments.attempts,
        threads=arguments.threads,
        force=arguments.force,
        limit=arguments.limit_mb * 2**20 or None,
        export=arguments.export,
        tuning=tuning,
    )
