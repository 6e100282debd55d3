"""SAFE's training step with the lowest half of the layers frozen, against none frozen. One thread.

Run: pytest benchmarks/bench_safe.py. Rounds of the two alternate, so a busy machine slows both;
`extra_info` holds their medians in seconds and the ratio.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from leantune.api import Context, mark_head
from leantune.spec.stacks import parse_stack
from leantune.training.stack import load_method

LAYERS, WIDTH, BATCH, LENGTH = 6, 384, 16, 48  # MiniLM's shapes


class Step:
    """A whole training step of `safe` with a declared prefix, on one fixed batch."""

    def __init__(self, prefix: int, cache: Path) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=12,
            intermediate_size=4 * WIDTH,
        )
        self.model: nn.Module = BertForSequenceClassification(config).train()
        mark_head(self.model, "classification")
        (part,) = parse_stack("safe@plain", "classification", {"safe.prefix": prefix})
        plugin = load_method("safe")(part.params)
        ctx = Context(
            "classification", "bert", 10, 1e-3, 0, "cpu", BATCH, LENGTH, cache, probe=True
        )
        plugin.attach(self.model, None, ctx)
        self.optimizer = plugin.optimizer(plugin.parameter_groups(self.model, ctx), ctx)
        self.ids: Tensor = torch.randint(0, 30000, (BATCH, LENGTH))
        self.labels: Tensor = torch.randint(0, 2, (BATCH,))

    def __call__(self) -> float:
        started = time.perf_counter()
        self.model(self.ids, labels=self.labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started


def test_step_with_the_lowest_half_frozen(benchmark: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    plain, half = Step(0, tmp_path), Step(LAYERS // 2, tmp_path)
    plain()  # warm-up
    half()
    seconds: dict[str, list[float]] = {"none": [], "half": []}

    def pair() -> None:
        seconds["none"].append(plain())
        seconds["half"].append(half())

    benchmark.pedantic(pair, rounds=7)
    none, lower = (statistics.median(seconds[k]) for k in ("none", "half"))
    ratio = statistics.median(h / n for n, h in zip(seconds["none"], seconds["half"], strict=True))
    benchmark.extra_info.update(none_seconds=none, half_seconds=lower, ratio=ratio)
    # Forward is whole, backward is half: 0.75 where both cost the same.
    assert ratio < 0.95
