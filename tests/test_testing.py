"""`leantune.testing` notices what it is for: one broken method for each check, and a sound one that
passes them all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leantune import testing
from leantune.api import BadInput
from leantune.cli import new
from leantune.spec import plugins
from leantune.testing import Subject

YAML = """name: {name}
summary: A method made by a test.
slot: adaptation
params: {{lr: 1.0e-2}}
{extra}"""
CODE = """import random, socket, pathlib, torch
from leantune.api import Method, freeze_body

class Mine(Method):
    def attach(self, model, data, ctx):
        freeze_body(model)
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name:
                parameter.requires_grad_(True)
{attach}
        return model, data
{more}
"""
HOOK = "    def on_step(self, model, step, ctx):\n        {}\n"
BROKEN = {  # check: what joins `attach`, other methods, what joins the yaml, what is said
    "valid_yaml": ("", "", "search: {rank: [1, 2]}\n", "`search` names 'rank'"),
    "deterministic_attach": (
        "        if not ctx.probe:\n            model.classifier.bias.data.fill_(random.random())",
        "",
        "",
        "'classifier.bias' other values",
    ),
    "only_declared_parameters_move": (
        "",
        HOOK.format("next(iter(model.parameters())).data.add_(1e-3)"),
        "",
        "'bert.embeddings.word_embeddings.weight' was",
    ),
    "learns_an_easy_task": (
        "",
        "    def parameter_groups(self, model, ctx):\n"
        "        return [{**g, 'lr': 0.0} for g in super().parameter_groups(model, ctx)]\n",
        "",
        "the loss went from",
    ),
    "export_and_reload_agree": (
        "",
        "    def export(self, model, ctx):\n"
        "        model.classifier.bias.data.add_(0.5)\n"
        "        return model\n",
        "",
        "export changed it",
    ),
    "prediction_equals_real_peak": (
        "        if not ctx.probe:\n"
        "            model.register_buffer('more', torch.zeros(999), persistent=False)",
        "",
        "",
        "peak_bytes: predicted",
    ),
    "no_network": (
        "        try:\n"
        "            socket.create_connection(('192.0.2.1', 80), 1)\n"
        "        except OSError:\n"
        "            pass",
        "",
        "",
        "192.0.2.1",
    ),
    "no_writes_outside_scratch": (
        "        (ctx.cache / 'mine').write_text('fine')\n"
        "        pathlib.Path('notes.txt').write_text('not fine')",
        "",
        "",
        "notes.txt; its scratch is ctx.cache",
    ),
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Subject]:
    """A function that makes a method of its own name in a folder on the search path."""
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # a broken method leaves a file where it runs

    def add(name: str, attach: str = "", more: str = "", extra: str = "") -> Subject:
        folder = tmp_path / "methods" / name
        folder.mkdir(parents=True)
        (folder / "method.yaml").write_text(YAML.format(name=name, extra=extra))
        (folder / "method.py").write_text(CODE.format(attach=attach, more=more))
        plugins._discovered.cache_clear()
        return Subject(name)

    return add


@pytest.mark.parametrize("name", BROKEN)
def test_each_check_fails_for_the_method_that_breaks_it_and_no_other_does(
    name: str, plugin: Callable[..., Subject]
) -> None:
    attach, more, extra, message = BROKEN[name]
    subject = plugin(f"breaks_{name}", attach, more, extra)
    said = {}
    for check in testing.checks_of(subject):
        try:
            check(subject)
        except AssertionError as error:
            said[check.__name__] = str(error)
    assert list(said) == [f"check_{name}"]
    assert message in said[f"check_{name}"]


def test_there_is_a_broken_method_for_every_check() -> None:
    assert [f"check_{name}" for name in BROKEN] == [check.__name__ for check in testing.CHECKS]


def test_a_file_written_past_the_working_folder_is_noticed(
    plugin: Callable[..., Subject], tmp_path: Path
) -> None:
    subject = plugin(
        "writes_elsewhere", f"        pathlib.Path('{tmp_path}', 'elsewhere').write_text('no')"
    )
    with pytest.raises(AssertionError, match=r"wrote to .*elsewhere"):
        testing.check_no_writes_outside_scratch(subject)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [{'params': list(model.parameters()), 'lr': 1e-3}]", "or one that is frozen"),
        ("return super().parameter_groups(model, ctx)[:1]", "is in no group"),
    ],
)
def test_groups_are_what_is_trained(
    body: str, message: str, plugin: Callable[..., Subject]
) -> None:
    subject = plugin(
        f"groups_{len(body)}", "", f"    def parameter_groups(self, model, ctx):\n        {body}\n"
    )
    with pytest.raises(AssertionError, match=message):
        testing.check_only_declared_parameters_move(subject)


def test_a_module_that_transformers_cannot_load_does_not_come_back(
    plugin: Callable[..., Subject],
) -> None:
    wrap = "        model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Linear(2, 2))"
    subject = plugin("wraps", wrap)
    with pytest.raises(AssertionError, match="another one after saving and loading"):
        testing.check_export_and_reload_agree(subject)


def test_a_folder_gives_its_methods_and_joins_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEANTUNE_PLUGINS", "")
    with pytest.raises(BadInput, match="give the folder above methods/"):
        testing.parametrize_with_checks(tmp_path)
    new.create("method", "fresh_one", tmp_path)
    mark = testing.parametrize_with_checks(tmp_path).mark
    assert {subject.name for subject, _ in mark.args[1]} == {"fresh_one"}
    assert [check for _, check in mark.args[1]] == list(testing.CHECKS)
    assert "fresh_one-check_no_network" in mark.kwargs["ids"]
    assert tmp_path in plugins.roots()
    new.create("method", "lora", tmp_path)
    plugins._discovered.cache_clear()
    with pytest.raises(BadInput, match="'lora' is the name of another method"):
        testing.parametrize_with_checks(tmp_path)


@pytest.mark.process
def test_a_scaffolded_method_passes_in_a_pytest_of_its_own(tmp_path: Path) -> None:
    """What `leantune new` writes, checked as its author would."""
    new.create("method", "norm_tuning", tmp_path)
    (tmp_path / "test_mine.py").write_text(
        "from pathlib import Path\n"
        "from leantune.testing import parametrize_with_checks\n\n"
        "@parametrize_with_checks(Path(__file__).parent)\n"
        "def test_mine(method, check):\n    check(method)\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{len(testing.CHECKS)} passed" in done.stdout


def test_what_applies_depends_on_what_the_method_is() -> None:
    names = {
        name: [c.__name__[6:] for c in testing.checks_of(Subject(name))]
        for name in ("tfidf", "zero_shot", "lora")
    }
    assert names["tfidf"] == [
        "valid_yaml",
        "deterministic_attach",
        "no_network",
        "no_writes_outside_scratch",
    ]
    assert set(names["lora"]) - set(names["zero_shot"]) == {
        "only_declared_parameters_move",
        "learns_an_easy_task",
        "prediction_equals_real_peak",
    }
