"""What names a model without a file in models/: a hub id, a folder, a config.json."""

import json
import re

import pytest
import torch
from hub_server import ask
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

import leantune
from leantune.cli import parser
from leantune.errors import BadInput
from leantune.models.load import load_model, load_tokenizer, positions
from leantune.spec import models, plugins
from leantune.spec.cells import resolve_cell
from leantune.spec.config import expand, load_config
from leantune.spec.stacks import parse_stack, unsupported_reason

TINY = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN = {**TINY, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Caches of the test's own; the hub is a port where nobody answers."""
    monkeypatch.setenv("LEANTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("LEANTUNE_MIRROR", raising=False)
    ask(monkeypatch, "http://127.0.0.1:9")


def config_of(made, **changed):
    return json.dumps({**made.to_dict(), **changed})


@pytest.fixture
def written(tmp_path):
    """A function that writes a config.json into a folder and returns the file."""

    def write(made, folder="my model", **changed):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        file = tmp_path / folder / "config.json"
        file.write_text(made if isinstance(made, str) else config_of(made, **changed))
        return file

    return write


def refused(word, message):
    with pytest.raises(BadInput, match=message) as error:
        plugins.get("models", str(word))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ words


def test_a_configuration_is_predicted_as_its_own_type(written):
    file = written(Qwen3Config(**QWEN))
    row = leantune.predict(str(file), "full", batch=1, length=16, dtype="bf16")
    assert row["parameters"]["total"] == sum(
        (
            *(2 * 64 * 16, 16),  # embeddings and output, the last norm
            2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 2 * 8),  # attention, its two norms of heads
            2 * (3 * 16 * 32 + 2 * 16),  # feed-forward, norms
        )
    )
    assert row["model"].startswith("my-model-")
    assert row["model"] != plugins.get("models", str(written(Qwen3Config(**TINY), "other"))).name


def test_the_name_and_the_command_of_a_hub_model(server):
    text = config_of(Qwen3Config(**QWEN))
    first = server.push({"config.json": text, "model.safetensors": "weights"})
    found = plugins.get("models", "org/name")
    assert (found.name, found.word) == ("org--name", f"org/name@{first}")
    assert found.spec.family == "qwen3"
    assert found.raw["source"] == {"hub": "org/name", "revision": first}
    assert not any("safetensors" in path for path in server.asked)  # only the configuration

    server.push({"config.json": config_of(GPT2Config())})
    cell = resolve_cell("org/name", "sentiment", "full", device="cpu")
    assert "/org--name/sentiment/full/0.json" in cell.record_path
    words = cell.command()
    again = resolve_cell(words[words.index("--model") + 1], "sentiment", "full", device="cpu")
    assert again.hashes == cell.hashes
    assert again.record_path == cell.record_path
    assert plugins.get("models", "org--name").raw == found.raw
    assert plugins.get("models", f"org/name@{first}").spec.family == "qwen3"


def test_a_revision_is_part_of_the_source_only(server):
    first = server.push({"config.json": config_of(Qwen3Config(**QWEN))})
    server.branches["models/org/name", "v1"] = first
    server.push({"config.json": config_of(GPT2Config())})
    old, new = plugins.get("models", "org/name@v1"), plugins.get("models", "org/name")
    assert old.name == new.name == "org--name"
    assert (old.spec.family, new.spec.family) == ("qwen3", "gpt2")
    assert old.word == f"org/name@{first}"


def test_without_a_network_what_was_fetched_serves(server, monkeypatch, tmp_path):
    commit = server.push({"config.json": config_of(Qwen3Config(**QWEN))})
    plugins.get("models", "org/name")
    ask(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv(
        "LEANTUNE_SOURCES_LOCK", str(tmp_path / "other.lock")
    )  # the user's own cache is left
    models._of_hub.cache_clear()
    assert plugins.get("models", "org/name").word == f"org/name@{commit}"


def test_the_hash_of_a_folder_is_that_of_its_weights(written):
    folder = written(Qwen3Config(**QWEN)).parent
    (folder / "model.safetensors").write_text("1")

    def hashed():
        return resolve_cell(str(folder), "sentiment", "full", device="cpu").hashes["model"]

    one = hashed()
    (folder / "optimizer.pt").write_text("not read")
    same = hashed()
    (folder / "model.safetensors").write_text("2!")
    other = hashed()
    assert one == same != other


@pytest.mark.parametrize(
    ("made", "kinds", "longest"),
    [
        (Qwen3Config(**QWEN), {"causal_lm", "generation", "classification", "regression"}, 32768),
        (
            GPT2Config(n_positions=99),
            {"causal_lm", "generation", "classification", "regression"},
            99,
        ),
        (BertConfig(**TINY), {"masked_lm", "classification", "regression", "span"}, 512),
        (
            RobertaConfig(max_position_embeddings=514),
            {"masked_lm", "classification", "regression", "span"},
            512,
        ),
        (T5Config(), {"seq2seq_lm", "classification", "regression"}, None),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_tasks_and_lengths_follow_from_the_configuration(written, made, kinds, longest):
    found = plugins.get("models", str(written(made)))
    assert {*found.spec.kinds} == kinds
    assert positions(found.raw) == longest


def test_of_a_model_with_images_the_language_model_counts(written):
    outer = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "vocab_size": 64}}
    assert plugins.get("models", str(written(json.dumps(outer)))).spec.family == "gemma3_text"


@pytest.mark.process
def test_what_it_has_is_worked_out_once_and_refuses_a_run_before_anything_is_built(written):
    """In a process of its own, kept by the configuration."""
    found = plugins.get("models", str(written(Qwen3Config(**QWEN))))
    parts = parse_stack("bitfit", "causal_lm")
    reason = unsupported_reason(parts, found, "causal_lm", "cpu")
    assert re.match("method 'bitfit' needs biases, which .* does not have", reason)
    assert "ffn_linears" in models.has(found)
    assert (
        unsupported_reason(parse_stack("adapter", "causal_lm"), found, "causal_lm", "cpu") is None
    )


def test_a_head_for_another_number_of_labels_is_made_anew(tmp_path):
    torch.manual_seed(1)
    saved = BertForSequenceClassification(BertConfig(**TINY, intermediate_size=32, num_labels=5))
    saved.save_pretrained(tmp_path / "five")
    found = plugins.get("models", str(tmp_path / "five"))
    made = load_model({**found.raw, "folder": found.folder}, "classification", 3)
    assert made.classifier.weight.shape == (3, 16)
    query = "encoder.layer.1.attention.self.query.weight"
    assert torch.equal(made.bert.get_parameter(query), saved.bert.get_parameter(query))


# ------------------------------------------------------------------ mistakes


def test_mistakes_in_a_configuration(written, tmp_path):
    refused(tmp_path / "nowhere/config.json", "there is no such file or folder")
    refused(tmp_path, "the folder has no config.json")
    refused(written("{"), r"config\.json is no JSON that can be read")
    refused(written("[]", "list"), "holds no mapping")
    refused(written('{"vocab_size": 3}', "typeless"), "has no `model_type`")
    later = {"model_type": "qwen99", "transformers_version": "9.1.0"}
    refused(written(json.dumps(later), "later"), "'qwen99'; the file was written by 9.1.0: install")
    refused(written('{"model_type": "qwen99"}', "typo"), "'qwen99'; correct it, or install a later")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "code.py"}}
    refused(written(json.dumps(own), "own"), "trust_remote_code: true")
    refused(written('{"model_type": "vit"}', "image"), "models of type 'vit' do no task")


