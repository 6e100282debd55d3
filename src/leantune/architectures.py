"""Where a model keeps the parts that methods change: `places(model)` reads it from its modules.

A row of `FAMILIES`, names as in transformers, says it for a family in place of that.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from leantune.errors import Unsupported
from leantune.svd import weight_of


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
    """The row of `name`, or Unsupported naming the families that have one."""
    if name not in FAMILIES:
        raise Unsupported(f"model family '{name}' is not described; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def blocks(model: nn.Module, name: str | None = None) -> list[nn.Module]:
    """The transformer blocks of a task model (with or without its head), lowest first; those of an
    encoder before its decoder's. With `name` they are where that family's row lists them."""
    if name is None:
        return [model.get_submodule(path) for path in places(model).blocks]
    base = getattr(model, str(model.base_model_prefix), model)
    return list(base.get_submodule(family(name).layers).children())


def linears(
    model: nn.Module, name: str, names: tuple[str, ...]
) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, linear) for every linear in the blocks whose last name is in `names`, in
    order. `name` is a family with a row."""
    return [
        (parent, attribute, child)
        for block in blocks(model, name)
        for parent, attribute, child in _children(block)
        if attribute in names and _has_matrix(child)
    ]


# ------------------------------------------------------------------ places from the module tree

WHAT = {  # a place, or a fact about the blocks, that a method may need: in words
    "linears": "linear maps in its blocks",
    "plain_linears": "plain linear maps in its blocks, none transposed",
    "query": "query projection",
    "key": "key projection",
    "value": "value projection",
    "attention_output": "attention whose output an adapter could follow",
    "ffn_output": "feed-forward part whose output an adapter could follow",
    "ffn_linears": "linear map at the end of its feed-forward parts",
    "biases": "biases in its blocks",
}


@dataclass(frozen=True)
class Places:
    """Paths of modules in a task model, in its order. What the model does not have is empty.

    A fused projection stands in each of its roles, and so does the input projection of a
    state-space block as query and value. Cross-attention has the same roles as attention.
    """

    lists: tuple[str, ...]  # the module lists that hold the blocks
    blocks: tuple[str, ...]
    linears: tuple[str, ...]  # the blocks' linear maps, which low-rank methods may change
    query: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    # What an adapter goes behind, one in a block: a linear map, the dropout after it, or a mixture
    # of experts as a whole.
    attention_output: tuple[str, ...]
    ffn_output: tuple[str, ...]
    ffn_linears: tuple[str, ...]  # the last linear map of each feed-forward part

    def role(self, *names: str) -> tuple[str, ...]:
        """The linear maps in any of these roles, in the order of the model, each once."""
        found = {path for name in names for path in getattr(self, name)}
        return tuple(path for path in self.linears if path in found)


def places(model: nn.Module) -> Places:
    """Where a task model keeps its parts, from its module tree; its weights may have no values.

    The blocks are in the outermost module lists of the base model. A map's role in its block
    follows from the attention module around it, its name and its shape. Raises Unsupported where
    there is no list of blocks.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    base = getattr(model, str(getattr(model, "base_model_prefix", "")), model)
    row = FAMILIES.get(str(getattr(getattr(model, "config", None), "model_type", "")))
    held = [base.get_submodule(row.layers)] if row else _block_lists(base)
    if not held:
        raise Unsupported(f"{type(model).__name__} has no list of repeated blocks")
    found = [block for one in held for block in one.children()]
    parts = [_of_row(block, row) if row else _of_block(block) for block in found]
    names = ("linears", "query", "key", "value", "attention_output", "ffn_output", "ffn_linears")
    roles = {
        name: tuple(dict.fromkeys(paths[id(module)] for part in parts for module in part[name]))
        for name in names
    }
    return Places(tuple(paths[id(m)] for m in held), tuple(paths[id(m)] for m in found), **roles)


def has(model: nn.Module) -> list[str]:
    """Which of `WHAT` a model has: what `supports.needs` of a method is held against."""
    try:
        where = places(model)
    except Unsupported:
        return []
    maps = [model.get_submodule(path) for path in where.linears]
    facts = {name: bool(getattr(where, name, ())) for name in WHAT}
    facts["biases"] = bool(biases(model))
    facts["plain_linears"] = bool(maps) and all(isinstance(one, nn.Linear) for one in maps)
    return [name for name, fact in facts.items() if fact]


def biases(model: nn.Module) -> list[nn.Parameter]:
    """The biases of the blocks and of what stands beside their list, as a LayerNorm behind them."""
    holders = [model.get_submodule(path.rpartition(".")[0]) for path in places(model).lists]
    named = [pair for holder in holders for pair in holder.named_parameters()]
    found = {id(p): p for name, p in named if name.rpartition(".")[2] == "bias"}
    return list(found.values())


Parts = dict[str, list[nn.Module]]  # the modules of one block, by the names of `Places`


def _of_row(block: nn.Module, row: Family) -> Parts:
    """The parts of a block as its family's row has them."""

    def named(names: tuple[str, ...]) -> list[nn.Module]:
        return [
            child for _, name, child in _children(block) if name in names and _has_matrix(child)
        ]

    def at(path: str) -> list[nn.Module]:
        return [block.get_submodule(path)] if path else []

    return {
        "linears": named(row.linears),
        "query": named(row.query_value[:1]),
        "key": named(row.key_value[:1]),
        "value": named(row.query_value[-1:]),
        "attention_output": at(row.attention_dropout or row.attention_output),
        "ffn_output": at(row.ffn_dropout or row.ffn_output),
        "ffn_linears": at(row.ffn_output) if row.attention_output else [],
    }


