"""The plugin contract, on one page: what a method may do, and what it is told.

A method is a folder `methods/<name>/` with `method.yaml` (data: what it is, its settings) and
`method.py` holding one subclass of `Method`. Every hook has a default; write the ones your method
changes. A cell's stack holds at most one plugin per slot. The harness calls them in this order:

    load -> attach (slot order) -> parameter_groups -> optimizer
         -> [forward + penalty, backward, step, on_step]* with on_progress K times
         -> export (reverse slot order) -> evaluation
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from leantune.errors import BadInput, Unsupported  # noqa: F401  plugins import these from here

if TYPE_CHECKING:
    from datasets import Dataset

# Kinds without a head of their own; scored over all tokens.
LANGUAGE_MODELS = ("causal_lm", "masked_lm", "generation", "seq2seq_lm")
Batch = dict[str, Tensor]
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Data:
    """A task's examples. Splits are `datasets.Dataset` with `text` (and `label`, and `pair` where
    an example has a second text) and, for models, `input_ids`, with `token_type_ids` for pairs
    where the tokenizer makes them.

    `label` is a class index (classification), a float (regression), the first and last token of the
    answer (span), or absent (language modelling). data/question_answering.py and data/generation.py
    name what else their examples have.
    """

    kind: str  # a word of leantune.spec.kinds
    train: Dataset
    validation: Dataset
    test: Dataset
    label_names: tuple[str, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    collate: Callable[[list[dict[str, Any]]], Batch] | None = None


@dataclass(frozen=True)
class Context:
    """What a cell tells its methods. The same object reaches every hook."""

    kind: str  # the task's kind, as in Data
    family: str  # the model's family (bert, roberta, gpt2, llama, ...): see architectures.py
    steps: int  # optimizer steps of the whole run
    head_lr: float  # the task's learning rate for the freshly made head
    seed: int
    device: str  # "cpu" or "cuda"
    batch: int  # sequences per optimizer step
    length: int  # tokens per sequence, the longest
    cache: Path  # shared by all cells, for results that depend on the weights only
    # True while memory is predicted: tensors have no values, and `data` is None but to a vocabulary
    probe: bool = False
    dtype: str = "fp32"  # or "bf16": the forward and backward pass run under autocast
    # What a method reports, as JSON has it, into the record.
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What `on_progress` did. The meter then measures the new interval; the schedule keeps its
    position. With `new_optimizer` the parameters are other tensors now, so that groups and
    optimizer are built again."""

    model: nn.Module
    new_optimizer: bool = False


class Method:
    """Base class of a method plugin. `self.params` holds the settings: defaults, then point, then
    overrides."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = dict(params)

    def attach(
        self, model: nn.Module, data: Data | None, ctx: Context
    ) -> tuple[nn.Module, Data | None]:
        """Freeze, wrap, prune or decompose the loaded model. Must work on meta tensors when
        `ctx.probe`.

        Shapes that depend on values (kept tokens, ranks) must then come from `self.params`; raise
        BadInput naming the missing setting. Raise Unsupported where the model cannot carry the
        method.
        """
        return model, data

    def parameter_groups(self, model: nn.Module, ctx: Context) -> Groups:
        """Optimizer groups (`params`, `lr`, optionally `weight_decay`). Asked of the adaptation
        slot only."""
        head = [p for p in model.parameters() if p.requires_grad and is_head(p)]
        body = [p for p in model.parameters() if p.requires_grad and not is_head(p)]
        groups = [{"params": body, "lr": self.params["lr"]}, {"params": head, "lr": ctx.head_lr}]
        return [g for g in groups if g["params"]]

    def optimizer(self, groups: Groups, ctx: Context) -> torch.optim.Optimizer:
        """The optimizer over `groups`. Asked of the optimizer slot only; without one it is this
        AdamW.

        One that updates within the backward pass, and so leaves no gradients, has an attribute
        `in_backward = True`.
        """
        return torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.0, fused=True)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar added to the task's loss at every step, or None."""
        return None

    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Called after optimizer step `step` (1-based), its gradients still there, inside the
        clock."""

    def on_progress(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: float, ctx: Context
    ) -> Change | None:
        """Called at K = 10 fixed fractions of the steps, `progress` 0.1 to 1, inside the clock."""
        return None

    def export(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model that a user deploys. It computes what the trained one computes in eval mode."""
        return model

    # A control that needs no model has this method too, and no hook above is called:
    #     def fit_predict(self, data: Data, ctx: Context) -> list[float]
    # It gives one prediction for each test example.


def mark_head(model: nn.Module, kind: str) -> None:
    """Mark the freshly initialised parameters: all outside the base model, and its pooler. LMs have
    none."""
    if kind in LANGUAGE_MODELS:
        return
    base = getattr(model, str(model.base_model_prefix))
    body = {id(p) for n, p in base.named_parameters() if "pooler" not in n.split(".")}
    for p in model.parameters():
        if id(p) not in body:
            p.leantune_head = True  # type: ignore[attr-defined]  # a mark of our own on a tensor


def is_head(parameter: nn.Parameter) -> bool:
    """Whether the parameter belongs to the head, which every method trains and no count of
    trainable includes."""
    return getattr(parameter, "leantune_head", False)


def freeze_body(model: nn.Module) -> None:
    """Freeze everything but the head."""
    for p in model.parameters():
        p.requires_grad_(is_head(p))


def scale_rates(groups: Groups, factor: float) -> Groups:
    """The same groups with every learning rate, the head's included, times `factor` (CAME's runs
    hotter).

    A group with `own_rate` keeps its rate: it follows from how far its parameters must get,
    whatever the optimizer.
    """
    return [g if g.get("own_rate") else {**g, "lr": g["lr"] * factor} for g in groups]
