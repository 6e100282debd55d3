"""What the published numbers depend on has not changed unnoticed.

A move of code must touch no hash, of plugins or in records. Torch is not needed: hashes are of
files and settings.
"""

import json

import pytest

from leantune.errors import BadInput
from leantune.files.record import read_records
from leantune.results.load import is_stale
from leantune.spec import plugins, published_hashes
from leantune.spec.stacks import plugin_names

ROOT = plugins.checkout()
HOW_TO = "an issue that changes it later says which and why, "  # what to do about it
HOW_TO += "and `leantune publish` rewrites the list"


def _told(listed, found):
    """One line for each hash that is new, gone or another."""
    lines = []
    for kind in sorted({*listed, *found}):
        before, now = listed.get(kind, {}), found.get(kind, {})
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                was = before.get(name, "not listed")
                lines.append(f"{kind} {name}: {was} -> {now.get(name, 'gone')}")
    return lines


def test_no_published_method_task_or_model_has_another_hash():
    listed = json.loads((ROOT / published_hashes.FILE).read_text())
    changed = _told(listed, published_hashes.published_hashes())
    assert not changed, "\n".join([*changed, HOW_TO])


def test_a_changed_hash_is_named():
    listed = {"methods": {"lora|span": "a", "full|span": "b"}, "models": {"gpt2": "c"}}
    found = {"methods": {"lora|span": "d", "full|span": "b"}, "tasks": {"squad": "e"}}
    assert _told(listed, found) == [
        "methods lora|span: a -> d",
        "models gpt2: c -> gone",
        "tasks squad: not listed -> e",
    ]


def test_every_kind_of_stack_is_in_the_list():
    """Methods alone, points, stacks of records, and stacks that only a config names."""
    found = published_hashes.published_hashes()
    for name in ("full|classification", "svfit@r64|span", "vocab_pruning+safe+came|classification"):
        assert name in found["methods"]
    assert "lora+adamw_8bit|classification" in found["methods"]  # records in results/baselines
    assert "adafactor@no_momentum|span" in found["methods"]  # config/paper.yaml
    assert "tfidf|causal_lm" not in found["methods"]  # which it does not support
    for kind in ("tasks", "models"):
        assert {*found[kind]} == {*plugins.discover(kind)}


def test_only_a_publication_into_the_checkouts_results_rewrites_the_list(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(published_hashes, "write", written.append)
    published_hashes.write_for(tmp_path / "results")
    assert not written
    published_hashes.write_for(ROOT / "results" / "baselines")
    assert written == [ROOT / published_hashes.FILE]


def test_the_list_is_written_sorted(tmp_path):
    published_hashes.write(tmp_path / "list.json")
    assert (tmp_path / "list.json").read_text() == (ROOT / published_hashes.FILE).read_text()


def test_an_installed_leantune_has_no_list(monkeypatch):
    monkeypatch.setattr(plugins, "checkout", lambda: None)
    with pytest.raises(BadInput, match="checkout"):
        published_hashes.published_hashes()


# Their code has changed since their records were made: they find what they change in the model's
# module tree, no longer by a table of families. All records are made again at the next publication.
CHANGED = {
    "adapter",
    "adapterdrop",
    "bitfit",
    "ia3",
    "lora",
    "peft",
    "qlora",
    "softlms",
    "svfit",
    "vocab_pruning",
}


def _changed(method):
    """Whether a stack has one of the changed methods, or one that is based on one."""
    names = {*plugin_names(method)}
    for _ in range(3):
        names |= {base for name in names if (base := plugins.get("methods", name).spec.base)}
    return bool(names & CHANGED)


def test_only_records_of_changed_methods_are_stale():
    folders = (ROOT / "results").rglob("records")
    found = [one for folder in folders for one in read_records(folder)]
    assert len(found) > 300
    broken = [path for path, one in found if isinstance(one, BadInput)]
    stale = [
        path
        for path, one in found
        if not isinstance(one, BadInput) and is_stale(one) and not _changed(one["cell"]["method"])
    ]
    assert not broken + stale, "stale or damaged:\n" + "\n".join(map(str, broken + stale))
