"""Arithmetic on measured values, written in YAML: a small subset of Python's expressions, read with
`ast`.

Numbers, + - * /, brackets, named units, and calls of given functions with literal arguments.
Nothing else passes: no attributes, subscripts, powers, comparisons, comprehensions or names of
Python. A reducer such as `min_over_tasks(gain(task, "a", "b"))` evaluates its first argument once
for each task.

Python itself computes what has passed: numbers become `Value`s, and a reducer's first argument a
function of the task.
"""

from __future__ import annotations

import ast
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        if self.low is None or self.high is None:
            return self.mean, self.mean
        return self.low, self.high

    def __add__(self, other: Value) -> Value:
        return self._with(other, operator.add)

    def __sub__(self, other: Value) -> Value:
        return self._with(other, operator.sub)

    def __mul__(self, other: Value) -> Value:
        return self._with(other, operator.mul)

    def __truediv__(self, other: Value) -> Value:
        if not other.exact or other.mean == 0:
            raise BadInput(
                "a measure divides by zero or by a value with an interval; "
                "divide by an exact number"
            )
        return self._with(other, operator.truediv)

    def __neg__(self) -> Value:
        return Value(-1) * self

    def _with(self, other: Value, of: Callable[[float, float], float]) -> Value:
        if not self.exact and not other.exact:
            raise BadInput(
                "a measure joins two values with intervals; ask for their difference with gain(...)"
            )
        ends = [of(x, y) for x in self.bounds for y in other.bounds]
        exact = self.exact and other.exact
        return Value(
            of(self.mean, other.mean),
            None if exact else min(ends),
            None if exact else max(ends),
            tuple(dict.fromkeys([*self.notes, *other.notes])),
            tuple(dict.fromkeys([*self.commands, *other.commands])),
        )


@dataclass(frozen=True)
class Language:
    """The functions of an expression. A reducer takes what evaluates its first argument for a task,
    and the tasks that are named after it."""

    functions: Mapping[str, Callable[..., Value]]
    reducers: Mapping[str, Callable[[Callable[[str], Value], Sequence[str]], Value]]

    def check(self, text: str) -> None:
        """Raises BadInput saying what is not allowed in an expression, and what is."""
        self._checked(parsed(text), in_reducer=False)

    def evaluate(self, text: str) -> Value:
        """The value of an expression. Raises what `check` raises, and BadInput for a number out of
        range."""
        checked = ast.Expression(self._checked(parsed(text), in_reducer=False))
        code = compile(ast.fix_missing_locations(checked), "measure", "eval")
        names: dict[str, Any] = {"Value": Value, **self.functions, **self.reducers}
        try:  # only what was checked is computed, and it can reach nothing but these names
            value: Value = eval(code, {"__builtins__": {}, **names})
            finite = math.isfinite(value.mean)
        except OverflowError:
            finite = False
        if not finite:
            raise BadInput(
                f"the measure '{text[:80]}' leaves the range of numbers; use smaller ones"
            )
        return value

    def _checked(self, node: ast.expr, in_reducer: bool) -> ast.expr:
        """The node as Python is to compute it."""
        match node:
            case ast.Constant(value=number) if _is_number(number):
                return _call("Value", node)
            case ast.Name(id=name) if name in UNITS:
                return _call("Value", ast.Constant(UNITS[name]))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return ast.UnaryOp(node.op, self._checked(operand, in_reducer))
            case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div()):
                left, right = (self._checked(side, in_reducer) for side in (node.left, node.right))
                return ast.BinOp(left, node.op, right)
            case ast.Call(func=ast.Name(id=name)) if name in self.reducers and not in_reducer:
                if not node.args or node.keywords:
                    raise BadInput(
                        f"'{name}' takes an expression with 'task' in it, "
                        "and names of tasks or none"
                    )
                body, *tasks = node.args
                _check_literals(tasks, in_reducer)
                of_task = ast.arguments(
                    [], [ast.arg("task")], kwonlyargs=[], kw_defaults=[], defaults=[]
                )
                each = ast.Lambda(of_task, self._checked(body, in_reducer=True))
                return _call(name, each, ast.List(tasks, ast.Load()))
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                _check_literals([*node.args, *(word.value for word in node.keywords)], in_reducer)
                names = {str(word.arg): None for word in node.keywords}
                try:
                    inspect.signature(self.functions[name]).bind(*node.args, **names)
                except TypeError as error:
                    raise BadInput(f"'{ast.unparse(node)[:120]}': {error}") from error
                return node
        known = ", ".join(sorted({*self.functions, *self.reducers}))
        raise BadInput(
            f"'{ast.unparse(node)[:80]}' is not allowed in a measure; allowed are numbers, "
            f"+ - * /, {', '.join(UNITS)} and the functions {known}"
        )


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


def _check_literals(nodes: Sequence[ast.expr], in_reducer: bool) -> None:
    for node in nodes:
        is_task = in_reducer and isinstance(node, ast.Name) and node.id == "task"
        value = node.value if isinstance(node, ast.Constant) else None
        if not (is_task or isinstance(value, str) or _is_number(value)):
            raise BadInput(
                f"the argument '{ast.unparse(node)[:80]}' is neither a number nor a text in quotes"
            )


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])
