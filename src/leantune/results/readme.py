"""What people read: the Markdown leaderboard, and what a run reproduced of the published
results."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from leantune.errors import BadInput
from leantune.files.text import bytes_text, count_text
from leantune.results.comparable import Row

BEGIN, END = "<!-- leaderboard:begin -->", "<!-- leaderboard:end -->"


def _number(number: float | None, digits: int = 3) -> str:
    return "" if number is None else f"{number:.{digits}f}"


def markdown_leaderboard(rows: Sequence[Row]) -> str:
    """A compact Markdown table per model, task and key of `tables.leaderboard` rows, best first,
    controls last; the table with the most methods comes first, the others can be folded out."""
    tasks: list[tuple[str, str]] = []
    groups = [
        (k, list(g))
        for k, g in groupby(rows, key=lambda row: (row["model"], row["task"], row["key"]))
    ]
    controls = {(task, key): found for (model, task, key), found in groups if model == "none"}
    with_model = {(task, key) for (model, task, key), _ in groups if model != "none"}
    for (model, task, key), found in sorted(groups, key=lambda group: -len(group[1])):
        if model == "none":
            if (task, key) in with_model:
                continue  # its rows stand below those of the models
        else:
            found = [*found, *({**row, "tier": ""} for row in controls.get((task, key), ()))]
        metric = next((r for r in found if r.get("quality_metric")), {})
        better = (
            f" ({'higher' if metric['higher_is_better'] else 'lower'} is better)" if metric else ""
        )
        lines = [
            f"**{task}** with {model}, {metric.get('quality_metric') or 'quality'}{better}, "
            f"`{key}`\n",
            "| tier | method | quality | seeds | peak memory "
            "| x full | step | trainable | stored |",
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
        "not placed"
        if row.get("tier") is None and row.get("quality_mean") is not None
        else str(row.get("tier") or ""),
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
    """Put the Markdown between the two leaderboard marks of a file. Raises BadInput where they or
    it are missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(
            f"{path} has no line '{BEGIN}' followed by '{END}'; add the two where the table belongs"
        )
    path.write_text(f"{before}{BEGIN}\n{markdown.strip()}\n{END}{after}", encoding="utf-8")


# ------------------------------------------------------------------ reproduced against published
