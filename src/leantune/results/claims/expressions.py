"""Arithmetic on measured values, written in YAML: a small subset of Python's expressions, read with
`ast`.

Numbers, + - * /, brackets, named units, and calls of given functions with literal arguments.
Nothing else passes: no attributes, subscripts, powers, comparisons, comprehensions or names of
Python. A reducer such as `min_over_tasks(gain(task, "a", "b"))` evaluates its first argument once
for each task.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from leantune.errors import BadInput

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}
LONGEST = 2000  # characters of an expression
LARGEST = 1e300  # number in it


@dataclass(frozen=True)
class Value:
    """A measured number, with bounds where it comes from a sample. `notes` say what it was measured
    on, `commands` repeat the measurement."""

    mean: float
    low: float | None = None
    high: float | None = None
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return self.low is None or self.high is None

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high), both the number itself where it is exact."""
        return (
            (self.mean, self.mean)
            if self.low is None or self.high is None
            else (self.low, self.high)
        )


@dataclass(frozen=True)
class Language:
    """The functions of an expression. A reducer takes what evaluates its first argument for a task,
    and the tasks that are named after it."""

    functions: Mapping[str, Callable[..., Value]]
    reducers: Mapping[str, Callable[[Callable[[str], Value], Sequence[str]], Value]]

    def check(self, text: str) -> None:
        """Raises BadInput saying what is not allowed in an expression, and what is."""
        self._check(parsed(text), in_reducer=False)

    def evaluate(self, text: str) -> Value:
        """The value of an expression. Raises what `check` raises, and BadInput for a number out of
        range."""
        self.check(text)
        try:
            value = self._value(parsed(text), None)
            finite = math.isfinite(value.mean)
        except OverflowError:
            finite = False
        if not finite:
            raise BadInput(
                f"the measure '{text[:80]}' leaves the range of numbers; use smaller ones"
            )
        return value

    def _check(self, node: ast.expr, in_reducer: bool) -> None:
        match node:
            case ast.Constant(value=number) if _is_number(number):
                pass
            case ast.Name(id=name) if name in UNITS:
                pass
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                self._check(operand, in_reducer)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
                self._check(left, in_reducer)
                self._check(right, in_reducer)
            case ast.Call(func=ast.Name(id=name)) if name in self.reducers and not in_reducer:
                if not node.args or node.keywords:
                    raise BadInput(
                        f"'{name}' takes an expression with 'task' in it, and names of tasks or none"
                    )
                self._check(node.args[0], in_reducer=True)
                for argument in node.args[1:]:
                    _check_literal(argument, in_reducer)
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                    _check_literal(argument, in_reducer)
                names = {str(keyword.arg): None for keyword in node.keywords}
                try:
                    inspect.signature(self.functions[name]).bind(*node.args, **names)
                except TypeError as error:
                    raise BadInput(f"'{ast.unparse(node)[:120]}': {error}") from error
            case _:
                raise BadInput(
                    f"'{ast.unparse(node)[:80]}' is not allowed in a measure; allowed are numbers, + - * /, "
                    f"{', '.join(UNITS)} and the functions {', '.join(sorted({*self.functions, *self.reducers}))}"
                )

    def _value(self, node: ast.expr, task: str | None) -> Value:
        match node:
            case ast.Constant(value=int() | float() as number):
                return Value(number)
            case ast.UnaryOp(operand=operand):
                return _product(Value(-1), self._value(operand, task))
            case ast.BinOp(left=left, op=operator, right=right):
                return _OPERATORS[type(operator)](self._value(left, task), self._value(right, task))
            case ast.Call(func=ast.Name(id=name), args=[body, *tasks]) if name in self.reducers:
                named = [str(_literal(argument, None)) for argument in tasks]
                return self.reducers[name](lambda each: self._value(body, each), named)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
                words = {str(keyword.arg): _literal(keyword.value, task) for keyword in keywords}
                return self.functions[name](
                    *(_literal(argument, task) for argument in arguments), **words
                )
        assert isinstance(node, ast.Name)
        return Value(UNITS[node.id])


def parsed(text: str) -> ast.expr:
    """The syntax tree of an expression. Raises BadInput where it is none, or too long."""
    if len(text) > LONGEST:
        raise BadInput(f"the measure has {len(text)} characters; {LONGEST} are allowed")
    try:
        return ast.parse(" ".join(text.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadInput(
            f"the measure '{text[:80]}' is no expression; write arithmetic on function calls"
        ) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _check_literal(node: ast.expr, in_reducer: bool) -> None:
    is_task = in_reducer and isinstance(node, ast.Name) and node.id == "task"
    is_literal = isinstance(node, ast.Constant) and (
        isinstance(node.value, str) or _is_number(node.value)
    )
    if not is_task and not is_literal:
        raise BadInput(
            f"the argument '{ast.unparse(node)[:80]}' is neither a number nor a text in quotes"
        )


def _literal(node: ast.expr, task: str | None) -> object:
    return node.value if isinstance(node, ast.Constant) else task


# ------------------------------------------------------------------ arithmetic


def _sum(a: Value, b: Value) -> Value:
    return _combined(a, b, lambda x, y: x + y)


def _product(a: Value, b: Value) -> Value:
    return _combined(a, b, lambda x, y: x * y)


def _quotient(a: Value, b: Value) -> Value:
    if not b.exact or b.mean == 0:
        raise BadInput(
            "a measure divides by zero or by a value with an interval; divide by an exact number"
        )
    return _combined(a, b, lambda x, y: x / y)


def _combined(a: Value, b: Value, of: Callable[[float, float], float]) -> Value:
    if not a.exact and not b.exact:
        raise BadInput(
            "a measure joins two values with intervals; ask for their difference with gain(...)"
        )
    notes = tuple(dict.fromkeys([*a.notes, *b.notes]))
    commands = tuple(dict.fromkeys([*a.commands, *b.commands]))
    mean = of(a.mean, b.mean)
    if a.exact and b.exact:
        return Value(mean, notes=notes, commands=commands)
    ends = [of(x, y) for x in a.bounds for y in b.bounds]
    return Value(mean, min(ends), max(ends), notes, commands)


_OPERATORS: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: _sum,
    ast.Sub: lambda a, b: _sum(a, _product(Value(-1), b)),
    ast.Mult: _product,
    ast.Div: _quotient,
}
