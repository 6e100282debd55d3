"""Real weights, their shapes without weights, seeds, padding."""

import time

import pytest
import torch
from safetensors.torch import load_file

from leantune.errors import BadInput
from leantune.fetch.source import fetch
from leantune.models.load import (
    empty_model,
    load_model,
    load_tokenizer,
    parameter_counts,
    positions,
)
from leantune.spec import plugins

DEBERTA = {
    "name": "deberta-v3-base",
    "source": {"none": True},
    "kinds": ["classification", "regression"],
    "architecture": {
        "model_type": "deberta-v2",
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
    },
}


def spec(name):
    return plugins.get("models", name).raw


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def head(seed):
    return load_model(spec("minilm-l6"), "classification", 3, seed).classifier.weight


def test_body_is_the_file_s_and_head_is_the_seed_s():
    model = load_model(spec("minilm-l6"), "classification", 3, 0)
    stored = load_file(fetch(spec("minilm-l6")["source"]) / "model.safetensors")
    assert torch.equal(
        model.bert.encoder.layer[0].attention.self.query.weight,
        stored["encoder.layer.0.attention.self.query.weight"].float(),
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.training
    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))


def test_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_model(spec("minilm-l6"), "classification", 2, 0)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("kind", ["classification", "regression", "masked_lm"])
def test_empty_model_has_the_real_shapes_and_no_memory(kind):
    real, empty = load_model(spec("minilm-l6"), kind, 3), empty_model(spec("minilm-l6"), kind, 3)
    assert shapes(real) == shapes(empty)
    assert {t.device.type for t in [*empty.parameters(), *empty.buffers()]} == {"meta"}
    assert real.config.problem_type == empty.config.problem_type
    assert empty.config.use_cache is real.config.use_cache is False


def test_regression_has_one_output_and_squared_loss():
    model = load_model(spec("minilm-l6"), "regression").eval()
    batch = load_tokenizer(spec("minilm-l6"))(["a", "b c"], padding=True, return_tensors="pt")
    out = model(**batch, labels=torch.tensor([1.0, -1.0]))
    assert out.logits.shape == (2, 1)
    expected = ((out.logits.squeeze(-1) - torch.tensor([1.0, -1.0])) ** 2).mean()
    assert out.loss.item() == pytest.approx(expected.item())


def test_deberta_finds_its_loss_on_meta_labels():
    model = empty_model(DEBERTA, "classification", 2)
    ids = torch.ones(2, 5, dtype=torch.long, device="meta")
    out = model(
        input_ids=ids, attention_mask=ids, labels=torch.ones(2, dtype=torch.long, device="meta")
    )
    assert (out.loss.shape, out.logits.shape) == ((), (2, 2))


@pytest.mark.parametrize(("tied", "total"), [(True, 11584), (False, 12608)])
def test_an_output_that_a_t5_checkpoint_has_of_its_own_is_counted(tied, total, tmp_path):
    """Transformers' class forgets that the configuration says so."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    architecture = {"model_type": "t5", "vocab_size": 64, **sizes, "tie_word_embeddings": tied}
    given = {"name": "tiny-t5", "kinds": ["seq2seq_lm"], "architecture": architecture}
    drawn = empty_model(given, "seq2seq_lm", device="cpu")
    torch.nn.init.normal_(drawn.lm_head.weight)  # of one, or of both
    drawn.save_pretrained(tmp_path)
    loaded = load_model({**given, "source": {"local": str(tmp_path)}}, "seq2seq_lm")
    counts = [parameter_counts(m)["total"] for m in (loaded, empty_model(given, "seq2seq_lm"))]
    assert counts == [total, total]


def test_mpnets_first_positions_stand_for_padding():
    assert positions(spec("mpnet-base")) == positions(spec("roberta-base")) == 512


def test_loading_prints_nothing(capfd, caplog):
    load_model(spec("minilm-l6"), "classification", 2)
    load_tokenizer(spec("minilm-l6"))
    assert capfd.readouterr() == ("", "")


def test_unknown_kind_names_what_the_model_does():
    with pytest.raises(BadInput, match="'minilm-l6' does not do causal_lm; it does classification"):
        load_model(spec("minilm-l6"), "causal_lm")


def test_model_without_weights_cannot_be_loaded():
    with pytest.raises(BadInput, match="a configuration without weights"):
        load_model(DEBERTA, "classification", 2)


def test_converted_decoder_speaks_english_and_loads_fast():
    tokenizer = load_tokenizer(spec("smollm2-135m"))
    load_model(spec("smollm2-135m"), "causal_lm")  # converts on a fresh machine
    start = time.process_time()
    model = load_model(spec("smollm2-135m"), "causal_lm").eval()
    assert time.process_time() - start < 2
    assert shapes(model) == shapes(empty_model(spec("smollm2-135m"), "causal_lm"))
    batch = tokenizer("The capital of France is the beautiful city of Paris.", return_tensors="pt")
    with torch.no_grad():
        assert model(**batch, labels=batch["input_ids"]).loss.item() < 3.5


def test_decoder_classifies_at_the_last_real_token():
    tokenizer = load_tokenizer(spec("smollm2-135m"))
    assert (tokenizer.pad_token, tokenizer.padding_side) == (tokenizer.eos_token, "right")
    model = load_model(spec("smollm2-135m"), "classification", 2).eval()
    alone = tokenizer(["A short text"], return_tensors="pt")
    padded = tokenizer(
        ["A short text", "A text that is a good deal longer"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        assert torch.allclose(model(**padded).logits[0], model(**alone).logits[0], atol=1e-4)


def test_mini_gpt_is_drawn_from_its_seed():
    made = [load_model(spec("mini-gpt"), "causal_lm", seed=seed) for seed in (0, 0, 1)]
    first, same, other = (model.transformer.h[0].mlp.c_fc.weight for model in made)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert sum(p.numel() for p in made[0].parameters()) == spec("mini-gpt")["parameters"]


def test_mini_bert_is_drawn_from_its_seed_and_framed_as_bert_is():
    model = load_model(spec("mini-bert"), "masked_lm", seed=0)
    assert sum(p.numel() for p in model.parameters()) == spec("mini-bert")["parameters"]
    assert shapes(model) == shapes(empty_model(spec("mini-bert"), "masked_lm"))
    tokenizer = load_tokenizer(spec("mini-bert"))
    assert len(tokenizer) == 2048
    names = ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    assert [getattr(tokenizer, name) for name in names] == [0, 1, 2, 3]
    ids = tokenizer("Once upon a time")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids[1:-1]) == "Once upon a time"


def test_mini_gpt_tokenizer_round_trip():
    tokenizer = load_tokenizer(spec("mini-gpt"))
    assert len(tokenizer) == 2048
    text = "Well, what happened? “Nothing”, said the frog — it’s über."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.pad_token_id == 0
    assert len(tokenizer("Once upon a time there was a king")["input_ids"]) < 12
