"""Numbers and tables as people read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def bytes_text(count: int | float | None) -> str:
    """A byte count in MiB, or in GiB from one GiB on; empty for None."""
    if count is None:
        return ""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def count_text(count: int | None) -> str:
    """A parameter count in thousands or millions."""
    if count is None:
        return ""
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k" if count >= 1e3 else str(count)


def text_table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Columns padded to their widest cell, two spaces apart, None as a dash."""
    lines = [list(columns), *([("-" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
