"""SoftLMs' exported encoder at bert-base shapes against the dense one, for both readings of "50 %
fewer". One thread.

Run: pytest benchmarks/bench_softlms.py. Speed is a matter of shapes, so the weights are random and
the ranks uniform; the paper's 1.33x to 1.72x was measured on other hardware. Rounds alternate;
`extra_info` holds the median CPU seconds, the share of parameters kept and the speed-up, the median
of dense over exported by round.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from leantune.api import Context, mark_head
from leantune.spec.stacks import parse_stack
from leantune.training.stack import load_method

LAYERS, BATCH, LENGTH, ROUNDS = 2, 8, 128, 7  # two of bert-base's twelve identical layers
SHARES = {
    "linears": 0.5,
    "total": 0.3555,
}  # of the encoder's linears: half of them; half of bert-base in all


def encoder(share: float | None, cache: Path) -> nn.Module:
    """bert-base layers: dense, or factored to `share` of the parameters of their linears."""
    torch.manual_seed(0)
    model: nn.Module = BertForSequenceClassification(
        BertConfig(vocab_size=1000, num_hidden_layers=LAYERS)
    )
    mark_head(model, "classification")
    if share is not None:
        (part,) = parse_stack("softlms@stage2", "classification", {"softlms.budget": share})
        plugin = load_method("softlms")(part.params)
        ctx = Context("classification", "bert", 10, 1e-3, 0, "cpu", BATCH, LENGTH, cache)
        model, _ = plugin.attach(model, None, ctx)
        model = plugin.export(model, ctx)
    return model.base_model.encoder.eval()


@pytest.mark.parametrize("reading", SHARES)
def test_exported_encoder_against_dense(benchmark: Any, tmp_path: Path, reading: str) -> None:
    torch.set_num_threads(1)
    models = {"dense": encoder(None, tmp_path), "exported": encoder(SHARES[reading], tmp_path)}
    hidden = torch.randn(BATCH, LENGTH, 768)
    seconds: dict[str, list[float]] = {name: [] for name in models}

    @torch.no_grad()
    def each_once() -> None:
        for name, model in models.items():
            started = time.process_time()
            model(hidden)
            seconds[name].append(time.process_time() - started)

    benchmark.pedantic(each_once, rounds=ROUNDS, warmup_rounds=1)
    kept = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    ratio = statistics.median(
        d / e for d, e in zip(seconds["dense"], seconds["exported"], strict=True)
    )
    benchmark.extra_info.update(
        {
            "seconds": {name: statistics.median(s) for name, s in seconds.items()},
            "encoder_share": kept["exported"] / kept["dense"],
            "ratio": ratio,
        }
    )
    assert ratio > 1.1  # half the products or fewer must show
