"""`leantune footprint`: predictions at the papers' scale."""

from argparse import Namespace
from pathlib import Path

from leantune.cli.flags import CONFIG, config_and_output, flag
from leantune.prediction import paper_scale

FLAGS = (
    *CONFIG,
    flag("--output", type=Path, help="the run's folder; default: the config's `output`"),
)


def run(arguments: Namespace) -> None:
    config, output = config_and_output(arguments)
    paper_scale.write(output, paper_scale.expand(config))