def test_mistakes_in_a_hub_id(server, monkeypatch):
    server.push({"README.md": "only words"})
    refused("org/nane", "the hub has no model org/nane .* log in|the hub has no model org/nane")
    refused("org/name", "has no config.json")
    refused("org/name@v9", "has no revision 'v9'")
    server.push({"config.json": "{}"}, "models/org/gated")
    server.refused["models/org/gated"] = ("resolve", 403)
    refused("org/gated", "gated: ask for access on .*/org/gated.*hf auth login.*config.json given")
    ask(monkeypatch, "http://127.0.0.1:9")
    refused("org/unseen", "could not be fetched .* its config.json given as a file will do")
    refused("gtp2", "unknown model 'gtp2'; known: .*; or give a hub id")


def test_a_mistake_ends_the_command_with_2(written, capsys):
    words = ["--method", "full", "--batch", "1", "--seq", "8"]
    assert parser.main(["predict", "--model", str(written("{")), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_cannot_be_trained_is_said(written):
    file = written(Qwen3Config(**QWEN))
    alone, folder = (plugins.get("models", str(word)) for word in (file, file.parent))
    spec = {**folder.raw, "folder": folder.folder}
    with pytest.raises(BadInput, match="a configuration without weights: only its memory"):
        load_model(alone.raw, "causal_lm")
    with pytest.raises(BadInput, match=r"holds no weights .*; only its memory can be predicted"):
        load_model(spec, "causal_lm")
    with pytest.raises(BadInput, match="holds no tokenizer"):
        load_tokenizer(spec)
    (file.parent / "model.safetensors").write_text("")
    written(Qwen3Config(**QWEN), quantization_config={"quant_method": "awq"})
    with pytest.raises(BadInput, match=r"holds quantized weights \(awq\)"):
        load_model(spec, "causal_lm")


def test_two_models_of_one_name_need_a_config_each(written, tmp_path):
    words = [str(written(Qwen3Config(**QWEN), f"{place}/last").parent) for place in "ab"]
    (tmp_path / "b/last/model.safetensors").write_text("other weights")
    cells = {"models": words, "tasks": ["sentiment"], "methods": ["full"]}
    with pytest.raises(BadInput, match=r"are both written 'last-[0-9a-f]{8}' in records"):
        expand(load_config({"device": "cpu", "cells": [cells]}))
