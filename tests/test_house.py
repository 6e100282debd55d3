"""Guards of how the code is arranged: what stays without torch, who may import whom.

The lists of exceptions hold what is so today. Each must be exactly what is found, so that one that
is no longer needed goes, and none joins unnoticed.
"""

import ast
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "leantune"

# What the workflow, the tables and the command line import; a scheduler asks for them once a job.
TORCH_FREE = ("errors", "files", "fetch", "machine", "spec", "results", "report", "workflow", "cli")

# What files of plugin and script authors use of leantune beyond its contract, and why they may.
BEYOND_THE_CONTRACT = {
    # Its page documents the meter, for somebody who measures a training loop of their own.
    "docs/reference/meter.md": ["leantune.meter.allocator", "leantune.meter.tensors"],
}
PLUGIN_CODE = ("methods/**/*.py", "tasks/**/*.py", "docs/sample-plugin/**/*.py", "examples/*.py")
PLUGIN_PAGES = (
    *("docs/*.md", "docs/reference/*.md", "docs/sample-plugin/*.md"),
    *("README.md", "methods/*/README.md"),
)

ARROWS_FOR_NOW: list[str] = []

PUBLIC_FUNCTIONS = ("apply", "load", "load_data", "predict", "read_records", "advise")
NAMES_FOR_NOW: set[str] = set()

MOVED = True  # whether the packages that the questions name are there
CELLS = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["full", "lora+came"]}


def fresh(code):
    """What a new process prints: here torch is imported already, and every module may be."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------ torch


def heavy(names, work=""):
    """The first module that imports torch or other heavy libraries, one process for all; `work` is
    a line that is run after them and must import none either."""
    code = f"""
import importlib, sys
def look(at):
    for heavy in ("torch", "transformers", "datasets"):
        if heavy in sys.modules:
            sys.exit(print(at, heavy))
