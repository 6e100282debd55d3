"""`leantune report`: the results as a page, or its charts as files."""

from argparse import Namespace
from pathlib import Path

from leantune.cli.flags import flag

FLAGS = (
    flag(
        "--results", type=Path, default=Path("results"), help="a run's folder, or results (results)"
    ),
    flag("--out", type=Path, help="where the page goes (report/ in the results)"),
    flag(
        "--figures", type=Path, metavar="DIR", help="write only the charts, for a paper, into DIR"
    ),
)


def run(arguments: Namespace) -> None:
    from leantune import report  # imports altair: not for `--help`

    results = arguments.results
    if arguments.figures:
        files = report.write_figures(results, arguments.figures)
        print("\n".join(map(str, files)) or f"{results} holds nothing to draw; run cells first")
    else:
        print(report.write_report(results, arguments.out or results / "report"))
