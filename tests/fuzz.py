"""Odd input for everything that reads what others wrote: `python tests/fuzz.py --inputs N [--out
FILE] [--seed S]`.

Each input goes through the public reader it is meant for, and on from there as far as a real file
would. The only allowed answer to a bad one is `BadInput`; anything else is a crash, told on stderr
with the input that caused it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from sample_records import ok, place

from leantune import tabfiles
from leantune.errors import BadInput
from leantune.files import record
from leantune.files.parse import check, read_yaml
from leantune.files.text import csv_text
from leantune.prediction import cards
from leantune.results import build, calibration, readme
from leantune.results.claims import expressions
from leantune.results.columns import names
from leantune.results.comparable import Entry
from leantune.results.comparison import compare_records
from leantune.results.load import timed
from leantune.run import trials
from leantune.spec import plugins as registry
from leantune.spec.cells import STEP_TIME_KEY, cell_of_record, resolve_cell
from leantune.spec.config import expand, load_config
from leantune.spec.schema import FILES
from leantune.spec.settings import parse_settings
from leantune.spec.trials import chosen_settings, planned_trials

CHUNK = 500  # inputs for one hypothesis run: each starts from a seed of its own

# ------------------------------------------------------------------ what inputs are made of

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [
            0,
            -1,
            10**400,
            1e308,
            -1e308,
            1e-320,
            "",
            "0",
            "$(id)",
            "; rm -rf /",
            "a\nb",
            "\0",
            "../x",
            "{x}",
        ]
    ),
    st.floats(),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
YAML_WORDS = st.sampled_from(
    [
        "a: ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "!!timestamp ",
        "!!python/object/apply:os.system ",
        "!!float ",
        "!!bool ",
        "!!binary ",
        "2020-13-45",
        "1e-3",
        ".nan",
        "'",
        '"',
        "|\n",
        ">\n",
        "\n",
        "\n  ",
        "\t",
        ": ",
        "? ",
        "---\n",
        "...\n",
        "%YAML 9.9\n",
        "#",
        "0x",
        "1:99:99",
        "9" * 5000,
        "name: ",
        "params: ",
        "cells: ",
    ]
)


def yaml_texts(examples: list[str]) -> st.SearchStrategy[str]:
    """Pieces of YAML in any order, and real files with such pieces put somewhere into them."""
    pieces = st.lists(YAML_WORDS | st.text(max_size=5), max_size=12).map("".join)

    def spliced(parts: tuple[str, int, int, str]) -> str:
        text, start, length, piece = parts
        start %= len(text)
        return text[:start] + piece + text[start + length :]

    real = st.tuples(st.sampled_from(examples), st.integers(0, 5000), st.integers(0, 20), pieces)
    return pieces | real.map(spliced)


def paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a tree of mappings and lists."""
    yield path
    inside = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in inside:
        yield from paths(value, (*path, key))


@dataclass(frozen=True)
class Changed:
    """One to three values of a good tree replaced, removed or joined by another key."""

    examples: list[Any]

    def strategy(self) -> st.SearchStrategy[Any]:
        known = [(example, [path for path in paths(example) if path]) for example in self.examples]
        change = st.tuples(
            st.integers(0, 10**6), st.sampled_from(["replace", "replace", "remove", "add"]), values
        )
        return st.tuples(st.sampled_from(known), st.lists(change, min_size=1, max_size=3)).map(
            self._changed
        )

    @staticmethod
    def _changed(
        drawn: tuple[tuple[Any, list[tuple[Any, ...]]], list[tuple[int, str, Any]]],
    ) -> Any:
        (example, known), changes = drawn
        tree = copy.deepcopy(example)
        for number, how, value in changes:
            *way, last = known[number % len(known)]
            with contextlib.suppress(
                KeyError, IndexError, TypeError
            ):  # an earlier change took the place away
                at = tree
                for key in way:
                    at = at[key]
                if how == "remove":
                    del at[last]
                elif how == "add" and isinstance(at, dict):
                    at[str(value)[:10]] = value
                else:
                    at[last] = value
        return tree


