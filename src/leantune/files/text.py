"""Numbers and tables as people read them, and tables as files."""

import csv
import io
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from leantune.errors import BadInput

Item = TypeVar("Item")
Done = TypeVar("Done")


def bytes_text(count: int | float | None) -> str:
    """A byte count in MiB, or in GiB from one GiB on; empty for None."""
    if count is None:
        return ""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def count_text(count: int | None) -> str:
    """A parameter count in thousands or millions."""
    if count is None:
        return ""
    return (
        f"{count / 1e6:.2f} M"
        if count >= 1e6
        else f"{count / 1e3:.1f} k"
        if count >= 1e3
        else str(count)
    )


def each_told(
    items: Sequence[Item], do: Callable[[Item], Done], name: Callable[[Done], str]
) -> list[Done]:
    """What `do` makes of each item. After each a line on stderr: how many are done, the `name` of
    what was made, and how long the others will take."""
    started = time.monotonic()
    made: list[Done] = []
    for item in items:
        made.append(do(item))
        left = (time.monotonic() - started) / len(made) * (len(items) - len(made))
        line = f"{len(made)} of {len(items)}: {name(made[-1])}, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)
    return made


def number_text(number: float) -> str:
    """A number to four digits, a large one in full with its thousands apart."""
    return f"{number:,.0f}" if abs(number) >= 1e5 else f"{number:.4g}"


def text_table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Columns padded to their widest cell, two spaces apart, None as a dash."""
    lines = [
        list(columns),
        *([("-" if cell is None else str(cell)) for cell in row] for row in rows),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The rows as CSV with a header; absent and None values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return f"{cell:.8g}" if isinstance(cell, float) and not cell.is_integer() else str(cell)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table by column, an absent cell as empty text; none where there is no file.
    Raises BadInput where the file is no CSV."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {name: cell or "" for name, cell in line.items() if name}
                for line in csv.DictReader(file)
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(
            f"{path} is no CSV file ({str(error)[:120]}); remove it and build it again"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file and its folder. Raises BadInput naming the file where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"cannot write {path}: {error.strerror}; free space or choose another folder"
        ) from error


def say(message: str) -> None:
    """A line for people, on stderr: the log of a cell; stdout is for results."""
    print(message, file=sys.stderr, flush=True)