for name in {tuple(names)!r}:
    importlib.import_module(name)
    look(name)
{work}
look("its work")
"""
    return fresh(code)


@pytest.mark.process
def test_the_parts_without_torch_import_none():
    names = [name for name in house.modules_of(SOURCE) if name.split(".")[1:2] != []]
    plan = f"from leantune.workflow.jobs import Jobs; Jobs({{'cells': [{CELLS}]}})"
    assert heavy([name for name in names if name.split(".")[1] in TORCH_FREE], plan) == ""


@pytest.mark.process
def test_a_part_that_imports_torch_is_named():
    assert heavy(["leantune.errors", "leantune.api"]) == "leantune.api torch\n"
    assert heavy(["leantune.errors"], "import datasets") == "its work datasets\n"


# ------------------------------------------------------------------ plugins


def used_by_plugins(root, modules):
    """File to what it uses outside the contract, for the files of plugin authors below `root`."""
    files = {file for pattern in (*PLUGIN_CODE, *PLUGIN_PAGES) for file in root.glob(pattern)}
    found = {}
    for file in sorted(files):
        text = file.read_text(encoding="utf-8")
        for code in [text] if file.suffix == ".py" else house.python_blocks(text):
            if names := house.foreign(code, modules):
                place = str(file.relative_to(root))
                found[place] = sorted({*found.get(place, ()), *names})
    return found


def test_plugins_import_the_contract_only():
    assert used_by_plugins(ROOT, house.modules_of(SOURCE)) == BEYOND_THE_CONTRACT


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from leantune.api import Method\nfrom leantune_plugins.lora.method import Lora\n", []),
        ("import leantune\nleantune.apply(1)\nleantune.load('x')\n", []),
        ("from leantune import apply, load, modules, svd\n", []),
        ("from leantune import data\n", ["leantune.data"]),
        ("import leantune.meter.tensors as tensors\n", ["leantune.meter.tensors"]),
        (
            "import leantune\n\ndef f():\n    leantune.meter.tensors.TensorMeter()\n",
            ["leantune.meter.tensors"],
        ),
        ("def f():\n    from leantune.meter import tensors\n", ["leantune.meter.tensors"]),
        ("from leantune.gone import it\n", ["leantune.gone.it"]),
        ("from leantune import gone\n", ["leantune.gone"]),
    ],
)
def test_what_a_plugin_must_not_import_is_found(tmp_path, code, found):
    page = "1. A step:\n\n" + textwrap.indent(f"```python\n{code}```\n", "   ")
    for file, text in (("methods/mine/method.py", code), ("docs/mine.md", page)):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    expected = {"docs/mine.md": found, "methods/mine/method.py": found} if found else {}
    assert used_by_plugins(tmp_path, house.modules_of(SOURCE)) == expected


# ------------------------------------------------------------------ layers


def test_no_module_imports_what_stands_above_or_beside_it():
    assert house.arrows(SOURCE) == sorted(ARROWS_FOR_NOW)


SOUND = {
    "__init__.py": "from leantune.training import apply\n",
    "__main__.py": "from leantune.cli import main\n",
    "errors.py": "",
    "api.py": "from leantune import MEASUREMENT_VERSION, errors\nfrom leantune.svd import f\n",
    "svd.py": "from leantune.fetch.cache import entry\n",
    "testing.py": "from leantune.workflow import jobs\nfrom leantune.api import Method\n",
    "cli/__init__.py": "from leantune.testing import check\n",
    "workflow/__init__.py": "",
    "workflow/jobs.py": "from leantune import results\nfrom leantune.workflow import launch\n",
    "workflow/launch.py": "def _own():\n    return _own\n",
    "report/__init__.py": "import leantune.results.ranking as ranking\nranking.tiers.__doc__\n",
    "results/__init__.py": "",
    "results/ranking.py": "from leantune.metrics import stats\n",
    "run/__init__.py": "from leantune.training.loop import train\n",
    "training/__init__.py": "",
    "training/loop.py": "from leantune.api import Method\n",
    "metrics/__init__.py": "",
    "metrics/stats.py": "def f(row):\n    return row._asdict()\n",
    "data/__init__.py": "",
    "fetch/__init__.py": "",
    "fetch/cache.py": "from leantune.files import text\n",
    "machine/__init__.py": "",
    "files/__init__.py": "",
    "files/text.py": "from leantune.errors import BadInput\n",
}


def tree(folder, changed):
    """A small leantune that keeps the rules, but for the files that `changed` has."""
    for file, code in {**SOUND, **changed}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(code)
    return folder


@pytest.mark.parametrize(
    ("file", "code", "found"),
    [
        ("errors.py", "", None),
        (
            *("metrics/stats.py", "from leantune.training.loop import train\n"),
            "leantune.metrics.stats imports leantune.training.loop, which stands above it",
        ),
        (
            *(
                "metrics/stats.py",
                "def f():\n    if f:\n        from leantune.training import loop\n",
            ),
            "leantune.metrics.stats imports leantune.training.loop, which stands above it",
        ),
        (
            *("metrics/stats.py", "if TYPE_CHECKING:\n    import leantune.training.loop\n"),
            "leantune.metrics.stats imports leantune.training.loop, which stands above it",
        ),
        (
            *(
                "metrics/stats.py",
                "import leantune\n\ndef f():\n    return leantune.training.loop.train()\n",
            ),
            "leantune.metrics.stats imports leantune.training.loop, which stands above it",
        ),
        (
            *("metrics/stats.py", "from ..training.loop import train\n"),
            "leantune.metrics.stats imports leantune.training.loop, which stands above it",
        ),
        (
            *(
                "metrics/stats.py",
                "import importlib\nimportlib.import_module('leantune.training.loop')\n",
            ),
            "leantune.metrics.stats imports leantune.training.loop, which stands above it",
        ),
        (
            *("metrics/stats.py", "from leantune.data import rows\n"),
            "leantune.metrics.stats imports leantune.data, which stands beside it",
        ),
        (
            *("results/ranking.py", "from leantune import run\n"),
            "leantune.results.ranking imports leantune.run, which stands beside it",
        ),
        (
            *("fetch/cache.py", "def f():\n    import leantune.machine\n"),
            "leantune.fetch.cache imports leantune.machine, which stands beside it",
        ),
        (
            *("fetch/cache.py", "from leantune.api import Method\n"),
            "leantune.fetch.cache imports leantune.api, which stands above it",
        ),
        (
            *("errors.py", "from leantune.files.text import table\n"),
            "leantune.errors imports leantune.files.text, which stands above it",
        ),
        (
            *("testing.py", "import leantune.cli\n"),
            "leantune.testing imports leantune.cli, which stands above it",
        ),
        (
            *("workflow/jobs.py", "from leantune.testing import check\n"),
            "leantune.workflow.jobs imports leantune.testing, which stands above it",
        ),
        (
            *("workflow/jobs.py", "from leantune.workflow.launch import _own\n"),
            "leantune.workflow.jobs uses the private leantune.workflow.launch._own",
        ),
        (
            *(
                "workflow/jobs.py",
                "from leantune.workflow import launch as l\n\ndef f():\n    l._own()\n",
            ),
            "leantune.workflow.jobs uses the private leantune.workflow.launch._own",
        ),
        (
            *(
                "workflow/jobs.py",
                "import leantune.workflow.launch\nleantune.workflow.launch._own()\n",
            ),
            "leantune.workflow.jobs uses the private leantune.workflow.launch._own",
        ),
        ("dag.py", "from leantune.cli import main\n", "leantune.dag stands outside the packages"),
        ("data.py", "from leantune.cli import main\n", "leantune.data stands outside the packages"),
        ("other/one.py", "", "leantune.other stands outside the packages"),
    ],
)
def test_a_broken_rule_is_found(tmp_path, file, code, found):
    source = tree(tmp_path, {file: code})
    if file == "data.py":  # in place of the package
        (source / "data" / "__init__.py").unlink()
    assert house.arrows(source) == ([] if found is None else [found])


# ------------------------------------------------------------------ one place each


def functions_with(pattern, *folders):
    """`module.function` of every function below the folders whose code has the pattern."""
    files = [file for folder in folders for file in (SOURCE / folder).rglob("*.py")]
    nodes = {
        f"{file.stem}.{node.name}": node
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    return [name for name, node in nodes.items() if re.search(pattern, ast.unparse(node))]


def test_one_function_keeps_predictions():
    """Nothing else that predicts writes JSON, so there is one cache."""
    pattern = r"write_json|json\.dump\("
    assert functions_with(pattern, "prediction", "results/claims") == ["ask.answer"]


def test_one_function_asks_the_driver():
    """The command is put together in one place; all else calls it."""
    assert functions_with(r"\['nvidia-smi'", ".") == ["gpus.start_query"]


def test_one_function_compares_two_records():
    """The values of two records at the same path meet in one place."""
    pattern = r"value\((\w+), (\w+)\).*value\((?!\1\b)(\w+), \2\)"
    assert functions_with(pattern, "results") == ["comparison.compare"]


# ------------------------------------------------------------------ names


def test_no_module_has_the_name_of_a_public_function():
    """`import leantune.load` would put a module where a function was."""
    names = {name.split(".")[1] for name in house.modules_of(SOURCE) if "." in name}
    assert names & {*PUBLIC_FUNCTIONS} == NAMES_FOR_NOW


@pytest.mark.process
def test_public_functions_stay_functions_whatever_is_imported():
    code = """
import importlib, pkgutil
import leantune

def check(after):
    for _ in range(2):
        for name in leantune.__all__:
            assert callable(getattr(leantune, name)), f"leantune.{name} after {after}"

check("leantune")
for module in pkgutil.walk_packages(leantune.__path__, "leantune."):
    if module.name != "leantune.__main__":
        importlib.import_module(module.name)
        check(module.name)
print("all")
"""
    assert fresh(code) == "all\n"


# ------------------------------------------------------------------ questions


def test_twenty_questions_have_one_place_each():
    """A newcomer finds each thing in one file; the questions do not name it."""
    asked = json.loads((ROOT / "tests" / "house_questions.json").read_text(encoding="utf-8"))
    paths = [one["path"] for one in asked]
    assert len(asked) == len({one["question"] for one in asked}) == len({*paths}) == 20
    missing = [path for path in paths if not (ROOT / path).is_file()]
    assert not (MOVED and missing), missing
