"""Many predictions in one call: every model with every method, batch and length, one row each.

A combination that is illegal or unsupported is a row with its reason; a word that names nothing is
BadInput at once, before anything is predicted.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from leantune.errors import BadInput, Unsupported
from leantune.files.text import bytes_text, count_text, text_table
from leantune.prediction import cards
from leantune.spec import plugins
from leantune.spec.stacks import parse_stack, plugin_names

Row = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """One prediction to make. `words` are the other keyword arguments of `predict.predict_names`."""

    model: str
    method: str
    batch: int | None  # None: the task's
    length: int | None
    words: Mapping[str, Any]


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
    the method.

    Raises BadInput for a name that nothing has, and for a batch or length below 1.
    """
    _check_names(models, methods, settings)
    if min([*batches, *lengths], default=1) < 1:
        raise BadInput("every batch and every sequence length must be at least 1")
    if words.get("task") is not None:
        plugins.get("tasks", words["task"])
    elif not batches or not lengths:
        raise BadInput("give --task, or --batch and --seq")
    found = []
    shapes = itertools.product(batches or (None,), lengths or (None,))
    for (model, method), (batch, length) in itertools.product(
        itertools.product(models, methods), shapes
    ):
        own = {k: v for k, v in settings.items() if k.partition(".")[0] in plugin_names(method)}
        found.append(Ask(model, method, batch, length, {**words, "settings": own}))
    return found


def _check_names(
    models: Sequence[str], methods: Sequence[str], settings: Mapping[str, Any]
) -> None:
    for model in models:
        plugins.get("models", model)
    for word in dict.fromkeys(word for stack in methods for word in stack.split("+")):
        own = {k: v for k, v in settings.items() if k.partition(".")[0] == word.partition("@")[0]}
        parse_stack(word, "classification", own)  # one word alone can only be wrong by its names
    unused = {k.partition(".")[0] for k in settings} - set().union(*map(plugin_names, methods))
    if unused:
        raise BadInput(f"a setting names '{min(unused)}', which is in none of the stacks")


def answer(ask: Ask) -> Row:
    """The prediction with `status` ok; or model, method, batch, seq, dtype, `status` unsupported
    and the reason."""
    from leantune.prediction import one

    try:
        found = one.predict_names(
            ask.model, ask.method, batch=ask.batch, length=ask.length, **ask.words
        )
    except (BadInput, Unsupported) as error:
        shape = {"batch": ask.batch, "seq": ask.length, "dtype": ask.words.get("dtype") or "fp32"}
        return {
            "model": ask.model,
            "method": ask.method,
            **shape,
            "status": "unsupported",
            "reason": str(error),
        }
    return {**found, "status": "ok", "reason": None}


@contextmanager
def progress(total: int) -> Iterator[Callable[[Row], None]]:
    """What to call with each row: a bar with the time left on a terminal, elsewhere a line each, on
    stderr."""
    started = time.monotonic()
    with tqdm(total=total, unit="prediction", disable=None, dynamic_ncols=True) as bar:
        done = 0

        def told(row: Row) -> None:
            nonlocal done
            done += 1
            name = f"{row['model']} {row['method']}"
            bar.set_postfix_str(name, refresh=False)
            bar.update()
            if bar.disable:
                left = (time.monotonic() - started) / done * (total - done)
                what = bytes_text(row["peak_bytes"]) if row["status"] == "ok" else row["status"]
                print(
                    f"{done} of {total}: {name}: {what}, {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )

        yield told


def describe(rows: Sequence[Row]) -> str:
    """A line for each row, as a table for people."""
    columns = (
        "model",
        "method",
        "batch",
        "seq",
        "dtype",
        "peak",
        "reserved",
        "optimizer",
        "trainable",
        "fits on",
    )
    return text_table(columns, [_line(row) for row in rows])


def _line(row: Row) -> list[Any]:
    shape = [row[name] for name in ("model", "method", "batch", "seq", "dtype")]
    if row["status"] != "ok":
        return [*shape, row["status"], "", "", "", row["reason"]]
    sizes = [
        bytes_text(row[name]) for name in ("peak_bytes", "reserved_bytes", "optimizer_state_bytes")
    ]
    return [*shape, *sizes, count_text(row["parameters"]["trainable"]), cards.smallest(row["fits"])]
