"""Masked language modelling: which tokens are predicted, what is shown in their place, and the same
again."""

from __future__ import annotations

import pytest
import torch
from small import words

from leantune.data.collate import Collate, batches
from leantune.data.load import load_data, load_rows
from leantune.models.load import load_tokenizer
from leantune.spec import plugins
from leantune.spec.hashes import loader_folder, task_hash


def test_masked_labels():
    collate = Collate.of("masked_lm", words())
    rows = [{"input_ids": [1, *range(10, 510), 2]} for _ in range(20)]
    batch = collate(rows)
    again = collate(rows)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    original = torch.tensor([row["input_ids"] for row in rows])
    chosen = batch["labels"] != -100
    assert torch.equal(batch["labels"][chosen], original[chosen])
    assert not chosen[:, [0, -1]].any()  # special tokens
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.015)
    shown = batch["input_ids"]
    assert torch.equal(shown[~chosen], original[~chosen])
    assert (shown[chosen] == 3).float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert (shown[chosen] == original[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_evaluation_asks_the_same_questions_and_training_others():
    task = plugins.get("tasks", "pretrain-mlm")
    tokenizer = load_tokenizer(plugins.get("models", "mini-bert").raw)
    sizes = {"train": 20, "validation": 5, "test": 30}
    data = load_data(task, tokenizer, 32, sizes)
    first, again = (list(batches(data.test, data.collate, 8)) for _ in range(2))
    assert [tuple(b["input_ids"].shape) for b in first] == [(8, 32), (8, 32), (8, 32), (6, 32)]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a["labels"], b["labels"])
        assert torch.equal(a["input_ids"], b["input_ids"])
    shown = torch.cat([b["input_ids"] for b in first])
    predicted = torch.cat([b["labels"] for b in first]) != -100
    assert (shown[:, 0] == tokenizer.cls_token_id).all()
    assert (shown[:, -1] == tokenizer.sep_token_id).all()
    assert not predicted[:, [0, -1]].any()
    assert (shown[predicted] == tokenizer.mask_token_id).float().mean() > 0.6
    assert not (shown[~predicted] == tokenizer.mask_token_id).any()
    epochs = list(batches(data.train, data.collate, 10, 4, 0, True))  # two of them
    assert len({batch["labels"].ne(-100).numpy().tobytes() for batch in epochs}) == 4


def test_a_loader_of_another_task_gives_the_same_texts_and_is_part_of_the_hash(
    monkeypatch, tmp_path
):
    folder = tmp_path / "tasks" / "borrowed"
    folder.mkdir(parents=True)
    text = (
        (plugins.get("tasks", "pretrain-mlm").file)
        .read_text()
        .replace("name: pretrain-mlm", "name: borrowed")
    )
    (folder / "task.yaml").write_text(text)
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(tmp_path))
    borrowed, owner = plugins.get("tasks", "borrowed"), plugins.get("tasks", "pretrain")
    assert load_rows(borrowed) == load_rows(owner)
    assert loader_folder(borrowed.raw, folder) == owner.folder
    before = task_hash(borrowed, {})
    (folder / "task.yaml").write_text(text.replace("loader: pretrain", "loader: tales"))
    plugins.read.cache_clear()
    assert task_hash(plugins.get("tasks", "borrowed"), {}) != before
    plugins.read.cache_clear()
