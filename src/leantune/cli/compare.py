"""`leantune compare`: step times of methods that take turns."""

from leantune.cli.flags import COUNT, DEVICE, SETTINGS, TRUST, Arguments, flag, path
from leantune.files.record import write_json
from leantune.machine.gpus import resolve_device
from leantune.run import trials
from leantune.spec.settings import parse_settings

FLAGS = (
    flag("--model", required=True),
    flag("--task", required=True),
    flag("--methods", nargs="+", required=True, metavar="STACK", help="the first is compared with"),
    flag("--rounds", type=COUNT, default=3, help="how often each takes its turn (3)"),
    DEVICE,
    SETTINGS,
    path("--tuning", nargs="*", default=[], metavar="FILE"),
    path("--out", metavar="FILE", help="also write what was measured here, as JSON"),
    TRUST,
)


def run(arguments: Arguments) -> None:
    from leantune.run import step_times  # imports scipy: `--help` must not wait for it

    found = step_times.compare(
        arguments.model,
        arguments.task,
        arguments.methods,
        rounds=arguments.rounds,
        device=resolve_device(arguments.device),
        settings=parse_settings(arguments.settings),
        choices=[trials.read_choice(file) for file in arguments.tuning],
    )
    if arguments.out:
        write_json(arguments.out, found)
    print(step_times.describe(found))
