"""Discovery, validation, stacks, points, content hashes."""

import pytest

from leantune.errors import BadInput
from leantune.spec import plugins as registry
from leantune.spec.hashes import _method_code_hash, stack_hash
from leantune.spec.stacks import parse_stack, stack_name
from leantune.training.stack import load_method

METHOD = """name: {name}
summary: A method made by a test.
slot: adaptation
params: {{lr: 1.0e-3, rank: 4}}
kinds: {{causal_lm: {{lr: 1.0e-4}}}}
points: {{big: {{rank: 64}}}}
{extra}
"""
CODE = """from leantune.api import Method
class Mine(Method):
    pass
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A function that adds a method folder to a plugin path of the test's own."""
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(tmp_path))

    def add(name, extra="", code=CODE, text=METHOD):
        folder = tmp_path / "methods" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "method.yaml").write_text(text.format(name=name, extra=extra))
        if code:
            (folder / "method.py").write_text(code)
        for cached in (
            registry._discovered,
            registry.read,
            _method_code_hash,
        ):
            cached.cache_clear()
        return folder

    yield add
    registry._discovered.cache_clear()
    registry.read.cache_clear()


def test_every_shipped_plugin_is_valid():
    for kind in ("methods", "tasks", "models"):
        assert registry.discover(kind)
        for name in registry.discover(kind):
            assert registry.get(kind, name).name == name


def test_shipped_methods_load_and_hold_one_class():
    for name in registry.discover("methods"):
        assert load_method(name).__name__


def test_settings_come_from_defaults_then_kind_then_point_then_override(plugins):
    plugins("mine")
    assert parse_stack("mine", "classification")[0].params == {"lr": 1e-3, "rank": 4}
    assert parse_stack("mine", "causal_lm")[0].params["lr"] == 1e-4
    assert parse_stack("mine@big", "classification")[0].params["rank"] == 64
    assert parse_stack("mine@big", "classification", {"mine.rank": 5})[0].params["rank"] == 5


def test_stacks_are_put_in_slot_order_and_full_is_implied():
    parts = parse_stack("came+vocab_pruning", "classification")
    assert [p.slot for p in parts] == ["vocabulary", "adaptation", "optimizer"]
    assert stack_name(parts) == "vocab_pruning+came"
    assert stack_name(parse_stack("full", "classification")) == "full"


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("no_such", "unknown method 'no_such'"),
        ("lora+full", "both take the slot 'adaptation'"),
        ("tfidf+came", "cannot be stacked"),
        ("lora@huge", "has no point 'huge'"),
    ],
)
def test_an_illegal_stack_is_one_clear_sentence(stack, words):
    with pytest.raises(BadInput, match=words):
        parse_stack(stack, "classification")


def test_an_override_must_name_a_setting_of_the_stack():
    with pytest.raises(BadInput, match="no setting 'ranks'"):
        parse_stack("lora", "classification", {"lora.ranks": 2})
    with pytest.raises(BadInput, match="not in the stack"):
        parse_stack("lora", "classification", {"came.lr_scale": 2})


def test_a_wrong_key_is_named_with_the_file_and_what_is_allowed(plugins):
    folder = plugins("mine", extra="slots: 3")
    with pytest.raises(BadInput) as error:
        registry.get("methods", "mine")
    assert str(folder / "method.yaml") in str(error.value)
    assert "slots" in str(error.value)
    assert "points" in str(error.value)


def test_a_name_that_is_not_the_folder_is_refused(plugins):
    plugins("mine", text=METHOD.replace("{name}", "other"))
    with pytest.raises(BadInput, match="folder or file is called 'mine'"):
        registry.get("methods", "mine")


def test_broken_yaml_names_file_and_line(plugins):
    plugins("mine", extra="broken: [1, 2")
    with pytest.raises(BadInput, match=r"method\.yaml.*not valid YAML"):
        registry.get("methods", "mine")


def test_base_shares_code_and_settings(plugins):
    plugins("mine")
    plugins(
        "child",
        text="name: child\nsummary: Another set of settings.\nslot: adaptation\n"
        "base: mine\nparams: {{rank: 9}}\n",
        code="",
    )
    assert load_method("child") is load_method("mine")
    assert parse_stack("child", "causal_lm")[0].params == {"lr": 1e-4, "rank": 9}


def test_the_stack_hash_follows_code_and_settings_and_nothing_else(plugins):
    def current():
        return stack_hash(parse_stack("mine", "classification"))

    folder = plugins("mine")
    first = current()
    plugins("mine", text=METHOD.replace("made by a test", "made by another test"))
    assert current() == first  # the summary is not what a number depends on
    plugins("mine", code=CODE + "\nX = 1\n")
    assert current() != first
    plugins("mine", code=CODE)
    assert current() == first
    plugins("mine", text=METHOD.replace("rank: 4", "rank: 5"))
    assert current() != first
    assert folder.exists()