# ------------------------------------------------------------------ readers


def read_plugin_yaml(text: str, folder: Path) -> None:
    file = folder / "method.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    spec = read_yaml(file)
    for schema in ("method", "task", "model", "config"):
        with contextlib.suppress(BadInput):
            check(spec, FILES[schema], file)
    expand(load_config(file))


def read_config(config: Any, folder: Path) -> None:
    loaded = load_config(config if isinstance(config, dict) else {})
    expand(loaded)
    planned_trials(loaded)


def read_plugin(spec: Any, folder: Path) -> None:
    kind, spec = spec
    file = folder / ("x.yaml" if kind == "models" else f"x/{kind[:-1]}.yaml")
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    check(read_yaml(file), FILES[kind[:-1]], file)


def read_words(words: tuple[str, list[str]], folder: Path) -> None:
    method, assignments = words
    overrides = parse_settings(assignments)
    cell = resolve_cell("minilm-l6", "sentiment", method, 0, device="cpu", overrides=overrides)
    assert cell.record_path.count("/") == 5
    cell.command()


def read_size(text: str, folder: Path) -> None:
    cards.parse_bytes(text)


def read_record_bytes(data: bytes, folder: Path) -> None:
    (folder / "record.json").write_bytes(data)
    record.read_record(folder / "record.json")


def read_records(tree: Any, folder: Path) -> None:
    """A record that is odd but readable goes through every table, beside two good ones."""
    file = folder / "record.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    found = record.read_record(file)
    with contextlib.suppress(BadInput):
        cell_of_record(found)
    others = [ok("full", 0, quality=0.7, **SCORES), ok("lora", 1, quality=0.8, **SCORES)]
    entries = [Entry(place(one), one["status"], one) for one in (found, *others)]
    entries = timed(entries, folder / "timing")
    tables = build.tables(entries)
    for name, rows in tables.items():
        csv_text(rows, names(name))
    readme.markdown_leaderboard(tables["leaderboard"])
    compare_records([found], others)
    build.tables(entries, across=["hardware", "batch"])


def read_choice(tree: Any, folder: Path) -> None:
    file = folder / "chosen.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    cell = resolve_cell("minilm-l6", "sentiment", "lora", 0, device="cpu")
    chosen = chosen_settings(cell, [trials.read_choice(file)])
    resolve_cell("minilm-l6", "sentiment", "lora", 0, device="cpu", overrides=chosen)


def read_comparison(tree: Any, folder: Path) -> None:
    (folder / "compared").mkdir(exist_ok=True)
    (folder / "compared" / "one.json").write_text(json.dumps(tree), encoding="utf-8")
    row = ok("lora", hashes={"method": "m", "task": "t", "model": "w"})
    timed([Entry(place(row), "ok", row)], folder / "compared")


def read_expression(text: str, folder: Path) -> None:
    def gain(task: str, first: str, second: str = "full") -> expressions.Value:
        return expressions.Value(0.1, 0.0, 0.2)

    def smallest(evaluate: Callable[[str], expressions.Value], tasks: Any) -> expressions.Value:
        return min(
            (evaluate(task) for task in tasks or ["sentiment"]), key=lambda value: value.mean
        )

    expressions.Language({"gain": gain}, {"min_over_tasks": smallest}).evaluate(text)


def read_tab(data: bytes, folder: Path) -> None:
    (folder / "texts.tab").write_bytes(data)
    tabfiles.read_tab(folder / "texts.tab", {"text": "text", "label": "class"})


# ------------------------------------------------------------------ which inputs go where

