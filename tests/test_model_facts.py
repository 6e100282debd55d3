"""The models of `models/` are those that others published: two sources for each, and a count."""

import re
from fractions import Fraction
from urllib.parse import urlsplit

import pytest
import torch
from transformers import AutoConfig, AutoModel

from leantune.errors import BadInput
from leantune.files.parse import check
from leantune.models.load import empty_model, parameter_counts
from leantune.spec import plugins
from leantune.spec.schema import ModelFile

ROOT = plugins.checkout()
OURS = {name for name, file in plugins.discover("models").items() if file.is_relative_to(ROOT)}
SPECS = {name: plugins.get("models", name) for name in sorted(OURS)}
WITH_FACTS = [name for name in SPECS if SPECS[name].spec.facts]
# Chosen before facts were kept, and scratch models of this project.
WITHOUT_FACTS = [
    *("bert-base", "bert-large", "deberta-v3-base", "gpt2", "gpt2-medium", "llama2-7b"),
    *(
        "mamba-130m",
        "mini-bert",
        "mini-gpt",
        "mini-t5",
        "minilm-l6",
        "roberta-base",
        "roberta-large",
    ),
    *("smollm2-135m", "tinyllama", "xlm-r-base"),
]
LANGUAGE_MODELS = ("causal_lm", "seq2seq_lm")  # their count has the output embedding


def base(plugin):
    """The model that `parameters` counts, without values: an encoder without a head."""
    kind = next((kind for kind in LANGUAGE_MODELS if kind in plugin.spec.kinds), None)
    if kind:
        return empty_model(plugin.raw, kind)
    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.for_model(**plugin.raw["architecture"]))


def total(model):
    return parameter_counts(model)["total"]


def _output(model):
    return model.get_output_embeddings().weight.numel()


def _embeddings(model):
    untied = model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    return model.get_input_embeddings().weight.numel() + untied * _output(model)


def _pooler(model):
    return model.config.hidden_size * (model.config.hidden_size + 1)


def _rotary_frequencies(model):
    """One for each pair of a head's dimensions, in each layer."""
    config = model.config
    return config.num_hidden_layers * config.hidden_size // config.num_attention_heads // 2


def _position_offsets(model):
    """The first rows of OPT's and BART's tables of positions stand for no position."""
    tables = [module for module in model.modules() if hasattr(module, "offset")]
    return sum(table.offset * table.embedding_dim for table in tables)


DIFFERENCES = {
    "output_embedding": _output,
    "pooler": _pooler,
    "rotary_frequencies": _rotary_frequencies,
    "embeddings": _embeddings,
    "position_offsets": _position_offsets,
}


def agrees(count, model):
    """Whether a second source's number is the model's: exactly, or within its rounding."""
    there = sum(DIFFERENCES[part](model) for part in count.also)
    here = sum(DIFFERENCES[part](model) for part in count.without)
    expected = total(model) + there - here
    if isinstance(count.says, int):
        return expected == count.says
    digits, unit = count.says[:-1], {"M": 10**6, "B": 10**9}[count.says[-1]]
    # 7B is rounded to ones, 7.6B to tenths, 70B to tens
    zeros = len(digits) - len(digits.rstrip("0")) if "." not in digits else 0
    step = Fraction(10) ** (zeros - len(digits.partition(".")[2])) * unit
    return abs(expected - Fraction(digits) * unit) <= step / 2


@pytest.mark.parametrize("name", WITH_FACTS)
def test_count_is_the_built_model_s_and_the_second_source_s(name):
    plugin = SPECS[name]
    model = base(plugin)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert total(model) == plugin.spec.parameters
    if plugin.spec.facts.count:
        assert agrees(plugin.spec.facts.count, model)


def test_another_size_agrees_with_neither_exact_nor_rounded_counts():
    raw = SPECS["qwen2.5-7b"].raw
    smaller = {**raw, "architecture": {**raw["architecture"], "num_hidden_layers": 27}}
    model, thinner = empty_model(raw, "causal_lm"), empty_model(smaller, "causal_lm")
    for says in (7615616512, "7.616B", "7.62B", "7.6B", "8B"):
        count = SPECS["qwen2.5-7b"].spec.facts.count.model_copy(update={"says": says})
        assert agrees(count, model)
        assert not agrees(count, thinner)  # 7.38 B


def test_every_model_has_facts_but_those_that_are_older():
    assert sorted({*SPECS} - {*WITH_FACTS}) == WITHOUT_FACTS
    assert len(WITH_FACTS) >= 40


@pytest.mark.parametrize("name", WITH_FACTS)
def test_two_sources_are_named_or_that_there_is_one(name):
    facts = SPECS[name].spec.facts
    if facts.count:
        there = [urlsplit(source)[1:3] for source in (facts.config, facts.count.source)]
        assert there[0] != there[1]  # another file, of another site or repository
    for source in filter(None, (facts.config, facts.count and facts.count.source)):
        if urlsplit(source).netloc == "github.com" and "/pull/" not in source:
            assert re.search(r"/blob/[0-9a-f]{40}/", source)


FACTS = {"config": "https://example.org/config.json"}


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (FACTS, "needs 'count', or 'one_source: true'"),
        ({**FACTS, "one_source": True, "count": {"says": 1, "source": "https://a.b"}}, "needs"),
        ({**FACTS, "count": {"says": "about 7B", "source": "https://a.b"}}, "says"),
        ({"config": "our own measurement", "one_source": True}, "config"),
    ],
)
def test_facts_without_a_source_are_refused(facts, told, tmp_path):
    raw = {**SPECS["qwen3-8b"].raw, "facts": facts}
    with pytest.raises(BadInput, match=told):
        check(raw, ModelFile, tmp_path / "models" / "qwen3-8b.yaml")
