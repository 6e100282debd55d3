"""The rules of the house, read from source text: what may import what.

`test_house.py` holds the code to them.
"""

import ast
import re
import textwrap

# Highest first. A module imports from its own package and from lower layers; packages side by side
# do not know each other. `contract` are the modules that plugins import, `errors` and `testing` are
# single modules too.
LAYERS = (
    ("cli",),
    ("testing",),
    ("workflow",),
    ("report",),
    ("results", "run"),
    ("prediction",),
    ("training",),
    ("models",),
    ("data", "meter", "metrics"),
    ("spec",),
    ("contract",),
    ("fetch", "machine"),
    ("files",),
    ("errors",),
)
CONTRACT = ("api", "architectures", "modules", "svd", "tabfiles", "datasetfiles")
SINGLE = (*CONTRACT, "errors", "testing")  # the modules that stand in no package
EXEMPT = ("leantune", "leantune.__main__")  # what everyone sees, and the command
FOR_PLUGINS = (
    "leantune",
    "leantune.errors",
    "leantune.testing",
    *(f"leantune.{name}" for name in CONTRACT),
)

_HEIGHT = {package: height for height, side in enumerate(reversed(LAYERS)) for package in side}


def modules_of(source):
    """Dotted name to file of every module of the package `leantune` at `source`."""
    found = {}
    for file in sorted(source.rglob("*.py")):
        parts = ("leantune", *file.relative_to(source).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def used(code, modules, name="", is_package=False):
    """The dotted names of leantune that a module's text imports, or reaches by what it imported.

    Wherever it does: at the top, inside a function, or for type checking only.
    """
    tree = ast.parse(code)
    found, names = (
        set(),
        {},
    )  # names: what a local name stands for, where that is a module of leantune
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _ours(alias.name):
                    found.add(alias.name)
                    names[alias.asname or "leantune"] = alias.name if alias.asname else "leantune"
        elif isinstance(node, ast.ImportFrom):
            start = _start(node, name, is_package)
            if _ours(start):
                for alias in node.names:
                    whole = start if alias.name == "*" else f"{start}.{alias.name}"
                    found.add(whole)
                    if whole in modules:
                        names[alias.asname or alias.name] = whole
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            given = [part.value for part in node.args[:1] if isinstance(part, ast.Constant)]
            found |= {whole for whole in given if _ours(str(whole))}
    for chain in _chains(tree, frozenset()):
        if chain[0] in names:
            reached = names[chain[0]]
            for word in chain[1:]:
                if reached not in modules:
                    break
                reached = f"{reached}.{word}"
            found.add(reached)
    return found


def _ours(name):
    return name == "leantune" or name.startswith("leantune.")


def _start(node, name, is_package):
    """What `from ... import` starts at, dots resolved."""
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _called(node):
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _chains(node, hidden):
    """Every `a.b.c` below a node as its words, the longest of each.

    `hidden` are the names that a function's arguments take for themselves.
    """
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        hidden = hidden | {part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)}
    if isinstance(node, ast.Attribute):
        words, start = [node.attr], node.value
        while isinstance(start, ast.Attribute):
            words.append(start.attr)
            start = start.value
        if isinstance(start, ast.Name):
            if start.id not in hidden:
                yield [start.id, *reversed(words)]
            return
        node = start
    for part in ast.iter_child_nodes(node):
        yield from _chains(part, hidden)


def module_of(dotted, modules):
    """The module that holds a dotted name: the longest beginning of it that is one."""
    parts = dotted.split(".")
    while parts and ".".join(parts) not in modules:
        parts.pop()
    return ".".join(parts) or "leantune"


def is_private(word):
    return word.startswith("_") and not (word.startswith("__") and word.endswith("__"))


def arrows(source):
    """Every violation of the layers in the package at `source`, as a sentence, sorted."""
    modules = modules_of(source)
    found = set()
    for name, file in modules.items():
        if name in EXEMPT:
            continue
        if _layer(name, modules) is None:
            found.add(f"leantune.{name.split('.')[1]} stands outside the packages")
            continue
        code = file.read_text(encoding="utf-8")
        for dotted in used(code, modules, name, file.name == "__init__.py"):
            other = module_of(dotted, modules)
            if other in EXEMPT or other == name or _layer(other, modules) is None:
                continue
            if any(is_private(word) for word in dotted.split(".")):
                found.add(f"{name} uses the private {dotted}")
            here, there = _layer(name, modules), _layer(other, modules)
            if here != there and _HEIGHT[there] >= _HEIGHT[here]:
                where = "beside" if _HEIGHT[there] == _HEIGHT[here] else "above"
                found.add(f"{name} imports {other}, which stands {where} it")
    return sorted(found)


def _layer(name, modules):
    """The package, or kind of single module, that a module belongs to; None where it is neither."""
    top, *inside = name.split(".")[1:]
    if inside or modules[name].name == "__init__.py":
        return top if top in _HEIGHT and top not in ("contract", *SINGLE) else None
    return "contract" if top in CONTRACT else top if top in SINGLE else None


def foreign(code, modules):
    """What a plugin's text uses of leantune that plugins must not, sorted.

    That is modules outside the contract, and names that there are not (any more).
    """
    found = set()
    public = _public(modules)
    for dotted in used(code, modules):
        held = module_of(dotted, modules)
        missing = held == "leantune" != dotted and dotted.split(".")[1] not in public
        if missing or held not in FOR_PLUGINS:
            found.add(dotted if missing else held)
    return sorted(found)


def _public(modules):
    """The names that `leantune/__init__.py` defines."""
    nodes = [*ast.walk(ast.parse(modules["leantune"].read_text(encoding="utf-8")))]
    found = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    stored = [node for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)]
    found |= {node.id for node in stored if isinstance(node, ast.Name)}
    return found | {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}


def python_blocks(page):
    """The ```python blocks of a Markdown text, those in lists too."""
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for code in blocks]