ROOT = registry.roots()[0]
SCORES = {"predictions": [0.0, 1.0, 1.0, 0.0], "references": [0.0, 1.0, 0.0, 0.0]}
CONFIG = {
    "output": "out",
    "device": "cpu",
    "seeds": [0, 1],
    "trials": 2,
    "timeout_minutes": 5,
    "set": {"task.steps": 4, "lora.rank": 2},
    "calibration": {"limit": 0.1},
    "timing": [
        {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["full", "lora"], "rounds": 2}
    ],
    "cells": [
        {
            "models": ["minilm-l6"],
            "tasks": ["sentiment"],
            "methods": ["lora", "svfit@r64+came"],
            "set": {"came.lr": 0.1},
        },
        {
            "models": ["minilm-l6"],
            "tasks": ["valence"],
            "methods": ["tfidf"],
            "seeds": [3],
            "flatness": 2,
        },
    ],
}
CHOICE = {
    "method": "lora",
    "metric": "accuracy",
    "chosen": 0,
    "settings": {"lora.lr": 0.001},
    "at_edge": ["lora.lr"],
    "trials": [{"trial": 0, "settings": {}, "status": "ok", "value": 0.5}],
}
KEY = {name: ok()["key"][name] for name in STEP_TIME_KEY}
COMPARISON = {
    "model": "minilm-l6",
    "task": "sentiment",
    "key": KEY,
    "against": "full",
    "hashes": {"lora": "m", "full": "m"},
    "ratios": {"lora": {"ratio": 0.5, "low": 0.4, "high": 0.6}},
}
WORDS = [
    "full",
    "lora",
    "came",
    "svfit",
    "r64",
    "tfidf",
    "+",
    "@",
    "vocab_pruning",
    "sst2",
    "safe",
    ".",
    "=",
    "task",
    "steps",
    "lr",
    "1e-3",
    "[1]",
    "-1",
    "batch",
    "!!int x",
    "\n",
    "$(id)",
    "../",
    " ",
]
TERMS = [
    "gain(",
    "task",
    "'lora'",
    ")",
    ",",
    "min_over_tasks(",
    "1",
    "2.5e300",
    "+",
    "-",
    "*",
    "/",
    "(",
    "MiB",
    "**",
    ".",
    "x",
    "[0]",
    "lambda: 0",
    "first=",
    "'sentiment'",
    " ",
    "0",
]


def full_record() -> dict[str, Any]:
    """A record with everything that a cell may write, as far as the tables read it."""
    found = copy.deepcopy(ok("came", 2, quality=0.75, **SCORES))
    found["memory"]["tensors"]["intervals"] = [
        {"step": 0, "peak_bytes": 1000},
        {"step": 5, "peak_bytes": 10},
    ]
    found["memory"]["predicted"] = {"peak_bytes": 900, "allocated_bytes": 950}
    found["memory"]["cuda"] = {"allocated_peak_bytes": 1000}
    found["memory"]["host"] = {"peak_bytes": 5000}
    found["quality"].update(
        steps_to_target=5, seconds_to_target=2.0, target=0.5, curve=[{"step": 5, "value": 0.6}]
    )
    found["inference"] = {"tokens_per_second": 10.0, "peak_bytes": 100, "parameters": 20}
    found["size"] = {"checkpoint_bytes": 10, "deployed_parameters": 20, "deployed_bytes": 80}
    given = {"came.lr_scale": 0.1, "task.steps": 4}
    found["cell"]["settings"] = {"model": "minilm-l6", "set": given, "flatness": 2}
    found["tuning"] = {"came": {**CHOICE, "method": "came"}}
    found["time"].update(step_seconds=[0.5, 0.6], hook_seconds_total=1.0)
    return found


def control_records() -> list[dict[str, Any]]:
    """Records of the controls, whose details the calibration reads."""
    return [ok(method, 0, quality=0.5, **SCORES) for method in calibration.METHODS]


