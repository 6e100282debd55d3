"""What people read: the Markdown leaderboard, and what a run reproduced of the published results."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from leantune.errors import BadInput
from leantune.groups import KEY, Record, Row, value
from leantune.text import bytes_text, count_text, text_table

BEGIN, END = "<!-- leaderboard:begin -->", "<!-- leaderboard:end -->"


def _number(number: float | None, digits: int = 3) -> str:
    return "" if number is None else f"{number:.{digits}f}"


def markdown_leaderboard(rows: Sequence[Row]) -> str:
    """A compact Markdown table per model, task and key of `tables.leaderboard` rows, best first, controls last; the
    table with the most methods comes first, the others can be folded out."""
    tasks: list[tuple[str, str]] = []
    groups = [(k, list(g)) for k, g in groupby(rows, key=lambda row: (row["model"], row["task"], row["key"]))]
    controls = {(task, key): found for (model, task, key), found in groups if model == "none"}
    with_model = {(task, key) for (model, task, key), _ in groups if model != "none"}
    for (model, task, key), found in sorted(groups, key=lambda group: -len(group[1])):
        if model == "none":
            if (task, key) in with_model:
                continue  # its rows stand below those of the models
        else:
            found = [*found, *({**row, "tier": ""} for row in controls.get((task, key), ()))]
        metric = next((r for r in found if r.get("quality_metric")), {})
        better = f" ({'higher' if metric['higher_is_better'] else 'lower'} is better)" if metric else ""
        lines = [
            f"**{task}** with {model}, {metric.get('quality_metric') or 'quality'}{better}, `{key}`\n",
            "| tier | method | quality | seeds | peak memory | x full | step | trainable | stored |",
            "|---|---|---|---|---|---|---|---|---|",
            *[_markdown_row(row) for row in found],
        ]
        tasks.append((f"{task} with {model}", "\n".join(lines)))
    if len(tasks) < 2:
        return "".join(text for _, text in tasks)
    (_, first), *others = tasks
    folded = f"<details>\n<summary>{', '.join(name for name, _ in others)}</summary>"
    return "\n\n".join([first, folded, *[text for _, text in others], "</details>"])


def _markdown_row(row: Row) -> str:
    if row["status"] != "ok":
        return f"| | {row['method']} | {row['status']} | | | | | | |"
    quality = _number(row.get("quality_mean"))
    if row.get("quality_low") is not None:
        quality += f" [{row['quality_low']:.3f}, {row['quality_high']:.3f}]"
    step = row.get("step_seconds_median")
    cells = [
        "not placed" if row.get("tier") is None and row.get("quality_mean") is not None else str(row.get("tier") or ""),
        row["method"],
        quality,
        str(row["seeds"]) + (f" ({row['failed_seeds']} failed)" if row["failed_seeds"] else ""),
        bytes_text(row.get("peak_memory_bytes")),
        _number(row.get("peak_vs_full"), 2),
        "" if step is None else f"{1000 * step:.0f} ms",
        count_text(row.get("trainable_parameters")),
        bytes_text(row.get("checkpoint_bytes")),
    ]
    return "| " + " | ".join(cells) + " |"


def update_readme(path: Path, markdown: str) -> None:
    """Put the Markdown between the two leaderboard marks of a file. Raises BadInput where they or it are missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"{path} has no line '{BEGIN}' followed by '{END}'; add the two where the table belongs")
    path.write_text(f"{before}{BEGIN}\n{markdown.strip()}\n{END}{after}", encoding="utf-8")


# ------------------------------------------------------------------ reproduced against published

# Fields that leave quality comparable (machine and library build), and of them those that leave bytes exact.
_QUALITY_MAY_DIFFER = {"hardware", "torch"}
_BYTES_MAY_DIFFER = {"hardware"}


def compare_records(run: Iterable[Record], published: Iterable[Record]) -> str:
    """A text table, one row per cell of the run: what was reproduced of what is published.

    Quality is compared where nothing but hardware and torch differ, exact bytes where nothing but hardware
    does, step times on equal hardware only. The last column says what could not be compared and why.
    """
    by_cell: dict[tuple, list[Record]] = {}
    for record in published:
        by_cell.setdefault(_cell(record), []).append(record)
    rows, counts = [], {"cells": 0, "compared": 0, "bytes": 0, "equal": 0}
    for record in sorted(run, key=_cell):
        candidates = by_cell.get(_cell(record), [])
        other = min(candidates, key=functools.partial(_distance, record), default=None)
        row, compared, same_bytes = _comparison(record, other)
        rows.append([*_cell(record), *row])
        counts["cells"] += 1
        counts["compared"] += compared
        counts["bytes"] += same_bytes is not None
        counts["equal"] += bool(same_bytes)
    columns = ("model", "task", "method", "seed", "quality", "published", "diff", "bytes", "step x", "not compared")
    summary = (
        f"{counts['compared']} of {counts['cells']} cells compared with published ones; "
        f"peak bytes equal in {counts['equal']} of {counts['bytes']} that could be"
    )
    return f"reproduced against published\n{text_table(columns, rows)}\n{summary}"


def _cell(record: Record) -> tuple[str, str, str, int]:
    return (record["cell"]["model"], record["cell"]["task"], record["cell"]["method"], record["cell"]["seed"])


def _distance(a: Record, b: Record) -> tuple[int, bool, str]:
    """Sorts the published records of a cell: first those of the same key, and of them those of the same settings."""
    return len(_differing(a, b)), a["provenance"]["hashes"] != b["provenance"]["hashes"], b["key"]["short"]


def _differing(a: Record, b: Record) -> list[str]:
    return [name for name in KEY if a["key"].get(name) != b["key"].get(name)]


def _comparison(record: Record, other: Record | None) -> tuple[list[str | None], bool, bool | None]:
    """(quality, published, difference, bytes, step ratio, why not), compared at all, bytes equal or None."""
    mine = value(record, "quality.value")
    quality = None if mine is None else f"{mine:.4f}"
    if other is None:
        return [quality, None, None, None, None, "not published"], False, None
    for name, one in (("this run", record), ("published", other)):
        if one["status"] != "ok":
            reason = f"{name} ended as {one['status']}"
            return [quality, None, None, None, None, reason], False, None
    differing = _differing(record, other)
    if set(differing) - _QUALITY_MAY_DIFFER:
        return [quality, None, None, None, None, f"other {', '.join(differing)}"], False, None
    theirs = value(other, "quality.value")
    why = []
    difference = None if mine is None or theirs is None else f"{mine - theirs:+.4f}"
    peaks = [(value(r, "memory.peak_bytes"), value(r, "memory.peak_source")) for r in (record, other)]
    same: bool | None = None
    if set(differing) - _BYTES_MAY_DIFFER:
        why.append(f"bytes: other {', '.join(sorted(set(differing) - _BYTES_MAY_DIFFER))}")
    elif peaks[0][1] != peaks[1][1]:
        why.append("bytes: other source")
    elif None not in (peaks[0][0], peaks[1][0]):
        same = peaks[0] == peaks[1]
    ratio = None
    if "hardware" in differing:
        why.append("time: other hardware")
    else:
        times = [value(r, "time.step_seconds_median") for r in (record, other)]
        ratio = f"{times[0] / times[1]:.2f}" if all(times) else None
    if record["provenance"]["hashes"] != other["provenance"]["hashes"]:
        why.append("the files changed since")
    published = None if theirs is None else f"{theirs:.4f}"
    bytes_word = None if same is None else "equal" if same else "differ"
    return [quality, published, difference, bytes_word, ratio, "; ".join(why) or None], True, same
