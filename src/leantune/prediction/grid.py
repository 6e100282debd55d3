"""Many predictions in one call: every model with every method, batch and length.

A combination that is illegal or unsupported is a row with its reason; a word that names nothing is
BadInput at once, before anything is predicted.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from leantune.errors import BadInput
from leantune.files.text import bytes_text, count_text, text_table
from leantune.prediction import cards
from leantune.prediction.ask import Ask, Row
from leantune.spec import plugins
from leantune.spec.stacks import parse_stack, plugin_names

SHAPE = ("model", "method", "batch", "seq", "dtype")
SIZES = ("peak_bytes", "reserved_bytes", "optimizer_state_bytes")


def asks(
    models: Sequence[str],
    methods: Sequence[str],
    batches: Sequence[int],
    lengths: Sequence[int],
    *,
    settings: Mapping[str, Any],
    **words: Any,
) -> list[Ask]:
    """Every combination, in the order given. A setting `METHOD.PARAM` goes to the stacks that hold
    the method. `words` are other fields of `Ask`.

    Raises BadInput for a name that nothing has, and for a batch or length below 1.
    """
    _check_names(models, methods, settings)
    if min([*batches, *lengths], default=1) < 1:
        raise BadInput("every batch and every sequence length must be at least 1")
    if words.get("task") is not None:
        plugins.get("tasks", words["task"])
    elif not batches or not lengths:
        raise BadInput("give --task, or --batch and --seq")
    return [
        Ask(model, method, batch, length, settings=_of(plugin_names(method), settings), **words)
        for model, method, batch, length in itertools.product(
            models, methods, batches or (None,), lengths or (None,)
        )
    ]


def _check_names(
    models: Sequence[str], methods: Sequence[str], settings: Mapping[str, Any]
) -> None:
    for model in models:
        plugins.get("models", model)
    for word in dict.fromkeys(word for stack in methods for word in stack.split("+")):
        # one word alone can only be wrong by its names
        parse_stack(word, "classification", _of(plugin_names(word), settings))
    unused = {k.partition(".")[0] for k in settings} - set().union(*map(plugin_names, methods))
    if unused:
        raise BadInput(f"a setting names '{min(unused)}', which is in none of the stacks")


def _of(methods: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.partition(".")[0] in methods}


def describe(rows: Sequence[Row]) -> str:
    """A line for each row, as a table for people."""
    columns = (*SHAPE, "peak", "reserved", "optimizer", "trainable", "fits on")
    lines = []
    for row in rows:
        known = ["unsupported", "", "", "", row["reason"]]
        if row["status"] == "ok":
            counted = count_text(row["parameters"]["trainable"])
            known = [*(bytes_text(row[n]) for n in SIZES), counted, cards.smallest(row["fits"])]
        lines.append([*(row[name] for name in SHAPE), *known])
    return text_table(columns, lines)
