"""Splits, tokens, batches: on files made here, and on the real tasks."""

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from small import load_made, words

from leantune.data.collate import Collate, batches, longest_batch_shape
from leantune.data.load import load_data, sample_hash
from leantune.data.splits import split_rows
from leantune.errors import BadInput
from leantune.models.load import load_tokenizer
from leantune.spec import plugins
from leantune.tabfiles import read_tab

SIZES = {"train": 20, "validation": 5, "test": 10, "seed": 0}


def write_tab(path, rows, header="Category\tText"):
    path.write_text("\n".join([header, "d\tstring", "class\t", "", *rows]) + "\n", encoding="utf-8")


@pytest.fixture
def task(tmp_path):
    """A classification task on two local files: 60 training rows of three labels, 30 test rows."""
    write_tab(tmp_path / "train.tab", [f"{'abc'[i % 3]}\tw{i} w1 w2" for i in range(60)])
    write_tab(tmp_path / "test.tab", [f"{'abc'[i % 3]}\tw{i} w9 w8" for i in range(30)])
    return {
        "name": "made",
        "kind": "classification",
        "folder": tmp_path,
        "source": {"local": "."},
        "files": {"train": "train.tab", "test": "test.tab", "text": "Text", "label": "Category"},
        "splits": dict(SIZES),
    }


def real(name):
    return plugins.get("tasks", name)


# ------------------------------------------------------------------ files


def test_tab_file_skips_empty_rows_and_unquotes_whole_fields(tmp_path):
    write_tab(
        tmp_path / "a.tab",
        ["a\tplain", "", "\t", "b\t", "\tno label", 'c\t"he said ""no"""', 'd\t"half a quote'],
    )
    rows = read_tab(tmp_path / "a.tab", {"text": "Text", "label": "Category"})
    assert rows == {"text": ["plain", 'he said "no"', '"half a quote'], "label": ["a", "c", "d"]}
    with pytest.raises(BadInput, match="no column 'Content'; it has Category, Text"):
        read_tab(tmp_path / "a.tab", {"text": "Content"})


def test_task_without_files_or_loader(task):
    del task["files"]
    with pytest.raises(BadInput, match="neither `files:`"):
        load_made(task, None, 8)


# ------------------------------------------------------------------ splits


def test_splits_have_their_sizes_and_do_not_overlap(task):
    data = load_made(task, words(), 8)
    assert [len(data.train), len(data.validation), len(data.test)] == [20, 5, 10]
    assert not set(data.train["text"]) & set(data.validation["text"])
    assert all("w9" in text for text in data.test["text"])  # the test file's
    assert not any("w9" in text for text in [*data.train["text"], *data.validation["text"]])
    assert data.label_names == ("a", "b", "c")
    assert all(
        "abc"[label] == "abc"[int(text.split()[0][1:]) % 3]
        for text, label in zip(data.train["text"], data.train["label"], strict=True)
    )


def test_same_seed_same_sample_and_no_other(task):
    first = sample_hash(load_made(task, words(), 8))
    assert sample_hash(load_made(task, None, 3)) == first  # whatever reads it
    task["splits"]["seed"] = 1
    assert sample_hash(load_made(task, words(), 8)) != first


def test_sample_hash_sees_every_label_text_and_split(task):
    data = load_made(task, None, 8)
    rows = data.test.to_dict()
    changed = [
        {**rows, "label": [*rows["label"][:-1], 1 - min(rows["label"][-1], 1)]},
        {**rows, "text": [*rows["text"][:-1], "w"]},
    ]
    hashes = {sample_hash(dataclasses.replace(data, test=Dataset.from_dict(c))) for c in changed}
    moved = dataclasses.replace(data, validation=data.test, test=data.validation)
    assert len(hashes | {sample_hash(data), sample_hash(moved)}) == 4


def test_rare_labels_are_in_train(task):
    write_tab(
        task["folder"] / "train.tab",
        ["rare\tw1", *(f"common\tw{i}" for i in range(2, 500)), "odd\tw0"],
    )
    write_tab(task["folder"] / "test.tab", [f"common\tw{i}" for i in range(30)])
    for seed in range(5):
        task["splits"]["seed"] = seed
        data = load_made(task, None, 8)
        assert data.label_names == ("common", "odd", "rare")
        assert set(data.train["label"]) == {0, 1, 2}


