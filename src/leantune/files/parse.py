"""Read what others wrote, YAML and JSON, and check it against a schema: whatever is wrong is
`BadInput`."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from leantune.errors import BadInput

SCHEMAS = Path(__file__).parent / "schemas"
_MOST_PARTS, _DEEPEST = 100_000, 50  # of a YAML file


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping read with the safe loader. Raises BadInput where the file is none, or too
    large."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {file}: {error}") from error
    spec = parse_yaml(text, file)
    if not isinstance(spec, dict):
        raise BadInput(f"{file}: expected a mapping of keys to values, found {type(spec).__name__}")
    return spec


def parse_yaml(text: str, where: Path | str) -> Any:
    """The value of a YAML text, read with the safe loader. Raises BadInput saying where it is
    wrong."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise BadInput(
            f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}"
        ) from error
    except RecursionError as error:
        raise BadInput(f"{where}: nested too deeply to be a LeanTune file") from error
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:  # a tag that does not fit
        raise BadInput(f"{where}: not valid YAML: {str(error)[:120]}") from error
    check_size(found, where)
    return found


def check_size(value: Any, where: Path | str) -> None:
    """Raise BadInput for a value of more than 100,000 parts, nested more than 50 deep, or that
    holds a date: a few lines of YAML can name billions by reference, or one value inside itself."""
    parts, left = [(value, 0)], _MOST_PARTS
    while parts:
        part, depth = parts.pop()
        inside = (
            [*part, *part.values()]
            if isinstance(part, dict)
            else part
            if isinstance(part, list)
            else ()
        )
        left -= 1 + len(inside)
        if left < 0 or depth > _DEEPEST:
            raise BadInput(
                f"{where}: more than {_MOST_PARTS} values or {_DEEPEST} levels; no LeanTune file has as many"
            )
        if not isinstance(part, dict | list | str | int | float | None):
            raise BadInput(
                f"{where}: a {type(part).__name__} has no meaning here; write it in quotes"
            )
        parts += [(one, depth + 1) for one in inside]


def _items(
    validator: Any, items: Any, instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    """The keyword `items`, at once where thousands of plain numbers (a record's predictions) are
    what it asks for."""
    if (
        items == {"type": "number"}
        and isinstance(instance, list)
        and {*map(type, instance)} <= {int, float}
    ):
        return
    yield from jsonschema.Draft202012Validator.VALIDATORS["items"](
        validator, items, instance, schema
    )


_Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"items": _items})


@functools.cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    # Without a `$schema` of their own, so that what they refer to is checked by _Validator too.
    schemas = [
        (path.name, DRAFT202012.create_resource(json.loads(path.read_text())))
        for path in SCHEMAS.glob("*.json")
    ]
    registry: Registry = Registry().with_resources(schemas)
    return _Validator({"$ref": f"{schema}.schema.json"}, registry=registry)


def validate(spec: Any, schema: str, where: Path | str) -> None:
    """Raise BadInput naming the file, the key and what is allowed, at the first violation of the
    schema."""
    error = jsonschema.exceptions.best_match(_validator(schema).iter_errors(spec))
    if error is None:
        return
    key = ".".join(str(p) for p in error.absolute_path) or "(top level)"
    message = error.message
    if error.validator == "additionalProperties" and isinstance(error.schema, dict):
        message += f"; allowed: {', '.join(error.schema.get('properties', {}))}"
    raise BadInput(f"{where}: key '{key}': {message[:600]}")


def read_json(path: Path, what: str = "file") -> Any:
    """The content of a JSON file. Raises BadInput naming a damaged one; a number that is none is
    damage."""

    def real(word: str) -> float:
        number = float(word)
        if not math.isfinite(number):
            raise ValueError(f"{word[:20]} is no number")
        return number

    def whole(word: str) -> int:
        real(word)  # or it could not be computed with
        return int(word)

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_constant=real, parse_float=real, parse_int=whole)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: damaged {what} ({str(error)[:120]})") from error
