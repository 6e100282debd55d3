"""What the exact meter costs a real training step, and how long a 7B prediction takes. One thread.

Run: pytest benchmarks/bench_meter.py. Metered and plain steps alternate; `extra_info` holds medians
and the ratio. The prediction runs in a process of its own, so that its resident peak (VmHWM) is
that of one `leantune predict`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from leantune.meter.tensors import TensorMeter

LAYERS, WIDTH, BATCH, LENGTH = 6, 384, 16, 48  # MiniLM's shapes


class Step:
    """A whole training step of a small BERT, AdamW, on one fixed batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=12,
            intermediate_size=4 * WIDTH,
        )
        self.model = BertForSequenceClassification(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.ids, self.labels = (
            torch.randint(0, 30000, (BATCH, LENGTH)),
            torch.randint(0, 2, (BATCH,)),
        )

    def plain(self) -> float:
        started = time.perf_counter()
        self.model(self.ids, labels=self.labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started

    def metered(self) -> float:
        meter = TensorMeter()
        with meter:
            meter.watch(self.model, self.optimizer)
            return self.plain()


def test_metered_step(benchmark: Any) -> None:
    torch.set_num_threads(1)
    step = Step()
    step.plain()  # warm-up
    seconds: dict[str, list[float]] = {"plain": [], "metered": []}

    def pair() -> None:
        seconds["plain"].append(step.plain())
        seconds["metered"].append(step.metered())

    benchmark.pedantic(pair, rounds=7)
    ratio = statistics.median(
        m / p for p, m in zip(seconds["plain"], seconds["metered"], strict=True)
    )
    benchmark.extra_info.update(
        {name: statistics.median(values) for name, values in seconds.items()}, ratio=ratio
    )
    assert ratio < 2


def test_prediction_of_a_7b_model(benchmark: Any) -> None:
    words = [
        "predict",
        "--model",
        "llama2-7b",
        "--method",
        "lora",
        "--batch",
        "1",
        "--seq",
        "512",
        "--dtype",
        "bf16",
    ]
    code = f"""
import re
from leantune import cli
cli.main({[*words, "--json"]})
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
"""
    found: list[tuple[float, int]] = []

    def once() -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        answer, kib = done.stdout.splitlines()
        found.append((json.loads(answer)["seconds"], int(kib) * 1024))

    benchmark.pedantic(once, rounds=3)
    resident = max(size for _, size in found)
    benchmark.extra_info.update(
        prediction_seconds=statistics.median(seconds for seconds, _ in found),
        resident_bytes=resident,
    )
    assert resident < 2 * 2**30
