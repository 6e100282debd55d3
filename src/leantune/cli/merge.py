"""`leantune merge`: records from another machine join the results."""

from leantune.cli.flags import Arguments, flag, path

FLAGS = (
    path("folder", metavar="FOLDER", help="what was sent: a folder with records/ in it"),
    path("--into", default="results", help="the results that they join (results)"),
    flag(
        "--allow-dirty",
        action="store_true",
        help="also take records of uncommitted files, or without a commit",
    ),
    flag("--uncalibrated", action="store_true", help="also take records without the control cells"),
)


def run(arguments: Arguments) -> int:
    from leantune.results.merge import merge  # imports scipy: not for `--help`

    judged = merge(
        arguments.folder,
        arguments.into,
        allow_dirty=arguments.allow_dirty,
        uncalibrated=arguments.uncalibrated,
    )
    print(*judged, sep="\n", end="\n" if judged else "")
    return 1 if any(one.verdict == "refused" for one in judged) else 0
