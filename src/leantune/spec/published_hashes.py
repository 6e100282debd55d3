"""The content hash of every published method, task and model, as one list that a test compares.

A record whose hashes are no longer those of the files is stale. The list says so before any record
is read: whoever changes a plugin, or how it is hashed, sees at once what would have to be measured
again.
"""

from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.files.record import write_json
from leantune.spec import plugins
from leantune.spec.cells import resolve_cell
from leantune.spec.config import load_config
from leantune.spec.hashes import model_hash, stack_hash
from leantune.spec.kinds import KINDS
from leantune.spec.stacks import parse_stack, plugin_names

FILE = Path("tests", "published_hashes.json")  # below the checkout
DIGITS = 16  # of a hash's 64: enough to see a change


def published_hashes() -> dict[str, dict[str, str]]:
    """`methods`, `tasks` and `models` of the checkout by name.

    A stack stands under `stack|kind of task`: each method alone and at each of its points, and
    every stack that a published record or a config names, for the kinds that its methods support.
    Raises BadInput where LeanTune runs from no checkout.
    """
    root = plugins.checkout()
    if root is None:
        raise BadInput("LeanTune is installed here; the list of published hashes is of a checkout")
    own = {kind: _own(kind, root) for kind in ("methods", "tasks", "models")}
    any_model = own["models"][0]
    settled = {task: resolve_cell(any_model, task, "full", device="cpu") for task in own["tasks"]}
    found = {
        "methods": {
            f"{stack}|{kind}": stack_hash(parse_stack(stack, kind))
            for stack in _stacks(root, own["methods"])
            for kind in _kinds(stack)
        },
        "tasks": {task: cell.hashes["task"] for task, cell in settled.items()},
        "models": {m: model_hash(plugins.get("models", m)) for m in own["models"]},
    }
    return {kind: {n: found[kind][n][:DIGITS] for n in sorted(found[kind])} for kind in found}


def write(path: Path) -> None:
    """Write the list of now."""
    write_json(path, published_hashes())


def write_for(target: Path) -> None:
    """Write the checkout's list where `target` is in the checkout's results, else do nothing."""
    root = plugins.checkout()
    if root is not None and target.resolve().is_relative_to(root / "results"):
        write(root / FILE)


def _own(kind: str, root: Path) -> list[str]:
    """The checkout's plugins of a kind, without those of `LEANTUNE_PLUGINS` or another package."""
    found = plugins.discover(kind)
    return sorted(name for name in found if found[name].is_relative_to(root / kind))


def _stacks(root: Path, methods: list[str]) -> list[str]:
    """Every stack of these methods that is listed, each once."""
    points = {name: plugins.get("methods", name).spec.points for name in methods}
    names = {*methods, *(f"{name}@{point}" for name in methods for point in points[name])}
    names |= {file.parent.name for file in (root / "results").rglob("records/**/*.json")}
    for config in map(load_config, (root / "config").glob("*.yaml")):
        blocks: list[Any] = [*config.cells, *config.timing, *config.footprint]
        names |= {method for block in blocks for method in block.methods}
    return sorted(name for name in names if {*plugin_names(name)} <= {*methods})


def _kinds(stack: str) -> list[str]:
    """The kinds of task that every method of a stack supports."""
    specs = [plugins.get("methods", name).spec for name in plugin_names(stack)]
    supported = [spec.supports.tasks or KINDS for spec in specs if spec.supports]
    return [kind for kind in KINDS if all(kind in tasks for tasks in supported)]