def test_label_unseen_in_training_is_named(task):
    write_tab(task["folder"] / "test.tab", [f"{'az'[i % 2]}\tw{i}" for i in range(30)])
    with pytest.raises(
        BadInput, match="label 'z' of task 'made' is in the test split and never in training"
    ):
        load_made(task, None, 8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"validation": 0}, "empty validation split"),
        ({"test": 31}, "30 examples left for test, not 31"),
        (
            {"train": 56},
            "52 examples left for train, not 53",
        ),  # 60 less 5, and 3 taken first, one of each label
        ({"train": 2}, "3 labels and splits.train is 2"),
    ],
)
def test_impossible_splits(task, sizes, message):
    task["splits"].update(sizes)
    with pytest.raises(BadInput, match=message):
        load_made(task, None, 8)


def test_an_example_that_comes_twice_is_known_by_both_of_its_texts():
    raw = {
        "text": ["a", "a", "a", "b"],
        "pair": ["x", "y", "x", "x"],
        "label": [0.0, 1.0, 2.0, 3.0],
    }
    splits = split_rows({"all": raw}, {"train": 1, "validation": 1, "test": 1}, "regression", "t")
    found = sorted((*rows["text"], *rows["pair"]) for rows in splits.values())
    assert found == [("a", "x"), ("a", "y"), ("b", "x")]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from("ab")), min_size=40, max_size=80),
    st.integers(0, 99),
)
def test_one_file_splits_share_no_group_and_no_text(examples, seed):
    raw = {
        "text": [f"text {i // 2}" for i in range(len(examples))],  # every text twice
        "label": [label for _, label in examples],
        "group": [f"g{i // 2 % 11}" for i in range(len(examples))],
    }
    sizes = {"train": 3, "validation": 2, "test": 3, "seed": seed}
    splits = split_rows({"all": raw}, sizes, "regression", "t")
    group = dict(zip(raw["text"], raw["group"], strict=True))
    texts = {split: set(rows["text"]) for split, rows in splits.items()}
    groups = {split: {group[text] for text in rows["text"]} for split, rows in splits.items()}
    for a, b in [("train", "validation"), ("train", "test"), ("validation", "test")]:
        assert not texts[a] & texts[b]
        assert not groups[a] & groups[b]
    assert {split: len(rows["text"]) for split, rows in splits.items()} == {
        "train": 3,
        "validation": 2,
        "test": 3,
    }


# ------------------------------------------------------------------ language modelling


@pytest.fixture
def corpus(task):
    rows = [
        f"x\t{' '.join(f'w{i}' for i in range(start, start + 7))}" for start in range(0, 4900, 7)
    ]
    write_tab(task["folder"] / "all.tab", rows)
    files = {"all": "all.tab", "text": "Text"}
    return {**task, "kind": "causal_lm", "files": files}


@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm"])
def test_blocks_are_full_and_never_shared(corpus, kind):
    sizes = {"train": 250, "validation": 30, "test": 30}  # nearly all there is
    data = load_made({**corpus, "kind": kind, "splits": sizes}, words(), 10)
    seen: Counter = Counter()
    for split, count in ((data.train, 250), (data.validation, 30), (data.test, 30)):
        assert len(split) == count
        for ids in split["input_ids"]:
            assert len(ids) == 10
            body = ids if kind == "causal_lm" else ids[1:-1]
            if kind == "masked_lm":
                assert (ids[0], ids[-1]) == (1, 2)
            assert body == list(range(body[0], body[0] + len(body)))  # consecutive text
            seen.update(body)
    assert max(seen.values()) == 1
    assert max(max(ids) for ids in data.train["input_ids"]) < min(
        min(i for i in ids if i > 3) for ids in data.test["input_ids"]
    )


def test_language_modelling_needs_enough_text_and_a_tokenizer(corpus):
    with pytest.raises(BadInput, match="blocks of 10 tokens for test, not 400"):
        load_made({**corpus, "splits": {**SIZES, "test": 400}}, words(), 10)
    with pytest.raises(BadInput, match="needs a model with a tokenizer"):
        load_made(corpus, None, 10)


# ------------------------------------------------------------------ tokens and batches


def test_tokens_are_cut_to_length_like_the_tokenizer_does(task):
    long = " ".join(f"w{i}" for i in range(300))
    write_tab(task["folder"] / "train.tab", [f"{'abc'[i % 3]}\tw{i} {long}" for i in range(60)])
    data = load_made(task, words(), 12)
    for row in data.train:
        assert row["input_ids"] == words()(row["text"], truncation=True, max_length=12)["input_ids"]
        assert len(row["input_ids"]) == len(row["attention_mask"]) == 12


