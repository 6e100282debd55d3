"""Shared fixtures: one torch thread, real MiniLM, tiny models."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_lock(tmp_path, monkeypatch):
    """What a test reads from a hub or a mirror is locked in the test's own folder."""
    monkeypatch.setenv("LEANTUNE_SOURCES_LOCK", str(tmp_path / "sources.lock"))


@pytest.fixture
def minilm():
    """A fresh real MiniLM for two-class sequence classification, its head marked, in eval mode."""
    from leantune.api import mark_head
    from leantune.models.load import load_model
    from leantune.spec import plugins

    model = load_model(plugins.get("models", "minilm-l6").raw, "classification", 2, 0)
    mark_head(model, "classification")
    return model.eval()
