"""Where each model family keeps the parts that methods change. One row per family, names as in
transformers."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from leantune.errors import Unsupported


@dataclass(frozen=True)
class Family:
    """Module names, relative to the base model (`model.base_model`), or to one layer where said."""

    layers: str  # the list of transformer blocks
    query_value: tuple[str, ...]  # last name of the query and value projections (GPT-2 fuses them)
    key_value: tuple[str, ...]  # last name of the key and value projections
    linears: tuple[str, ...]  # last names of a block's linear maps, which low-rank methods change
    attention_output: str  # within a layer: the linear after which an attention adapter goes
    ffn_output: str  # within a layer: the linear after which a feed-forward adapter goes
    # Within a layer: the dropout between that linear and the adapter, where there is one.
    attention_dropout: str = ""
    ffn_dropout: str = ""


_BERT = Family(
    layers="encoder.layer",
    query_value=("query", "value"),
    key_value=("key", "value"),
    linears=("query", "key", "value", "dense"),
    attention_output="attention.output.dense",
    ffn_output="output.dense",
    attention_dropout="attention.output.dropout",
    ffn_dropout="output.dropout",
)
_LLAMA = Family(
    layers="layers",
    query_value=("q_proj", "v_proj"),
    key_value=("k_proj", "v_proj"),
    linears=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    attention_output="self_attn.o_proj",
    ffn_output="mlp.down_proj",
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "deberta-v2": replace(
        _BERT,
        query_value=("query_proj", "value_proj"),
        key_value=("key_proj", "value_proj"),
        linears=("query_proj", "key_proj", "value_proj", "dense"),
    ),
    "llama": _LLAMA,
    "gpt2": Family(
        layers="h",
        query_value=("c_attn",),
        key_value=("c_attn",),
        linears=("c_attn", "c_proj", "c_fc"),
        attention_output="attn.c_proj",
        ffn_output="mlp.c_proj",
        attention_dropout="attn.resid_dropout",
        ffn_dropout="mlp.dropout",
    ),
    "mamba": Family(
        layers="layers",
        query_value=("in_proj",),
        key_value=(),  # a state-space block has no attention
        linears=("in_proj",),
        attention_output="",  # a state-space block has no attention
        ffn_output="mixer.out_proj",
    ),
}


def family(name: str) -> Family:
    """The row of `name`, or Unsupported naming the families that are known."""
    if name not in FAMILIES:
        raise Unsupported(f"model family '{name}' is not described; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def blocks(model: nn.Module, name: str) -> list[nn.Module]:
    """The transformer blocks of a task model (with or without its head), lowest first."""
    base = getattr(model, str(model.base_model_prefix), model)
    return list(base.get_submodule(family(name).layers).children())


def linears(
    model: nn.Module, name: str, names: tuple[str, ...]
) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, linear) for every linear in the blocks whose last name is in `names`, in
    order."""

    def is_map(child: nn.Module) -> bool:
        weight = getattr(child, "weight", None)
        return isinstance(weight, torch.Tensor) and weight.dim() == 2

    return [
        (parent, attribute, child)
        for block in blocks(model, name)
        for parent in block.modules()
        for attribute, child in parent.named_children()
        if attribute in names and is_map(child)
    ]
