"""A GGUF file in two parts becomes the model that it was made from: a tiny Gemma 3."""

import hashlib

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from leantune.errors import BadInput
from leantune.models.load import load_model, load_tokenizer, positions
from leantune.spec import plugins
from leantune.spec.models import parameters, pinned

gguf = pytest.importorskip("gguf")

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "a", "b", "▁a", "▁b", "ab", "▁ab"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = [*WORDS, *BYTES]
ARCHITECTURE = {
    "model_type": "gemma3_text",
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "num_hidden_layers": 6,  # five see a window, the sixth everything
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 256,  # a GGUF file does not say it, and transformers takes this
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "sliding_window": 4,
}
BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**ARCHITECTURE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)  # also the norms, which begin at zero
    return model.eval()


def gguf_name(name):
    if not name.startswith("model.layers."):
        return {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
        }[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{BLOCK[rest.removesuffix('.weight')]}.weight"


def write_gguf(path, model, norm_offset):
    """The file as llama.cpp writes it: a norm's weight has one added, which Gemma's norm adds."""
    writer = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(6)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(4)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-float(i) for i in range(len(TOKENS))])
    control = gguf.TokenType.CONTROL
    writer.add_token_types(
        [control] * 4 + [gguf.TokenType.NORMAL] * 7 + [gguf.TokenType.BYTE] * 256
    )
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    for name, weight in model.named_parameters():
        offset = norm_offset if "norm" in name else 0
        writer.add_tensor(gguf_name(name), (weight + offset).detach().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def made(tmp_path, monkeypatch, original):
    monkeypatch.setenv("LEANTUNE_CACHE", str(tmp_path / "cache"))

    def make(norm_offset=1):
        """A model's spec whose GGUF file lies in two parts."""
        file = tmp_path / "whole.gguf"
        write_gguf(file, original, norm_offset)
        data = file.read_bytes()
        file.unlink()
        (tmp_path / "x.0").write_bytes(data[:5000])
        (tmp_path / "x.1").write_bytes(data[5000:])
        return {
            "name": "tiny-gemma",
            "kinds": ["causal_lm", "classification"],
            "folder": tmp_path,
            "architecture": ARCHITECTURE,
            "source": {
                "parts": [{"local": "x.0"}, {"local": "x.1"}],
                "joined": "tiny.gguf",
                "sha256": hashlib.sha256(data).hexdigest(),
                "format": "gguf",
            },
        }

    return make


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(4, 16)[None]).logits


def test_the_converted_model_is_the_one_that_the_file_was_made_from(made, original, tmp_path):
    spec = made()
    model = load_model(spec, "causal_lm")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert torch.allclose(logits(model), logits(original), rtol=1e-5, atol=1e-5)
    (tmp_path / "x.0").unlink()
    load_model(spec, "classification", num_labels=2)  # from the cache
    tokens = load_tokenizer(spec)("ab a")["input_ids"]
    assert tokens[0] == 2  # Gemma's loss is twice as high without it
    assert positions(spec) == 128


def test_norms_without_the_added_one_are_another_model(made, original):
    assert not torch.allclose(logits(load_model(made(0), "causal_lm")), logits(original), atol=0.1)


@pytest.mark.process
def test_a_gguf_file_is_a_word_for_its_model(tmp_path, monkeypatch, original):
    monkeypatch.setenv("LEANTUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    write_gguf(file, original, 1)
    found = plugins.get("models", str(file))
    assert found.name.startswith("tiny-")
    assert found.spec.family == "gemma3_text"
    assert parameters(found) == sum(weight.numel() for weight in original.parameters())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert pinned(found).raw["source"]["sha256"] == digest
    read = load_model({**found.raw, "folder": found.folder}, "causal_lm")
    for name, weight in original.named_parameters():
        assert torch.allclose(read.get_parameter(name), weight, atol=1e-6)  # norms as 1 + weight
    file.write_text("no model")
    with pytest.raises(BadInput, match="is no GGUF file"):
        plugins.get("models", str(file))
