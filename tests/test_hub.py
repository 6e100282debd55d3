"""Fetching from the hub and from a mirror, and the lock: on a real (local) hub server."""

import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import ask
from huggingface_hub import hf_hub_download, snapshot_download
from small import load_made

from leantune.errors import BadInput
from leantune.fetch import cache, hub
from leantune.fetch.source import fetch

MODEL = {"hub": "org/name"}
DATA = {"hub": "org/name", "repo_type": "dataset"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Caches and a lock of the test's own; the hub is a port where nobody answers."""
    monkeypatch.setenv("LEANTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LEANTUNE_SOURCES_LOCK", str(tmp_path / "sources.lock"))
    monkeypatch.delenv("LEANTUNE_MIRROR", raising=False)
    ask(monkeypatch, "http://127.0.0.1:9")
    return tmp_path


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A function that puts files into a mirror folder."""
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("LEANTUNE_MIRROR", str(tmp_path / "mirror"))

    def put(files, repository="org/name"):
        for name, text in files.items():
            path = tmp_path / "mirror" / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return put


def locked():
    return json.loads(hub.lock_file().read_text())


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


# ------------------------------------------------------------------ the hub and its lock


def test_a_branch_is_resolved_once_and_its_commit_read_ever_after(server):
    first = server.push({"config.json": "{}", "model.safetensors": "weights"})
    assert contents(fetch(MODEL)) == {"config.json": "{}", "model.safetensors": "weights"}
    entry = locked()["models/org/name"]
    assert entry["revision"] == first
    digest = hashlib.sha256(b"weights").hexdigest()
    assert entry["files"]["model.safetensors"] == {"size": 7, "sha256": digest}
    assert list(entry["files"]) == ["config.json", "model.safetensors"]

    second = server.push({"config.json": "{}", "model.safetensors": "others"})
    assert fetch(MODEL).name == first
    hub.lock_file().unlink()
    assert fetch(MODEL).name == second
    assert locked()["models/org/name"]["revision"] == second


def test_another_machine_with_the_same_lock_gets_the_same_commit(server, tmp_path, monkeypatch):
    first = server.push({"config.json": "1"})
    fetch(MODEL)
    server.push({"config.json": "2"})
    monkeypatch.setenv("LEANTUNE_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another hub"))
    assert fetch(MODEL).name == first
    assert hub.locked_revisions([MODEL, {"none": True}]) == {"models/org/name": first}


def test_what_is_there_is_not_asked_for_again(server):
    server.push({"config.json": "{}", "vocab.txt": "a"})
    fetch(MODEL)
    server.asked.clear()
    fetch(MODEL)
    assert server.asked == []


def test_what_the_user_has_of_the_hub_is_not_fetched_twice(server):
    """Another program read one file of the commit; only what is missing is downloaded."""
    server.push({"config.json": "{}", "model.safetensors": "weights"})
    file = hf_hub_download("org/name", "model.safetensors")
    server.asked.clear()
    folder = fetch(MODEL)
    assert folder == Path(file).parent
    assert set(contents(folder)) == {"config.json", "model.safetensors"}
    assert not any("model.safetensors" in path for path in server.asked)
    server.asked.clear()
    snapshot_download("org/name", revision=folder.name)  # nor does the user fetch what we have
    assert server.asked == []


def test_each_revision_asked_for_has_its_own_entry(server):
    first = server.push({"config.json": "1"})
    server.branches["models/org/name", "v1"] = first
    second = server.push({"config.json": "2"})
    assert [
        fetch({**MODEL, **asked}).name for asked in ({}, {"revision": "v1"}, {"revision": first})
    ] == [
        second,
        first,
        first,
    ]
    revisions = {key: entry["revision"] for key, entry in locked().items()}
    assert revisions == {
        "models/org/name": second,
        "models/org/name@v1": first,
        f"models/org/name@{first}": first,
    }


def test_weights_are_taken_once_and_as_safetensors_where_they_can_be(server):
    other = {
        "model.onnx": "o",
        "onnx/model.onnx": "o",
        "tf_model.h5": "t",
        "flax_model.msgpack": "f",
    }
    server.push({"config.json": "{}", "model.safetensors": "s", "pytorch_model.bin": "p", **other})
    assert set(contents(fetch(MODEL))) == {"config.json", "model.safetensors"}
    server.push({"config.json": "{}", "pytorch_model.bin": "p", **other}, "models/org/older")
    assert set(contents(fetch({"hub": "org/older"}))) == {"config.json", "pytorch_model.bin"}


def test_data_takes_the_files_it_names_and_the_entry_grows(server):
    files = {"README.md": "r", "a/train.csv": "1", "b/train.csv": "2", ".gitattributes": "x"}
    server.push(files, "datasets/org/name")
    server.push({"config.json": "{}"})  # a model of the same name
    assert set(contents(fetch({**DATA, "files": ["a/*", "README.md"]}))) == {
        "README.md",
        "a/train.csv",
    }
    assert list(locked()["datasets/org/name"]["files"]) == ["README.md", "a/train.csv"]
    fetch({**DATA, "files": ["b/*", "README.md"]})
    fetch(MODEL)
    assert {key: list(entry["files"]) for key, entry in locked().items()} == {
        "datasets/org/name": ["README.md", "a/train.csv", "b/train.csv"],
        "models/org/name": ["config.json"],
    }
    with pytest.raises(
        BadInput, match=r"hub org/name has no file that matches \['c/\*'\]; correct `files:`"
    ):
        fetch({**DATA, "files": ["c/*"]})


def test_a_changed_file_in_the_cache_is_refused(server):
    server.push({"config.json": "{}"})
    file = fetch(MODEL) / "config.json"
    file.write_text("[]")
    with pytest.raises(BadInput, match=r"config.json has sha256 4f53.* but 4413.* is locked"):
        fetch(MODEL)


def test_a_data_set_of_the_hub_is_read_through_its_readme(server):
    """Its files in the cache are links to blobs whose names say nothing of their format."""
    front = (
        "---\nconfigs:\n- config_name: other\n  data_files: other/*\n"
        "- config_name: small\n  data_files:\n"
    )
    front += (
        "".join(f"  - split: {split}\n    path: small/{split}-*\n" for split in ("train", "dev"))
        + "---\n"
    )
    rows = {
        split: "".join(f"{split} {i},{'yn'[i % 2]}\n" for i in range(40))
        for split in ("train", "dev")
    }
    files = {f"small/{split}-0.csv": f"question,mark\n{text}" for split, text in rows.items()}
    server.push(
        {"README.md": front, "other/train.csv": "not asked for", **files}, "datasets/org/name"
    )
    task = {
        "name": "own",
        "kind": "classification",
        "folder": Path(),
        "splits": {"train": 20, "validation": 5, "test": 30},
        "source": {**DATA, "files": ["small/*", "README.md"]},
        "dataset": {
            "config": "small",
            "text": "question",
            "label": "mark",
            "train": "train",
            "test": "dev",
        },
    }
    data = load_made(task, None, 8)
    assert data.label_names == ("n", "y")
    assert all(text.startswith("dev") for text in data.test["text"])
    assert not any(path.endswith("other/train.csv") for path in server.asked)


@pytest.mark.parametrize("step", ["tree", "resolve"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_where_to_ask(server, step, status):
    server.push({"train.csv": "1"}, "datasets/org/name")
    server.refused["datasets/org/name"] = (step, status)
    page = re.escape(f"{server.url}/datasets/org/name")
    with pytest.raises(
        BadInput,
        match=rf"hub org/name is gated: ask for access on {page}, then run `hf auth login`",
    ):
        fetch(DATA)
    assert not hub.lock_file().exists()


def test_a_missing_repository_and_a_missing_revision(server):
    server.push({"config.json": "{}"})
    with pytest.raises(
        BadInput,
        match=r"the hub has no dataset org/name that you may read; correct the name or `repo_t",
    ):
        fetch(DATA)
    with pytest.raises(BadInput, match=r"hub org/name has no revision 'v9'; correct `revision:`"):
        fetch({**MODEL, "revision": "v9"})
    with pytest.raises(BadInput, match="must be written org/name"):
        fetch({"hub": "../name"})
    assert not hub.lock_file().exists()


def test_without_a_network_only_what_was_fetched_can_be_had(server, monkeypatch):
    server.push({"config.json": "{}", "a": "1"})
    fetch(MODEL)
    ask(monkeypatch, "http://127.0.0.1:9")
    assert fetch(MODEL).name == locked()["models/org/name"]["revision"]
    with pytest.raises(
        BadInput,
        match=r"hub org/other could not be fetched .* check the network .* LEANTUNE_MIRROR",
    ) as e:
        fetch({"hub": "org/other"})
    assert "\n" not in str(e.value)


@pytest.mark.process
def test_hub_offline_says_which_setting_forbids_it(tmp_path):
    code = "from leantune.fetch.source import fetch; fetch({'hub': 'org/name', 'revision': 'v1'})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "BadInput: hub org/name at v1 could not be fetched" in done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr.splitlines()[-1]


# ------------------------------------------------------------------ the mirror


def test_a_mirror_serves_a_repository_and_a_member_of_it(mirror):
    mirror({"config.json": "{}", ".git/config": "x"})
    assert fetch({**MODEL, "path": "config.json"}).read_text() == "{}"
    assert locked() == {
        "models/org/name": {
            "revision": None,
            "files": {"config.json": {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}},
        }
    }


def test_a_data_set_may_lie_apart_from_a_model_of_its_name(mirror):
    mirror({"train.csv": "model's"})
    assert (fetch(DATA) / "train.csv").read_text() == "model's"  # there is only this one
    hub.lock_file().unlink()
    mirror({"train.csv": "data's"}, "datasets/org/name")
    assert (fetch(DATA) / "train.csv").read_text() == "data's"
    assert (fetch(MODEL) / "train.csv").read_text() == "model's"


def test_a_mirror_must_hold_what_the_hub_gave(server, mirror, tmp_path, monkeypatch):
    commit = server.push({"a.csv": "1", "b.csv": "2"}, "datasets/org/name")
    fetch(DATA)
    mirror({"a.csv": "1", "b.csv": "2"})
    assert fetch(DATA) == tmp_path / "mirror" / "org" / "name"
    assert locked()["datasets/org/name"]["revision"] == commit
    mirror({"b.csv": "3"})
    then, now = (hashlib.sha256(text).hexdigest() for text in (b"2", b"3"))
    with pytest.raises(
        BadInput, match=f"hub org/name: b.csv has sha256 {now}, but {then} is locked;"
    ) as error:
        fetch(DATA)
    assert f"removing the entry 'datasets/org/name' from {hub.lock_file()}" in str(error.value)
    (tmp_path / "mirror/org/name/b.csv").unlink()
    with pytest.raises(BadInput, match=r"b\.csv is locked and missing"):
        fetch(DATA)
    hub.lock_file().write_text("{}")
    fetch(DATA)
    assert list(locked()["datasets/org/name"]["files"]) == ["a.csv"]


def test_what_a_mirror_locked_gets_its_commit_from_the_hub(server, mirror, monkeypatch):
    mirror({"config.json": "{}"})
    fetch(MODEL)
    monkeypatch.delenv("LEANTUNE_MIRROR")
    commit = server.push({"config.json": "{}"})
    fetch(MODEL)
    assert locked()["models/org/name"]["revision"] == commit


def test_bytes_are_read_again_only_when_a_file_changed(mirror, tmp_path, monkeypatch):
    read = []
    digest = cache.file_sha256
    monkeypatch.setattr(cache, "file_sha256", lambda path: read.append(path.name) or digest(path))
    mirror({"a": "1", "b": "2"})
    fetch(MODEL)
    fetch(MODEL)
    os.utime(tmp_path / "mirror/org/name/b", (1, 1))
    fetch(MODEL)
    assert read == ["a", "b", "b"]


def test_a_mirror_that_is_no_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LEANTUNE_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=r"LEANTUNE_MIRROR names .*nowhere', which is not a folder"):
        fetch(MODEL)


# ------------------------------------------------------------------ the lock's file


def test_many_at_once_lose_nothing(mirror):
    names = [f"org/n{i}" for i in range(24)]
    for name in names:
        mirror({"config.json": name}, name)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: fetch({"hub": name}), names))
    assert list(locked()) == sorted(f"models/{name}" for name in names)


def test_processes_that_resolve_a_moving_branch_agree(server, monkeypatch):
    """The branch moves after this one has asked and before it has written, and another process
    writes first."""
    first = server.push({"config.json": "1"})
    fetched = hub._downloaded

    def slow(source, revision):
        folder = fetched(source, revision)
        if revision is None:
            monkeypatch.setattr(hub, "_downloaded", fetched)
            server.push({"config.json": "2"})
            fetch(MODEL)
        return folder

    monkeypatch.setattr(hub, "_downloaded", slow)
    folder = fetch(MODEL)
    assert folder.name == locked()["models/org/name"]["revision"] != first


def test_the_lock_lies_in_the_working_directory(mirror, tmp_path, monkeypatch):
    monkeypatch.delenv("LEANTUNE_SOURCES_LOCK")
    monkeypatch.chdir(tmp_path)
    mirror({"config.json": "{}"})
    fetch(MODEL)
    assert list(json.loads(Path("sources.lock").read_text())) == ["models/org/name"]


@pytest.mark.parametrize(
    "text", ["{", '{"models/org/name": {"revision": "main", "files": {}}}', '{"org/name": {}}']
)
def test_a_damaged_lock_is_named(mirror, text):
    mirror({"config.json": "{}"})
    hub.lock_file().write_text(text)
    with pytest.raises(BadInput, match=r"sources\.lock"):
        fetch(MODEL)
    assert hub.lock_file().read_text() == text