def _of_block(block: nn.Module) -> Parts:
    """The parts of a block as its modules tell them."""
    attention = _outermost(block, lambda m: "attention" in type(m).__name__.lower())
    mixtures = _outermost(block, lambda m: any(map(_is_experts, m.children())))
    mixers = _outermost(block, _is_state_space)
    taken = {id(m) for part in (*attention, *mixtures, *mixers) for m in part.modules()}
    maps = [(name, m) for _, name, m in _children(block) if _is_map(m)]
    # transformers' kernels read the weights of the others past their forward
    inner = {id(m) for mixer in mixers for m in mixer.modules()}
    inputs = [m for name, m in maps if id(m) in inner and name == "in_proj"]
    linears = [m for name, m in maps if id(m) not in inner or name == "in_proj"]
    in_attention = [(n, m) for part in attention for _, n, m in _children(part) if _is_map(m)]
    outputs = [m for name, m in in_attention if not _roles(name)]
    first = {id(m) for part in attention[:1] for m in part.modules()}
    output = [m for m in outputs if id(m) in first][-1:]
    width = weight_of(output[0]).shape[0] if output else None
    free = [m for m in linears if id(m) not in taken]
    ends = [m for m in free if width in (None, weight_of(m).shape[0])][-1:]
    return {
        "linears": linears,
        **{
            role: [m for name, m in in_attention if letter in _roles(name)]
            + (inputs if letter in "qv" else [])
            for letter, role in {"q": "query", "k": "key", "v": "value"}.items()
        },
        "attention_output": [_or_dropout(block, m) for m in output],
        "ffn_output": mixtures[-1:] or [_or_dropout(block, m) for m in ends],
        "ffn_linears": [] if mixtures else ends,
    }


def _block_lists(base: nn.Module) -> list[nn.Module]:
    """The outermost lists of modules that hold linear maps, but those that are small beside the
    largest, as of a head."""
    lists = _outermost(base, lambda m: isinstance(m, nn.ModuleList) and _holds_maps(m))
    sizes = [sum(p.numel() for p in one.parameters()) for one in lists]
    return [one for one, size in zip(lists, sizes, strict=True) if 20 * size >= max(sizes)]


def _roles(name: str) -> str:
    """Which of q, k and v a map in an attention module makes, by its last name; several letters
    where they are fused. Of one in two factors (`q_a_proj`, `q_b_proj`) it is the second."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    if {"a", "pos", "global", "rel"} & {*words}:
        return ""
    if words in (["c", "attn"], ["in", "proj"]) or "pack" in words:
        return "qkv"  # as in GPT-2, DeBERTa and Baichuan
    return "".join(_LETTERS.get(word.removeprefix("w"), "") for word in words)


_LETTERS = {word: word for word in ("q", "k", "v", "kv", "qk", "qkv")}
_LETTERS |= {"query": "q", "key": "k", "value": "v"}


def _children(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in block.modules():
        for attribute, child in parent.named_children():
            yield parent, attribute, child


def _outermost(top: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The modules in `top`, itself included, that are `wanted`, without those inside of such."""
    if wanted(top):
        return [top]
    return [found for child in top.children() for found in _outermost(child, wanted)]


def _or_dropout(block: nn.Module, output: nn.Module) -> nn.Module:
    """The dropout right behind an output map, where the two have a module of their own as in BERT;
    else the map."""
    parent = next(parent for parent, _, child in _children(block) if child is output)
    children = list(parent.children())
    alone = sum(map(_is_map, children)) == 1
    dropouts = [child for child in children if isinstance(child, nn.Dropout)]
    return dropouts[-1] if alone and len(dropouts) == 1 else output


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _holds_maps(module: nn.Module) -> bool:
    return any(_is_map(one) or _is_experts(one) for one in module.modules())


def _is_experts(module: nn.Module) -> bool:
    """Whether these are the stacked matrices of a mixture of experts."""
    stacked = any(p.dim() == 3 for p in module.parameters(recurse=False))
    return stacked and "expert" in type(module).__name__.lower()


def _is_state_space(module: nn.Module) -> bool:
    return "A_log" in dict(module.named_parameters(recurse=False))
