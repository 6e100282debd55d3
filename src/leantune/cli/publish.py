"""`leantune publish`: a run's records and tables become the published results."""

from argparse import Namespace
from pathlib import Path

from leantune.cli.flags import CONFIG, config_and_output, flag
from leantune.prediction import paper_scale
from leantune.spec import published_hashes
from leantune.spec.config import expand

FLAGS = (
    *CONFIG,
    flag("--output", type=Path),
    flag("--to", type=Path, default=Path("results")),
    flag("--readme", type=Path, help="also write the leaderboards into this Markdown file"),
)


def run(arguments: Namespace) -> None:
    from leantune.results import publish, readme  # import scipy: not for `--help`
    from leantune.results.claims import ledger

    config, output = config_and_output(arguments)
    ranked = publish.publish(output, arguments.to, expand(config), config["calibration"])
    if arguments.readme:
        readme.update_readme(arguments.readme, readme.markdown_leaderboard(ranked))
    paper_scale.publish(output, arguments.to)
    if config["claims"]:
        ledger.publish(output, arguments.to)
    published_hashes.write_for(arguments.to)
