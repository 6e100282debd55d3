"""Our training loop against a bare hand-written one and the `transformers` Trainer, on the same
batches.

Run: pytest benchmarks/bench_loop.py. Real MiniLM, 16 x 48 tokens of `sentiment`, bf16, one thread.
Rounds of the three alternate, so a busy machine slows all; `extra_info` holds median seconds a step
and the ratios to ours.
"""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler

from leantune.api import Batch, Context, is_head, mark_head
from leantune.data.collate import batches
from leantune.data.load import load_data
from leantune.models.load import load_model, load_tokenizer
from leantune.spec import plugins
from leantune.spec.stacks import parse_stack
from leantune.training.loop import Schedule, train
from leantune.training.stack import Stack

STEPS, ROUNDS = 12, 5
RATE, HEAD_RATE = 2e-4, 1e-3


def load_batches() -> list[Batch]:
    task = plugins.get("tasks", "sentiment")
    tokenizer = load_tokenizer(plugins.get("models", "minilm-l6").raw)
    data = load_data(task, tokenizer, 48)
    assert data.collate is not None
    return list(batches(data.train, data.collate, 16, STEPS, 0, True))


def fresh_model() -> torch.nn.Module:
    model = load_model(plugins.get("models", "minilm-l6").raw, "classification", 2, 0)
    mark_head(model, "classification")
    return model.train()


def ours(batches: list[Batch], folder: Path) -> float:
    model = fresh_model()
    stack = Stack(parse_stack("full", "classification"))
    ctx = Context("classification", "bert", STEPS, HEAD_RATE, 0, "cpu", 16, 48, folder)
    started = time.perf_counter()
    train(model, stack, itertools.cycle(batches), Schedule(STEPS, "bf16"), ctx)
    return time.perf_counter() - started


def bare(batches: list[Batch], folder: Path) -> float:
    model = fresh_model()
    started = time.perf_counter()
    groups = [
        {"params": [p for p in model.parameters() if not is_head(p)], "lr": RATE},
        {"params": [p for p in model.parameters() if is_head(p)], "lr": HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=1, num_training_steps=STEPS)
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


class Clock(TrainerCallback):
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def trainer(batches: list[Batch], folder: Path) -> float:
    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        learning_rate=RATE,
        bf16=True,
        max_grad_norm=0.0,
        optim="adamw_torch_fused",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(
        fresh_model(),
        arguments,
        train_dataset=batches,
        data_collator=lambda one: one[0],
        callbacks=[clock],
    ).train()
    return clock.seconds


def test_training_loop(benchmark: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    batches = load_batches()
    loops = {"ours": ours, "bare": bare, "trainer": trainer}
    seconds: dict[str, list[float]] = {name: [] for name in loops}

    def one_round() -> None:
        for name, loop in loops.items():
            seconds[name].append(loop(batches, tmp_path) / STEPS)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1)
    for name in loops:
        benchmark.extra_info[f"{name}_step_seconds"] = statistics.median(seconds[name][1:])
    for peer in ("bare", "trainer"):
        ratios = [a / b for a, b in zip(seconds["ours"][1:], seconds[peer][1:], strict=True)]
        benchmark.extra_info[f"ours_over_{peer}"] = statistics.median(ratios)
    print(benchmark.extra_info)
