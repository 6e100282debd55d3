"""The baselines and controls: published counts, what is trained, what is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from small import (
    ADAPTABLE,
    batch_of,
    method,
    run,
    small_context,
    small_data,
    small_model,
    stack,
    trainable,
)
from transformers import LlamaForCausalLM, PreTrainedModel

from leantune.api import BadInput, Data, Unsupported, is_head, mark_head
from leantune.architectures import linears

_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
_DEBERTA = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_buckets": 256,
    "position_biased_input": False,
    "layer_norm_eps": 1e-7,
}
# model: class prefix, family, config, all, LoRA r8 query and value, LoRA r8 all six, encoder
# biases, head
COUNTS: dict[str, tuple[str, str, dict[str, Any], int, int, int, int]] = {
    "bert-base": ("Bert", "bert", {}, 109_483_778, 294_912, 1_327_104, 101_376),
    "bert-large": ("Bert", "bert", _LARGE, 335_143_938, 786_432, 3_538_944, 270_336),
    "roberta-base": ("Roberta", "roberta", _ROBERTA, 124_647_170, 294_912, 1_327_104, 101_376),
    "roberta-large": (
        "Roberta",
        "roberta",
        {**_ROBERTA, **_LARGE},
        355_361_794,
        786_432,
        3_538_944,
        270_336,
    ),
    "deberta-v3-base": (
        "DebertaV2",
        "deberta-v2",
        _DEBERTA,
        184_423_682,
        294_912,
        1_327_104,
        102_144,
    ),
}


def on_meta(name: str) -> PreTrainedModel:
    prefix, _, config = COUNTS[name][:3]
    with torch.device("meta"):
        model = getattr(transformers, f"{prefix}ForSequenceClassification")(
            getattr(transformers, f"{prefix}Config")(num_labels=2, **config)
        )
    mark_head(model, "classification")
    return model


@pytest.mark.parametrize("name", COUNTS)
def test_counts_on_meta_models(tmp_path: Path, name: str) -> None:
    _, family, _, everything, query_value, all_six, biases = COUNTS[name]
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == everything
    svfit = (query_value // 16, 3 * query_value // 16)  # query and value; all six
    expectations = {
        "bitfit": biases,
        "lora": query_value,
        "lora@all": all_six,
        "svfit": svfit[0],
        "svfit@linears": svfit[1],
    }
    for plugin, expected in expectations.items():
        model = on_meta(name)
        method(plugin).attach(model, None, small_context(tmp_path, family, probe=True))
        assert trainable(model) == expected, plugin
        assert all(p.requires_grad for p in model.parameters() if is_head(p))


@pytest.mark.parametrize(
    ("name", "head"), [("roberta-base", 592_130), ("roberta-large", 1_051_650)]
)
def test_the_head_alone(tmp_path: Path, name: str, head: int) -> None:
    model = on_meta(name)
    plugin = method("head")
    ctx = small_context(tmp_path, COUNTS[name][1], probe=True)
    plugin.attach(model, None, ctx)
    assert trainable(model) == 0
    assert trainable(model, head=True) == head
    assert [
        (sum(p.numel() for p in g["params"]), g["lr"]) for g in plugin.parameter_groups(model, ctx)
    ] == [(head, ctx.head_lr)]


def learns(
    tmp_path: Path, name: str, family: str = "bert", kind: str = "classification"
) -> set[str]:
    """Names of what is trained; that nothing else moves is asked of every method."""
    model = small_model(family, kind)
    ctx = small_context(tmp_path, family, kind)
    stack(name, kind).attach(model, small_data(tmp_path, kind), ctx)
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_head_trains_the_head_only(tmp_path: Path) -> None:
    assert learns(tmp_path, "head") == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize("name", ["head", "adapter", "lora", "bitfit"])
def test_regression_trains_too(tmp_path: Path, name: str) -> None:
    model, start = small_model(kind="regression"), small_model(kind="regression")
    data, ctx = small_data(tmp_path, "regression"), small_context(tmp_path, kind="regression")
    run(model, stack(name, "regression"), data, ctx)
    assert not torch.equal(model.classifier.weight, start.classifier.weight)


def test_head_has_nothing_to_do_on_a_language_model(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="head"):
        method("head").attach(
            small_model("llama", "causal_lm"), None, small_context(tmp_path, "llama", "causal_lm")
        )


def test_bitfit_trains_biases_and_the_head_only(tmp_path: Path) -> None:
    body = learns(tmp_path, "bitfit") - learns(tmp_path, "head")
    assert body
    assert all(n.startswith("bert.encoder.") and n.endswith(".bias") for n in body)


def test_bitfit_needs_biases(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="needs biases in its blocks, and this Llama"):
        stack("bitfit", "causal_lm").attach(
            small_model("llama", "causal_lm"), None, small_context(tmp_path, "llama", "causal_lm")
        )


# ------------------------------------------------------------------ LoRA


@pytest.mark.parametrize("point", ["lora", "lora@all"])
@pytest.mark.parametrize("family", ADAPTABLE)
def test_lora_exports_a_plain_model_with_the_same_logits(
    tmp_path: Path, family: str, point: str
) -> None:
    kind = "causal_lm" if family in ("llama", "gpt2") else "classification"
    data, ctx, model = (
        small_data(tmp_path, kind),
        small_context(tmp_path, family, kind),
        small_model(family, kind),
    )
    names, plain = set(model.state_dict()), small_model(family, kind)
    lora = stack(point, kind)
    run(model, lora, data, ctx)
    trained = model.eval()(**batch_of(data)).logits
    exported = lora.export(model, ctx)
    assert set(exported.state_dict()) == names
    assert [type(m) for m in exported.modules()] == [type(m) for m in plain.modules()]
    assert torch.allclose(exported(**batch_of(data)).logits, trained, atol=1e-5)
    exported.save_pretrained(tmp_path / "out")
    loaded = type(plain).from_pretrained(tmp_path / "out")
    assert torch.allclose(loaded(**batch_of(data)).logits, trained, atol=1e-5)
    assert not torch.allclose(plain.eval()(**batch_of(data)).logits, trained, atol=1e-5)


def test_lora_starts_as_the_base_model(tmp_path: Path) -> None:
    data, model = small_data(tmp_path), small_model().eval()
    before = model(**batch_of(data)).logits
    method("lora").attach(model, data, small_context(tmp_path))
    assert torch.equal(model.eval()(**batch_of(data)).logits, before)


def test_lora_has_the_settings_of_a_fair_cell(tmp_path: Path) -> None:
    model = small_model()
    method("lora").attach(model, None, small_context(tmp_path))
    layer = model.bert.encoder.layer[0].attention.self.query
    assert layer.scaling["default"] == 16 / 8
    assert layer.lora_A["default"].weight.shape == (8, 16)
    assert isinstance(layer.lora_dropout["default"], torch.nn.Identity)
    assert not hasattr(model.bert.encoder.layer[0].attention.self.key, "lora_A")
    assert not hasattr(model.bert.pooler.dense, "lora_A")


def test_lora_all_leaves_the_head_alone(tmp_path: Path) -> None:
    model = small_model("roberta")
    method("lora@all").attach(model, None, small_context(tmp_path, "roberta"))
    assert not hasattr(model.classifier.dense, "lora_A")
    assert model.classifier.dense.weight.requires_grad


def test_lora_names_the_allowed_targets(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="query_value, all"):
        method("lora", targets="everything").attach(small_model(), None, small_context(tmp_path))


def test_the_linears_of_a_llama_block_are_seven() -> None:
    model = small_model("llama", "causal_lm")
    assert isinstance(model, LlamaForCausalLM)
    row = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(linears(model, "llama", row)) == 7 * 4


# ------------------------------------------------------------------ controls


def texts(kind: str) -> Data:
    good, bad = "a fine and moving film", "a dull and empty film"
    rows = [
        {"text": f"{t} number {i}", "label": y} for i in range(20) for t, y in ((good, 1), (bad, 0))
    ]
    train = Dataset.from_list(
        [{**r, "label": 3.0 * r["label"]} for r in rows] if kind == "regression" else rows
    )
    test = Dataset.from_list([{"text": "moving", "label": 1}, {"text": "dull", "label": 0}])
    return Data(kind, train, test, test, ("no", "yes"))


def test_tfidf_classifies_by_words(tmp_path: Path) -> None:
    assert method("tfidf").fit_predict(texts("classification"), small_context(tmp_path)) == [
        1.0,
        0.0,
    ]


def test_tfidf_regresses_with_ridge(tmp_path: Path) -> None:
    kind = "regression"
    high, low = method("tfidf", kind).fit_predict(texts(kind), small_context(tmp_path, kind=kind))
    assert (high > 2, low < 1) == (True, True)
    strong = method("tfidf", kind, alpha=1e6).fit_predict(
        texts(kind), small_context(tmp_path, kind=kind)
    )
    assert strong == pytest.approx([1.5, 1.5], abs=1e-3)  # only the intercept is left


def test_tfidf_ngrams_see_word_order(tmp_path: Path) -> None:
    rows = [
        {"text": t, "label": y}
        for _ in range(8)
        for t, y in (("not good but bad", 0), ("not bad but good", 1))
    ]
    data = Data("classification", *[Dataset.from_list(rows)] * 3)
    ctx = small_context(tmp_path)
    assert method("tfidf", ngrams=2).fit_predict(data, ctx) == [0.0, 1.0] * 8
    assert method("tfidf").fit_predict(data, ctx) != [0.0, 1.0] * 8


def test_tfidf_reads_both_texts_of_a_pair_and_what_they_share(tmp_path: Path) -> None:
    """Whether the second text is about the first one's word, which neither text alone tells."""
    words = ["film", "song", "book", "play"]
    rows = [
        {"text": f"a {a}", "pair": f"the {b}", "label": int(a == b)} for a in words for b in words
    ]
    data = Data("classification", *[Dataset.from_list(rows * 4)] * 3)
    found = method("tfidf", c=100.0).fit_predict(data, small_context(tmp_path))
    assert found == [float(y) for y in data.test["label"]]
    alone = Data("classification", *[data.train.remove_columns("pair")] * 3)
    assert method("tfidf", c=100.0).fit_predict(alone, small_context(tmp_path)) != found


