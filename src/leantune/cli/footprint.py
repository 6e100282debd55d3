"""`leantune footprint`: predictions at the papers' scale."""

from leantune.cli.flags import CONFIG, Arguments, path
from leantune.prediction import paper_scale

FLAGS = (
    *CONFIG,
    path("--output", help="the run's folder; default: the config's `output`"),
)


def run(arguments: Arguments) -> None:
    config, output = arguments.config_and_output()
    paper_scale.write(output, paper_scale.expand(config))
