"""Count the statements of the product, so that a rearrangement can say whether it grew.

Run it as `python tests/count_statements.py`. A docstring is no statement here:
to explain more must not look like more code.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "leantune"


def statements(code):
    """The statements of a module's text, docstrings apart."""
    tree = ast.parse(code)
    holders = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [*ast.walk(tree)]
    told = [ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, holders)]
    docstrings = sum(text is not None for text in told)
    return sum(isinstance(node, ast.stmt) for node in nodes) - docstrings


def count(source):
    """Statements and lines by package; modules that stand in none count as `(top)`."""
    found, lines = Counter(), Counter()
    for file in sorted(source.rglob("*.py")):
        place = file.relative_to(source).parts
        package = place[0] if len(place) > 1 else "(top)"
        code = file.read_text(encoding="utf-8")
        found[package] += statements(code)
        lines[package] += len(code.splitlines())
    return found, lines


if __name__ == "__main__":
    found, lines = count(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)
    for package in sorted(found):
        print(f"{package:<12} {found[package]:>6} statements {lines[package]:>6} lines")
    print(f"{'total':<12} {found.total():>6} statements {lines.total():>6} lines")