def examples(*lengths, label=1):
    return [{"input_ids": list(range(10, 10 + n)), "label": label, "text": "t"} for n in lengths]


def test_collate_pads_and_types():
    batch = Collate.of("classification", words())(examples(3, 1))
    assert batch["input_ids"].tolist() == [[10, 11, 12], [10, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 1]
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert (
        Collate.of("regression", words())(examples(2, label=0.25))["labels"].dtype == torch.float32
    )
    assert (
        dataclasses.replace(Collate.of("classification", words()), pad_id=7)(examples(2, 1))[
            "input_ids"
        ][1, 1]
        == 7
    )


def test_causal_labels_are_masked_by_attention_not_by_pad_id():
    rows = [
        {"input_ids": [10, 2, 11, 2]},
        {"input_ids": [12]},
    ]  # 2 is the pad token and ends sentences
    batch = Collate.of("causal_lm", words())(rows)
    assert batch["labels"].tolist() == [[10, 2, 11, 2], [12, -100, -100, -100]]


def ids_of(split, **how):
    collate = Collate.of("classification", words())
    return [row[0].item() for batch in batches(split, collate, **how) for row in batch["input_ids"]]


@pytest.fixture
def ten():
    return Dataset.from_dict(
        {"input_ids": [[i] for i in range(10)], "label": [0] * 10, "text": ["t"] * 10}
    )


def test_training_batches_cycle_through_reshuffled_epochs(ten):
    ids = ids_of(ten, batch=4, steps=5, seed=0, shuffle=True)
    assert len(ids) == 20
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))
    assert ids[:10] != ids[10:]
    assert ids == ids_of(ten, batch=4, steps=5, seed=0, shuffle=True)
    assert ids != ids_of(ten, batch=4, steps=5, seed=1, shuffle=True)


def test_evaluation_is_one_pass_in_order(ten):
    assert ids_of(ten, batch=4) == list(range(10))


def test_longest_batch_shape_is_reached_and_never_passed(task):
    data = load_made(task, words(), 8)
    shape = longest_batch_shape(data.train, 16)
    shapes = [
        tuple(b["input_ids"].shape) for b in batches(data.train, data.collate, 16, 10, 0, True)
    ]
    assert shape == (16, max(length for _, length in shapes))
    assert {count for count, _ in shapes} == {16}


# ------------------------------------------------------------------ the real tasks


REAL = {
    "sentiment": ("a2eddab5", 2, 300),
    "valence": ("4f1a6d23", 0, 300),
    "topics": ("04b91561", 8, 500),
    "topics52": ("57e6c8df", 52, 300),
}


@pytest.mark.parametrize("name", REAL)
def test_real_samples_never_move(name):
    """Published records name their sample hash: a change here makes all of them incomparable."""
    start, labels, validation = REAL[name]
    data = load_data(real(name), None, 64)
    assert (sample_hash(data)[:8], len(data.label_names)) == (start, labels)
    assert [len(data.train), len(data.validation), len(data.test)] == [2000, validation, 1000]


def test_real_newsgroups():
    data = load_data(real("newsgroups"), None, 64)
    assert len(data.label_names) == 20
    assert len(set(data.test["label"])) == 20


def test_real_valence_ratings_and_sources():
    data = load_data(real("valence"), None, 64)
    assert all(-4 <= label <= 4 for label in data.train["label"])
    assert len(set(data.train["label"])) > 100


@pytest.mark.parametrize("name", ["dialogue", "tales"])
def test_real_language_modelling_blocks(name):
    tokenizer = load_tokenizer(plugins.get("models", "smollm2-135m").raw)
    data = load_data(real(name), tokenizer, 64)
    assert {len(ids) for ids in data.train["input_ids"]} == {64}
    assert not set(data.train["text"]) & set(data.test["text"])


@pytest.mark.process
def test_loading_writes_nothing_at_home(tmp_path):
    code = (
        "from leantune.spec import plugins; from leantune.data.load import load_data; "
        "print(len(load_data(plugins.get('tasks', 'sentiment'), None, 8).train))"
    )
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))
    }
    cache = os.environ.get("LEANTUNE_CACHE", str(Path.home() / ".cache/leantune"))
    environment = {**kept, "HOME": str(tmp_path), "LEANTUNE_CACHE": cache, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2000"
    assert done.stderr == ""
    assert list(tmp_path.rglob("*")) == []
