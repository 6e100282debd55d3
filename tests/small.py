"""Small models, data and runs for the tests of the adaptation methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.bert import BertTokenizer

from leantune.api import Batch, Context, Data, mark_head
from leantune.data.collate import Collate
from leantune.data.load import load_data
from leantune.files.parse import check
from leantune.spec.plugins import Plugin
from leantune.spec.schema import TaskFile
from leantune.spec.stacks import parse_stack, plugin_names
from leantune.testing import ARCHITECTURES, WORDS
from leantune.training.loop import Schedule, Watch, train
from leantune.training.stack import Stack

_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "deberta-v2": "DebertaV2",
    "llama": "Llama",
    "gpt2": "GPT2",
}
ADAPTABLE = tuple(_CLASSES)


# matrices of width 16 and twenty steps need other ranks, rates and thresholds than real ones
_NARROW = {
    "softlms.multiple": 1,
    "softlms.alpha_reach": 4.0,
    "softlms.values_lr": 1e-3,
    "softlms.strength": 10.0,
    "safe.tau": 1e-4,
    "safe.lr": 1e-2,
}


def narrow_settings(stack: str) -> dict[str, Any]:
    """What small models of width 16 need in a stack, as `--set` names it."""
    return {
        name: value
        for name, value in _NARROW.items()
        if name.partition(".")[0] in plugin_names(stack)
    }


def small_model(
    family: str = "bert", kind: str = "classification", seed: int = 0, **config: Any
) -> PreTrainedModel:
    """A four-layer model of width 16 with random weights, its head marked."""
    prefix, settings = _CLASSES[family], ARCHITECTURES[family]
    labels = 1 if kind == "regression" else 2
    configuration = getattr(transformers, f"{prefix}Config")(
        **{**settings, "num_labels": labels, **config}
    )
    if kind == "regression":
        configuration.problem_type = "regression"
    decoder = "LMHeadModel" if family == "gpt2" else "ForCausalLM"
    task = {
        "causal_lm": decoder,
        "generation": decoder,
        "masked_lm": "ForMaskedLM",
        "span": "ForQuestionAnswering",
    }
    torch.manual_seed(seed)
    model = getattr(transformers, prefix + task.get(kind, "ForSequenceClassification"))(
        configuration
    )
    mark_head(model, kind)
    return model


def small_data(folder: Path, kind: str = "classification", examples: int = 24) -> Data:
    """Random sentences of 3 to 12 words; the label says whether the first word is in the first
    half. An answer of kind `span` is the first two words."""
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    draw = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(examples):
        length = int(torch.randint(3, 13, (), generator=draw))
        words = torch.randint(5, 64, (length,), generator=draw).tolist()
        row: dict[str, Any] = {"input_ids": [2, *words, 3], "attention_mask": [1] * (length + 2)}
        answers = {"regression": words[0] / 64, "span": (1, 2)}
        rows.append({**row, "label": answers.get(kind, int(words[0] < 34))})
    split = Dataset.from_list(rows)
    pad = DataCollatorWithPadding(tokenizer)

    def collate(some: list[dict[str, Any]]) -> Batch:
        batch = dict(pad(some))
        if kind == "causal_lm":
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch

    return Data(
        kind,
        split,
        split,
        split,
        ("no", "yes"),
        tokenizer,
        Collate(kind, 0) if kind == "span" else collate,
    )


def words(count: int = 5000) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words w0, w1, ...; padding is token 3, which is also a word's (as with a
    decoder)."""
    special = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}
    made = Tokenizer(
        WordLevel({**special, **{f"w{i}": 4 + i for i in range(count)}}, unk_token="[UNK]")
    )
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[SEP]", **names)


def small_context(
    folder: Path, family: str = "bert", kind: str = "classification", **change: Any
) -> Context:
    """A context for ten steps on the CPU."""
    settings = {"steps": 10, "head_lr": 1e-3, "seed": 0, "device": "cpu", "batch": 4, "length": 14}
    return Context(kind=kind, family=family, cache=folder, **{**settings, **change})


def method(name: str, kind: str = "classification", **params: Any) -> Any:
    """One plugin with its default settings, some of them changed; `name` may carry a point."""
    slots = stack(name, kind, **params).methods
    return slots.get("control") or slots["adaptation"]


def trainable(model: nn.Module, head: bool = False) -> int:
    """How many numbers are trained, the head left out unless asked."""
    return sum(
        p.numel()
        for p in model.parameters()
        if p.requires_grad and (head or not getattr(p, "leantune_head", False))
    )


class _Keeper(Watch):
    optimizer: torch.optim.Optimizer

    def prepared(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def run(model: nn.Module, stack: Stack, data: Data, ctx: Context) -> torch.optim.Optimizer:
    """Attach and train with the real loop, a check at every tenth of the steps; returns the
    optimizer."""
    torch.manual_seed(ctx.seed)
    model, changed = stack.attach(model, data, ctx)
    assert changed is not None
    keeper = _Keeper()
    batches = (batch_of(changed, step) for step in range(ctx.steps))
    train(model, stack, batches, Schedule(steps=ctx.steps), ctx, keeper)
    return keeper.optimizer


def stack(name: str, kind: str = "classification", **params: Any) -> Stack:
    """A stack with its default settings, some of the first plugin's changed."""
    first = name.partition("+")[0].partition("@")[0]
    return Stack(parse_stack(name, kind, {f"{first}.{k}": v for k, v in params.items()}))


def batch_of(data: Data, index: int = 0, size: int = 4) -> Batch:
    """A batch of the training split; the same for the same index."""
    assert data.collate is not None
    rows = len(data.train)
    return data.collate([data.train[(index * size + i) % rows] for i in range(size)])


def load_made(fields: Mapping[str, Any], tokenizer: Any, length: int) -> Data:
    """The examples of a task that a test makes of the keys of a task.yaml and its `folder`; what
    only training needs may be left out, and `splits` may be sizes that no file may have."""
    folder, splits = fields["folder"], fields["splits"]
    raw = {
        "summary": "A task that a test makes.",
        "training": {"steps": 1, "batch": 2, "length": 8},
        "metric": {"module": "classification", "score": "accuracy", "higher_is_better": True},
        **fields,
        "splits": {"train": 1, "validation": 1, "test": 1},
    }
    del raw["folder"]
    spec = check(raw, TaskFile, folder / "task.yaml")
    made = Plugin("tasks", raw["name"], folder / "task.yaml", spec, raw)
    return load_data(made, tokenizer, length, splits=splits)
