"""docs/matrix.md: written of the results of tests/matrix.py, and read again by its test."""

from __future__ import annotations

import datetime
import random
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
import transformers
from tests.matrix import ROOT, Cell, cells, columns, methods, parts_of

from leantune.errors import BadInput
from leantune.spec.hashes import stack_hash

PAGE = ROOT / "docs" / "matrix.md"
SYMBOLS = {"works": "✓", "refused": "–", "fault": "✗"}
TITLES = {
    "causal_lm": "Decoders",
    "classification": "Encoders, classification",
    "masked_lm": "Encoders, masked language model",
    "seq2seq_lm": "Encoder-decoders",
}
TEXT = """# Every method on every architecture

{methods} methods and stacks on tiny models of {architectures} architectures, made from the
configuration classes of transformers with random weights: {cells} cells, of which {works} work,
{refused} are refused and {fault} have a fault. Commit `{commit}`, {today}, torch {torch},
transformers {transformers}, peft {peft}, on a CPU.

A cell works (✓) where the method attaches, its memory without values is that of real tensors to the
byte, two steps train it, and the exported model gives the same outputs again after a reload with
plain transformers (with `import leantune` where the export has adapters or factored maps). It is
refused (–) where the method says that it does not do this model; the reasons stand below. All else
is a fault (✗). `code` is the start of the hash of the method's code and settings.

`make matrix` runs it again and writes this page; finished cells are kept in `runs/matrix/`. The
tests hold the page to the present methods and architectures, and run cells for two minutes: those
of methods that changed since, then a sample drawn by the day. They fail on a fault, and on a
cell that says something else than this page.
"""


def write(rows: Mapping[str, dict[str, Any]]) -> None:
    """The page of the results by key. Raises BadInput where a cell has none."""
    missing = [cell for cell in cells() if cell.key not in rows]
    if missing:
        raise BadInput(f"{len(missing)} cells have no result, the first is {missing[0]}")
    PAGE.write_text(page({cell: rows[cell.key] for cell in cells()}), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def page(found: Mapping[Cell, dict[str, Any]]) -> str:
    """The text: a table for each kind of task, and the reasons beneath."""
    git = ["git", "rev-parse", "--short=10", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    text = TEXT.format(
        methods=len(methods()),
        architectures=len({cell.architecture for cell in found}),
        cells=len(found),
        **{said: sum(r["status"] == said for r in found.values()) for said in SYMBOLS},
        commit=commit.strip(),
        today=datetime.date.today().isoformat(),
        torch=torch.__version__.partition("+")[0],
        transformers=transformers.__version__,
        peft=peft.__version__,
    )
    for kind, names in columns().items():
        lines = [["method", *(f"`{name}`" for name in names), "code"], ["---"] * (len(names) + 2)]
        for method in methods():
            marks = [SYMBOLS[found[Cell(name, kind, method)]["status"]] for name in names]
            lines.append([f"`{method}`", *marks, f"`{code_of(method, kind)}`"])
        text += f"\n## {TITLES[kind]}\n\n"
        text += "".join(f"| {' | '.join(line)} |\n" for line in lines)
    for status, title in (("refused", "Reasons of refusals"), ("fault", "Faults")):
        if notes := _notes(row for row in found.values() if row["status"] == status):
            text += f"\n## {title}\n\n" + "".join(notes)
    return text


def code_of(method: str, kind: str) -> str:
    """The version of a method's code and settings, as the page has it."""
    return stack_hash(parts_of(method, kind))[:8]


def _notes(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each method and reason, with the architectures that it holds for."""
    where: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        name = rf"(?<!\w){re.escape(row['architecture'])}(?!\w)|(?<=this )[A-Z]\w+"
        reason = re.sub(name, "…", row["reason"])
        where.setdefault((row["method"], reason), []).append(row["architecture"])
    return [
        f"- `{method}`: {reason} ({', '.join(dict.fromkeys(names))})\n"
        for (method, reason), names in sorted(where.items())
    ]


@dataclass(frozen=True)
class Published:
    """What the page says: statuses by cell, and the code that each method had for each kind."""

    statuses: dict[Cell, str]
    code: dict[tuple[str, str], str]


def read(text: str) -> Published:
    """What a page says."""
    statuses, code = {}, {}
    for kind, title in TITLES.items():
        section = re.search(rf"^## {title}\n\n((?:\|.*\n)+)", text, re.M)
        if section is None:
            continue
        head, _, *lines = (
            [word.strip("` ") for word in line.strip("|").split("|")]
            for line in section[1].splitlines()
        )
        for method, *marks, digits in lines:
            code[method, kind] = digits
            for name, mark in zip(head[1:-1], marks, strict=True):
                cell = Cell(name, kind, method)
                statuses[cell] = next(said for said, symbol in SYMBOLS.items() if symbol == mark)
    return Published(statuses, code)


def sample(seed: str, said: Published) -> list[Cell]:
    """All cells in an order drawn from `seed`, those of methods that changed since the page was
    made first."""
    drawn = cells()
    random.Random(seed).shuffle(drawn)
    same = {(m, k): said.code.get((m, k)) == code_of(m, k) for k in columns() for m in methods()}
    return sorted(drawn, key=lambda cell: same[cell.method, cell.kind])
