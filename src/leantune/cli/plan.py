"""`leantune plan`: what a config needs, before it runs."""

import json
from dataclasses import asdict

from leantune.cli.flags import CONFIG, Arguments, bounded, flag, path
from leantune.files.text import write_text
from leantune.prediction import cards, cost
from leantune.spec.config import load_config

FLAGS = (
    *CONFIG,
    flag(
        "--gpu",
        default="A100-40GB",
        metavar="CARD",
        help="hours are those on this card (A100-40GB)",
    ),
    flag(
        "--efficiency",
        type=bounded(float, "be more than 0 and at most 1", lambda n: 0 < n <= 1),
        default=cards.EFFICIENCY,
        metavar="SHARE",
        help=f"of the card's peak that training reaches ({cards.EFFICIENCY})",
    ),
    flag(
        "--under", metavar="SIZE", help="leave out what needs more: 24GiB or a card (what CARD has)"
    ),
    flag("--json", action="store_true", help="print one JSON object"),
    path("--csv", metavar="FILE", help="also write the cells into this table"),
)


def run(arguments: Arguments) -> None:
    under = arguments.under
    if under in cards.USABLE_GIB:  # the context of CUDA is in a cell's need: take what a card has
        under = cards.usable_bytes(under)
    elif under is not None:
        under = cards.parse_bytes(under)
    config = load_config(arguments.config, arguments.grid)
    found = cost.estimate(config, arguments.gpu, arguments.efficiency, under)
    if arguments.csv:
        write_text(arguments.csv, cost.table(found))
    whole = {**asdict(found), "totals": found.totals()}
    print(json.dumps(whole) if arguments.json else cost.describe(found))
