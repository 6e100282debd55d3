"""A measure is arithmetic on given functions and nothing else."""

from __future__ import annotations

from operator import add, mul, sub

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leantune.errors import BadInput
from leantune.results.claims.expressions import LONGEST, UNITS, Language, Value


def constant(number: float) -> Value:
    return Value(number)


def between(low: float, high: float) -> Value:
    return Value((low + high) / 2, low, high)


def length(text: str, *, times: int = 1) -> Value:
    return Value(len(text) * times)


LANGUAGE = Language(
    {"constant": constant, "between": between, "length": length},
    {
        "smallest": lambda evaluate, tasks: min(
            (evaluate(t) for t in tasks or ("abc", "de")), key=lambda v: v.mean
        )
    },
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * -3", -9),
        ("1 -\n  constant(0.25)", 0.75),
        ("3 * GiB / MiB", 3 * UNITS["GiB"] / UNITS["MiB"]),
        ("length('four', times=3)", 12),
        ("10 * smallest(length(task))", 20),
        ("smallest(1 + length(task, times=2), 'a', 'bcd')", 3),
    ],
)
def test_arithmetic_calls_and_reducers(text: str, value: float) -> None:
    assert LANGUAGE.evaluate(text).mean == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "constant.__globals__",
        "constant.__call__(1)",
        "().__class__",
        "[1][0]",
        "constant(1)[0]",
        "{'a': 1}",
        "constant",
        "open('x')",
        "eval('1')",
        "True",
        "None",
        "lambda: 1",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "constant(length('a'))",
        "constant(*[1])",
        "constant(**{'number': 1})",
        "length(task)",
        "length(f'{constant}')",
        "length(b'a')",
        "2 ** 9999999999",
        "2 ** 2",
        "9 << 99999",
        "7 // 2",
        "7 % 2",
        "1 < 2",
        "1 if 1 else 2",
        "not 1",
        "~1",
        "(x := 1)",
        "1; 2",
        "x = 1",
        "smallest()",
        "smallest(task)",
        "smallest(smallest(length(task)))",
        "smallest(length(task), length('a'))",
        "constant(1, 2)",
        "constant(nope=1)",
        "1e999",
        "1" + "0" * 400,
        "'text'",
        "1j",
        "1 / 0",
        "constant(0) / (1 - 1)",
        "1e300 * 1e300",
        "",
        "(" * 300,
        "1 + " * LONGEST + "1",
    ],
)
def test_everything_else_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        LANGUAGE.evaluate(text)
    assert "\n" not in str(caught.value)


def test_a_refusal_says_what_is_allowed() -> None:
    with pytest.raises(
        BadInput, match=r"'gian\(1\)' is not allowed.*between, constant, length, smallest"
    ):
        LANGUAGE.check("1 + gian(1)")


@given(
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1),
    st.floats(-1e3, 1e3),
    st.sampled_from("+-*"),
    st.booleans(),
)
def test_an_interval_follows_arithmetic_with_numbers(
    low: float, width: float, share: float, number: float, sign: str, left: bool
) -> None:
    """What the interval holds is, after the same arithmetic, within the result's bounds."""
    inside = low + share * width
    language = Language({"sample": lambda: Value(inside, low, low + width)}, {})
    found = language.evaluate(
        f"sample() {sign} ({number!r})" if left else f"({number!r}) {sign} sample()"
    )
    pair = (inside, number) if left else (number, inside)
    assert found.mean == pytest.approx(
        {"+": add, "-": sub, "*": mul}[sign](*pair), rel=1e-9, abs=1e-9
    )
    slack = 1e-9 * (1 + abs(found.mean))
    assert found.bounds[0] - slack <= found.mean <= found.bounds[1] + slack


def test_two_intervals_are_not_joined_and_none_divides() -> None:
    for text in ("between(1, 2) - between(1, 2)", "1 / between(1, 2)"):
        with pytest.raises(BadInput, match="interval"):
            LANGUAGE.evaluate(text)
    assert LANGUAGE.evaluate("1 - between(1, 3) / 2").bounds == (-0.5, 0.5)
