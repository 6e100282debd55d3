"""`leantune report`: the results as a page, or its charts as files."""

from leantune.cli.flags import Arguments, path

FLAGS = (
    path("--results", default="results", help="a run's folder, or results (results)"),
    path("--out", help="where the page goes (report/ in the results)"),
    path("--figures", metavar="DIR", help="write only the charts, for a paper, into DIR"),
)


def run(arguments: Arguments) -> None:
    from leantune import report  # imports vl_convert: not for `--help`

    results = arguments.results
    if arguments.figures:
        files = report.write_figures(results, arguments.figures)
        print("\n".join(map(str, files)) or f"{results} holds nothing to draw; run cells first")
    else:
        print(report.write_report(results, arguments.out or results / "report"))
