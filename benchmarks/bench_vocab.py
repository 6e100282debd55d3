"""Vocabulary pruning's own work: counting the data's tokens, and looking rows up in place of
remapping. One thread.

The goal is a million tokens a second or more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from leantune.training.stack import load_method

COUNTING = sys.modules[load_method("vocab_pruning").__module__.replace(".method", ".vocabulary")]
TOKENS, LENGTH, FULL = 2_048_000, 128, 250_002  # XLM-R's vocabulary


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 9_000, size=(TOKENS // LENGTH, LENGTH))


def report(benchmark: Any) -> None:
    benchmark.extra_info.update(
        tokens_per_second=round(TOKENS / benchmark.stats["median"]), goal=1_000_000
    )


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_counting(benchmark: Any, ids: np.ndarray, shuffled: bool) -> None:
    split = Dataset.from_dict({"input_ids": list(ids)})
    if shuffled:
        split = split.shuffle(seed=0)
    counts = benchmark.pedantic(COUNTING.count_tokens, args=([split], FULL), rounds=5)
    assert counts.sum() == TOKENS
    report(benchmark)


def test_look_up(benchmark: Any, ids: np.ndarray) -> None:
    """Every token of an epoch through the table, in batches of 32 sequences."""
    vocabulary = COUNTING.Vocabulary(np.arange(9_000), FULL)
    table = vocabulary.table(torch.device("cpu"))
    batches = torch.from_numpy(ids).split(32)

    def epoch() -> None:
        for batch in batches:
            table.index_select(0, batch.reshape(-1)).view(batch.shape)

    benchmark.pedantic(epoch, rounds=5)
    report(benchmark)
