"""Read what others wrote, YAML and JSON, and check it against a model: whatever is wrong is
`BadInput`."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from leantune.errors import BadInput

# what the YAML library raises for a tag that does not fit its value, such as `!!int x`
_MISFITS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
# Both loaders are safe. The fast one recurses on the stack of C, which 20,000 levels do not fill: a
# text of fewer characters cannot nest so deep.
_FAST, _SHORT = getattr(yaml, "CSafeLoader", yaml.SafeLoader), 10_000
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
        found = yaml.load(text, yaml.SafeLoader if len(text) > _SHORT else _FAST)
    except RecursionError as error:
        raise BadInput(f"{where}: nested too deeply to be a LeanTune file") from error
    except (yaml.YAMLError, *_MISFITS) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)[:120]
        raise BadInput(f"{where}{line}: not valid YAML: {problem}") from error
    check_size(found, where)
    return found


def check_size(value: Any, where: Path | str) -> None:
    """Raise BadInput for a value of more than 100,000 parts, nested more than 50 deep, or that
    holds a date: a few lines of YAML can name billions by reference, or one value inside itself."""
    parts, left = [(value, 0)], _MOST_PARTS
    while parts:
        part, depth = parts.pop()
        inside = [*part, *part.values()] if isinstance(part, dict) else part
        inside = inside if isinstance(inside, list) else []
        left -= 1 + len(inside)
        if left < 0 or depth > _DEEPEST:
            raise BadInput(
                f"{where}: more than {_MOST_PARTS} values or {_DEEPEST} levels; "
                "no LeanTune file has as many"
            )
        if not isinstance(part, dict | list | str | int | float | None):
            raise BadInput(
                f"{where}: a {type(part).__name__} has no meaning here; write it in quotes"
            )
        parts += [(one, depth + 1) for one in inside]


UNKNOWN = "unknown_key"  # the kind of error of a key that a mapping does not have
# What pydantic's kinds of error are called in a sentence: what the value is not, or how it is
# wrong.
_TYPES = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
}
_BOUNDS = {
    "string_too_short": "is too short, it needs at least {min_length} characters",
    "too_short": "is too short, it needs at least {min_length} of them",
    "string_pattern_mismatch": "does not match '{pattern}'",
    "literal_error": "is not {expected}",
    "greater_than": "is too small, it must be above {gt}",
    "greater_than_equal": "is too small, it must be at least {ge}",
    "less_than_equal": "is too large, it must be at most {le}",
}


def check(value: Any, model: Any, where: Path | str) -> Any:
    """The value as a pydantic `model`. Raises BadInput with one sentence: the file, the key, what
    was given and what is allowed."""
    from pydantic import ValidationError

    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A misspelt key is missing under its right name, too: the misspelling says more.
        errors.sort(key=lambda one: one["type"] != UNKNOWN)
        key = _key(errors[0], value)
        message = _sentence([one for one in errors if _key(one, value) == key])
        raise BadInput(f"{where}: key '{key}'{message}" if key else f"{where}{message}") from None


def _key(error: Any, value: Any) -> str:
    """The dotted path of the key that is wrong; pydantic also names members of unions on the
    way."""
    path = []
    for step in error["loc"]:
        inside = step in value if isinstance(value, dict) else isinstance(value, list)
        if inside and (isinstance(value, dict) or isinstance(step, int)):
            value = value[step]
        elif error["type"] != "missing" or step != error["loc"][-1]:
            continue
        path.append(str(step))
    return ".".join([*path, *error.get("ctx", {}).get("inside", ())])


def _sentence(errors: list[Any]) -> str:
    """What is wrong with one key. The members of a union each have an error; their types join."""
    types = [_TYPES[one["type"]] for one in errors if one["type"] in _TYPES]
    first = next((one for one in errors if one["type"] not in _TYPES), errors[0])
    given = repr(first["input"])
    given = given if len(given) <= 80 else f"{given[:77]}..."
    if first["type"] == "missing":
        return " is missing"
    if first["type"] in _TYPES:
        return f": {given} is not {' or '.join(dict.fromkeys(types))}"
    if first["type"] in _BOUNDS:
        return f": {given} {_BOUNDS[first['type']].format(**first['ctx'])}"
    return first["ctx"]["message"] if "ctx" in first else f": {first['msg']}"


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
