"""Vocabulary pruning: what it saves in numbers, ragged batches, and what holds with factored
optimizers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_vocab_pruning import (
    CAME,
    FULL,
    HIDDEN,
    VocabPruning,
    batch,
    context,
    data,
    make,
    prune,
    rows,
    train,
)
from transformers import AutoConfig, AutoModel

from leantune.spec.stacks import parse_stack
from leantune.training.stack import Stack, load_method

BUILDERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "came": lambda p: CAME(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0, fused=True),
}


@pytest.mark.parametrize(
    ("name", "per_number", "per_row"), [("adamw", 16, 0), ("came", 12, 8), ("sgd", 8, 0)]
)
def test_bytes_saved_are_those_of_weight_gradient_and_optimizer(
    name: str, per_number: int, per_row: int, tmp_path: Path
) -> None:
    """(V - V') H times 16, 12 or 8; CAME also has two vectors with a number per row."""

    def held(model: Any) -> int:
        optimizer = BUILDERS[name](model.parameters())
        model(**batch(model, 0)).loss.backward()
        optimizer.step()
        states = [
            t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)
        ]
        params = list(model.parameters())
        return sum(t.nbytes for t in [*params, *(p.grad for p in params), *states])

    whole = held(make("bert"))
    pruned, *_ = prune(make("bert"), tmp_path)
    gone = FULL - len(pruned.get_input_embeddings().weight)
    assert gone > 50
    assert whole - held(pruned) == gone * (HIDDEN * per_number + per_row)


def test_the_table_costs_4_bytes_per_id_and_the_dataset_is_untouched(tmp_path: Path) -> None:
    task = data()
    before = {
        name: split["input_ids"][:]
        for name, split in vars(task).items()
        if hasattr(split, "column_names")
    }
    model = make("bert")
    model, attached = VocabPruning({"unk": False, "vocabulary": None, "used_share": {}}).attach(
        model, task, context(tmp_path)
    )
    (table,) = [b for n, b in model.named_buffers() if n.endswith("embeddings.table")]
    assert table.nbytes == 4 * FULL
    assert attached is task
    assert {name: getattr(task, name)["input_ids"][:] for name in before} == before


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_ragged_batches_train_as_with_the_whole_matrix(family: str, tmp_path: Path) -> None:
    """Every batch has its own length and number of sequences."""
    full, pruned = make(family), make(family)
    pruned, *_ = prune(pruned, tmp_path)
    losses = []
    for model in (full, pruned):
        model.train()
        torch.manual_seed(7)
        optimizer = BUILDERS["adamw"](model.parameters())
        for step, count in enumerate((4, 1, 3)):
            ids = rows(step)[:count]
            width = max(map(len, ids))
            pad = model.config.pad_token_id
            inputs = torch.tensor([i + [pad] * (width - len(i)) for i in ids])
            mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in ids])
            loss = model(input_ids=inputs, attention_mask=mask, labels=torch.arange(count) % 2).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append((tuple(inputs.shape), loss.item()))
    assert losses[:3] == losses[3:]
    assert len({shape for shape, _ in losses}) == 3


@pytest.mark.parametrize(
    ("point", "family", "vocabulary", "percent"),
    [("sst2", "xlm-roberta", 250_002, 66.47), ("cola", "roberta", 50_265, 26.66)],
)
def test_model_size_reduction_of_the_usage_table(
    point: str, family: str, vocabulary: int, percent: float, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(
        family, vocab_size=vocabulary, type_vocab_size=1, max_position_embeddings=514
    )
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    before = sum(p.numel() for p in model.parameters())
    (part,) = [
        p for p in parse_stack(f"vocab_pruning@{point}", "classification") if p.slot == "vocabulary"
    ]
    VocabPruning(part.params).attach(model, None, context(tmp_path, family=family, probe=True))
    after = sum(p.numel() for p in model.parameters())
    assert 100 * (1 - after / before) == pytest.approx(
        percent, abs=0.011
    )  # shares are rounded to 0.01 %


@pytest.mark.parametrize(("optimizer", "invariant"), [("came", True), ("adafactor", False)])
def test_which_factored_optimizer_steps_as_on_the_whole_matrix_by_default(
    optimizer: str, invariant: bool, tmp_path: Path
) -> None:
    """Our CAME as it comes; nothing is promised for Adafactor, whose scale depends on the rows."""
    full, pruned = make("bert").double(), make("bert").double()
    for model in (
        full,
        pruned,
    ):  # attention ignores the keys' bias: its gradient is noise, which would be scaled up
        for name, p in model.named_parameters():
            p.requires_grad_("key.bias" not in name)

    def built(model: Any) -> torch.optim.Optimizer:
        if optimizer == "adafactor":
            return torch.optim.Adafactor(model.parameters(), lr=1e-2)
        (part,) = [
            p for p in parse_stack("vocab_pruning+came", "classification") if p.slot == "optimizer"
        ]
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": 1e-2}]
        return load_method("came")(part.params).optimizer(groups, SimpleNamespace())

    train(full, built(full))
    pruned, method, ctx = prune(pruned, tmp_path)
    train(pruned, built(pruned))
    expected, found = full.state_dict(), method.export(pruned, ctx).state_dict()
    gap = max((expected[k] - found[k]).abs().max().item() for k in expected)
    assert (gap < 1e-9) == invariant, gap


def test_a_cells_prediction_takes_its_rows_from_the_data(tmp_path: Path) -> None:
    """On the meta device with the data, the model has the shape that real weights give."""
    stack = Stack(parse_stack("vocab_pruning+lora", "classification"))
    task, ctx = data(), context(tmp_path)
    real, _ = stack.attach(make("bert"), task, ctx)
    meta, _ = stack.attach(make("bert").to("meta"), task, replace(ctx, probe=True))
    assert [p.shape for p in meta.parameters()] == [p.shape for p in real.parameters()]
    assert len(meta.get_input_embeddings().weight) < FULL
