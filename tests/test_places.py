"""Where models keep the parts that methods change: roles by their closed-form shapes, LoRA's
default targets by peft itself, and what the model files say that they have."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from leantune.api import Context
from leantune.architectures import WHAT, has, places
from leantune.errors import Unsupported
from leantune.models.load import empty_model
from leantune.spec import plugins
from leantune.spec.schema import Need
from leantune.spec.stacks import parse_stack, unsupported_reason
from leantune.svd import weight_of
from leantune.training.stack import Stack

MODELS = sorted(plugins.discover("models"))


def built(name):
    spec = plugins.get("models", name).spec
    return empty_model(plugins.get("models", name).raw, spec.kinds[0], 2)


def shapes(model, paths):
    return [tuple(weight_of(model.get_submodule(path)).shape) for path in paths]


@pytest.mark.parametrize("name", MODELS)
def test_every_role_has_its_closed_form_shape(name):
    """Query [heads x head size, hidden], key and value [key heads x head size, hidden], output the
    reverse of the query; fused ones their sum."""
    model = built(name)
    where, config = places(model), model.config
    if config.model_type in ("mamba", "mamba2"):
        assert not where.key
        assert not where.attention_output
        assert {path.rpartition(".")[2] for path in where.query} == {"in_proj"}
        return
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", getattr(config, "d_kv", None)) or hidden // heads
    fewer = getattr(config, "num_key_value_heads", None) or heads
    if config.model_type == "falcon":
        fewer = 1 if config.multi_query else heads
    query, key = heads * size, fewer * size
    wide = query + 2 * key
    if where.query == where.value:
        assert where.query == where.key
        assert {*shapes(model, where.query)} == {(wide, hidden)}
    else:
        assert {*shapes(model, where.query)} == {(query, hidden)}
        assert {*shapes(model, where.key)} == {(key, hidden)}
        assert {*shapes(model, where.value)} == {(key, hidden)}
        assert len({*where.query, *where.key, *where.value}) == 3 * len(where.query)
    layers, decoder = len(where.blocks), 0
    if config.is_encoder_decoder:  # whose decoder's layers have two attentions each
        decoder = config.num_hidden_layers
    assert layers == (1 if config.model_type == "albert" else config.num_hidden_layers + decoder)
    assert len(where.attention_output) == len(where.ffn_output) == layers
    assert len(where.query) == layers + decoder
    for path in where.attention_output:
        module = model.get_submodule(path)
        assert isinstance(module, nn.Dropout) or weight_of(module).shape == (hidden, query)
    assert all(shape[0] == hidden for shape in shapes(model, where.ffn_linears))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_file_says_what_its_module_tree_has(name):
    assert plugins.get("models", name).spec.has == has(built(name))


def test_the_words_of_needs_are_those_of_the_places():
    assert get_args(Need) == tuple(WHAT)


TINY = {
    **{"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32},
    **{"num_hidden_layers": 2, "num_attention_heads": 2},
}
TYPES = (
    *("bloom", "codegen", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode"),
    *("gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "mpt", "opt", "phi", "qwen2"),
    *("qwen3", "stablelm", "bart", "bert", "roberta", "electra"),
)


def tiny(kind):
    config = AutoConfig.for_model(kind)
    for word, size in TINY.items():
        setattr(config, word, size)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", TYPES)
def test_lora_adapts_by_default_what_peft_does(kind):
    """peft reads its own table; ours are the same modules, but for those outside of the blocks."""
    theirs = inject_adapter_in_model(LoraConfig(), tiny(kind))
    adapted = {
        n.removesuffix(".lora_A") for n, _ in theirs.named_modules() if n.endswith(".lora_A")
    }
    parts = parse_stack("lora", "causal_lm")
    ctx = Context("causal_lm", kind, 1, 1e-3, 0, "cpu", 1, 8, None, probe=True)
    ours, _ = Stack(parts).attach(tiny(kind), None, ctx)
    found = {n.removesuffix(".lora_A") for n, _ in ours.named_modules() if n.endswith(".lora_A")}
    assert found == adapted
    assert found


class Odd(nn.Module):
    """A model with a list of blocks in which nothing is named as elsewhere."""

    base_model_prefix = ""
    config = SimpleNamespace(model_type="odd")

    def __init__(self, block):
        super().__init__()
        self.layers = nn.ModuleList([block() for _ in range(2)])


class OddAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def test_needs_hold_for_a_model_without_a_file():
    parts = parse_stack("olora", "causal_lm")
    ctx = Context("causal_lm", "gpt2", 1, 1e-3, 0, "cpu", 1, 8, None, probe=True)
    with pytest.raises(Unsupported, match=r"'olora' needs plain linear maps .* GPT2LMHeadModel"):
        Stack(parts).attach(tiny("gpt2"), None, ctx)


def test_a_place_that_is_not_found_is_empty_and_is_named():
    model = Odd(lambda: nn.Sequential(OddAttention()))
    where = places(model)
    assert len(where.linears) == 4
    assert not where.query
    assert "query" not in has(model)
    parts = parse_stack("svfit", "causal_lm")
    ctx = Context("causal_lm", "odd", 1, 1e-3, 0, "cpu", 1, 8, None, probe=True)
    with pytest.raises(Unsupported, match="query projection"):
        Stack(parts).attach(model, None, ctx)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(Unsupported, match="blocks"):
        places(Odd(nn.Identity))


def test_needs_are_refused_before_anything_is_built():
    model = plugins.get("models", "llama2-7b")
    reason = unsupported_reason(parse_stack("bitfit", "causal_lm"), model, "causal_lm")
    assert reason == "method 'bitfit' needs biases, which llama2-7b does not have"
    assert unsupported_reason(parse_stack("adapter", "causal_lm"), model, "causal_lm") is None