def test_tfidf_needs_two_classes(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"text": "one", "label": 0}] * 3)
    with pytest.raises(BadInput, match="1 class"):
        method("tfidf").fit_predict(
            Data("classification", rows, rows, rows), small_context(tmp_path)
        )


def test_zero_shot_trains_nothing(tmp_path: Path) -> None:
    data, ctx = small_data(tmp_path, "causal_lm"), small_context(tmp_path, "llama", "causal_lm")
    model, plain = small_model("llama", "causal_lm"), small_model("llama", "causal_lm")
    zero = stack("zero_shot", "causal_lm")
    assert zero.trains is False
    assert zero.attach(model, data, ctx) == (model, data)
    assert trainable(model, head=True) == 0
    assert zero.parameter_groups(model, ctx) == []
    exported = zero.export(model, ctx)
    assert all(
        torch.equal(a, b) for a, b in zip(exported.parameters(), plain.parameters(), strict=True)
    )


def test_zero_shot_is_for_language_models(tmp_path: Path) -> None:
    ctx, model = small_context(tmp_path, "llama", "generation"), small_model("llama", "causal_lm")
    assert method("zero_shot", "generation").attach(model, None, ctx) == (model, None)
    with pytest.raises(Unsupported, match="random"):
        method("zero_shot").attach(small_model(), None, small_context(tmp_path))
