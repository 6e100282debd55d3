"""`leantune predict`: peak memory without a GPU, of one shape or of a grid of them."""

import gc
import json
from collections.abc import Callable
from typing import Any

from leantune.cli.flags import TRUST, Arguments, flag, several
from leantune.errors import BadInput
from leantune.prediction import cards, grid
from leantune.prediction.ask import Ask, answers
from leantune.spec.settings import parse_settings

FLAGS = (
    several("--model", str, required=True, help="one or more, comma-separated"),
    several(
        "--method",
        str,
        required=True,
        metavar="STACK[@POINT]",
        help="one or more, comma-separated",
    ),
    flag("--task", help="take batch, length and head from this task"),
    several("--batch", int, help="sequences per step, one or more"),
    several("--seq", int, help="tokens per sequence, one or more"),
    flag(
        "--head", choices=["classification", "mlm", "pretraining", "causal-lm", "span", "seq2seq"]
    ),
    flag("--dtype", choices=["fp32", "bf16"], help="of the weights (the task's training, or fp32)"),
    flag("--set", action="append", default=[], metavar="METHOD.PARAM=VALUE", dest="settings"),
    flag(
        "--under", metavar="SIZE", help="8GiB or a card (T4, L4, A100-80, ...): what fits into it"
    ),
    flag("--json", action="store_true", help="print one JSON object, or a list of them"),
    TRUST,
)


def run(arguments: Arguments) -> None:
    gc.disable()  # collecting while torch and transformers are imported costs one to two seconds
    from leantune.prediction import one

    gc.freeze()
    gc.enable()
    given = (arguments.model, arguments.method, arguments.batch, arguments.seq)
    words: dict[str, Any] = {
        "task": arguments.task,
        "head": arguments.head,
        "dtype": arguments.dtype,
        "settings": parse_settings(arguments.settings),
    }
    found: Any
    describe: Callable[[Any], str]
    if max(map(len, given)) > 1:
        if arguments.under:
            raise BadInput(
                "--under searches for one model, method, batch and length; give one of each"
            )
        found, describe = answers(grid.asks(*given, **words)), grid.describe
    else:
        batch, length = (next(iter(values), None) for values in given[2:])
        ask = Ask(arguments.model[0], arguments.method[0], batch, length, **words)
        if arguments.under:
            found = one.largest_shapes(cards.parse_bytes(arguments.under), ask)
            describe = one.describe_shapes
        else:
            found, describe = one.predict(ask), one.describe
    print(json.dumps(found) if arguments.json else describe(found))
