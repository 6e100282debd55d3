"""`leantune publish`: a run's records and tables become the published results."""

from leantune.cli.flags import CONFIG, Arguments, path
from leantune.prediction import paper_scale
from leantune.spec import published_hashes
from leantune.spec.config import expand

FLAGS = (
    *CONFIG,
    path(
        "--output",
    ),
    path("--to", default="results"),
    path("--readme", help="also write the leaderboards into this Markdown file"),
)


def run(arguments: Arguments) -> None:
    from leantune.results import publish, readme  # import scipy: not for `--help`
    from leantune.results.claims import ledger

    config, output = arguments.config_and_output()
    ranked = publish.publish(output, arguments.to, expand(config), config.calibration.model_dump())
    if arguments.readme:
        readme.update_readme(arguments.readme, readme.markdown_leaderboard(ranked))
    paper_scale.publish(output, arguments.to)
    if config.claims:
        ledger.publish(output, arguments.to)
    published_hashes.write_for(arguments.to)