def targets() -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, Path], None]]]:
    """Every kind of input, by name: how it is made and what reads it."""
    files = [*sorted(ROOT.glob("methods/*/method.yaml"))[:8], *sorted(ROOT.glob("config/*.yaml"))]
    kinds = ("methods", "tasks", "models")
    plugins = [
        (kind, registry.get(kind, name).raw)
        for kind in kinds
        for name in list(registry.discover(kind))[:6]
    ]
    real = [path.read_bytes() for path in sorted(ROOT.glob("results/records/**/*.json"))[:4]]
    samples = [full_record(), *control_records()]
    for measured in map(json.loads, real):
        measured["quality"].update(predictions=[], references=[])
        samples.append(measured)
    texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=6).map("".join)
    cut = st.tuples(st.sampled_from(real), st.integers(0, 3000), st.binary(max_size=6)).map(
        lambda t: t[0][: t[1]] + t[2]
    )
    tab = st.lists(
        st.sampled_from([b"text", b"class", b"\t", b"\n", b"\r\n", b'"', b"a", b"\xff", b"\0"]),
        max_size=30,
    )
    plugin = st.sampled_from(kinds).flatmap(
        lambda kind: st.tuples(
            st.just(kind), Changed([spec for one, spec in plugins if one == kind]).strategy()
        )
    )
    return {
        "yaml": (yaml_texts([file.read_text() for file in files]), read_plugin_yaml),
        "plugin": (plugin, read_plugin),
        "config": (Changed([CONFIG]).strategy(), read_config),
        "words": (
            st.tuples(texts, st.lists(texts | texts.map("lora.lr={}".format), max_size=2)),
            read_words,
        ),
        "size": (texts | st.from_regex(r"-?[0-9.e+]{1,8} ?[KMGT]?i?B?"), read_size),
        "record bytes": (st.binary(max_size=20) | cut, read_record_bytes),
        "record": (Changed(samples).strategy(), read_records),
        "choice": (Changed([CHOICE]).strategy() | values, read_choice),
        "comparison": (Changed([COMPARISON]).strategy() | values, read_comparison),
        "expression": (
            st.lists(st.sampled_from(TERMS), max_size=14).map("".join) | st.text(max_size=20),
            read_expression,
        ),
        "tab": (tab.map(b"".join), read_tab),
    }


def crashes(
    inputs: int, start: int = 0, only: str | None = None
) -> tuple[int, dict[tuple[str, ...], tuple[int, str]]]:
    """How many inputs were tried, and what went wrong: (kind, error, place) to how often, and one
    input with its traceback."""
    kinds = {name: target for name, target in targets().items() if only in (None, name)}
    tried, found = 0, {}

    def chunk(name: str, count: int, number: int) -> None:
        nonlocal tried
        strategy, reader = kinds[name]

        @seed(number)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def one(value: Any) -> None:
            nonlocal tried
            if tried >= wanted:
                return
            tried += 1
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    reader(value, Path(folder))
            except BadInput:
                pass
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                place_ = (name, type(error).__name__, f"{Path(last.filename).name}:{last.lineno}")
                count_, told = found.get(
                    place_, (0, f"{value!r:.2000}\n{traceback.format_exc(limit=-6)}")
                )
                found[place_] = (count_ + 1, told)

        one()

    with tempfile.TemporaryDirectory() as folder:
        share = -(-inputs // len(kinds))
        for name in kinds:
            wanted = min(tried + share, inputs)
            while tried < wanted:
                start += 1
                chunk(name, min(CHUNK, wanted - tried), start)
    return tried, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--out", type=Path, metavar="FILE", help='gets {"inputs": N, "crashes": N}')
    parser.add_argument("--seed", type=int, default=0, help="other inputs (0)")
    parser.add_argument("--only", choices=sorted(targets()), help="one kind of input")
    arguments = parser.parse_args()
    tried, found = crashes(arguments.inputs, arguments.seed * 10**6, arguments.only)
    for where, (count, told) in found.items():
        print(f"{count} x {' '.join(where)}\n{told}", file=sys.stderr)
    summary = {"inputs": tried, "crashes": sum(count for count, _ in found.values())}
    if arguments.out:
        record.write_json(arguments.out, summary)
    print(json.dumps(summary))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
