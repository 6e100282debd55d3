"""Encoder-decoder models (kind `seq2seq_lm`): two sequences an example, texts that are written."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LEDConfig,
    LEDForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import leantune
from leantune.api import BadInput, Context, is_head, mark_head
from leantune.cli.parser import main
from leantune.data.collate import Collate, batches, longest_batch_shape
from leantune.data.generation import encode_apart
from leantune.models.load import load_model, load_tokenizer
from leantune.prediction.ask import Ask
from leantune.prediction.metered_step import Probe
from leantune.spec import plugins
from leantune.spec.stacks import parse_stack
from leantune.testing import ARCHITECTURES, Subject, checks_of
from leantune.training.evaluation import predict_split, written_answers
from leantune.training.loop import Schedule
from leantune.training.stack import Stack

WIDTH = {
    **{"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
    **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3, "decoder_start_token_id": 1},
}
LED = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
MODELS = {
    "t5": (T5ForConditionalGeneration, T5Config(**ARCHITECTURES["t5"])),
    "mt5": (MT5ForConditionalGeneration, MT5Config(**ARCHITECTURES["t5"])),
    "bart": (BartForConditionalGeneration, BartConfig(**WIDTH)),
    "mbart": (MBartForConditionalGeneration, MBartConfig(**WIDTH)),
    "pegasus": (PegasusForConditionalGeneration, PegasusConfig(**WIDTH)),
    "marian": (MarianMTModel, MarianConfig(**WIDTH)),
    "m2m_100": (M2M100ForConditionalGeneration, M2M100Config(**WIDTH)),
    "led": (LEDForConditionalGeneration, LEDConfig(**WIDTH, **LED, attention_window=4)),
}
STILL = {"dropout": 0.0, "dropout_rate": 0.0, "attention_dropout": 0.0}
EXAMPLES = [
    {"input_ids": [5, 6, 7, 8, 3], "labels": [9, 10, 3]},
    {"input_ids": [11, 3], "labels": [12, 13, 14, 15, 3]},
    {"input_ids": [16, 17, 18, 3], "labels": [3]},
]
collate = Collate("seq2seq_lm", 0)


def small(name="t5", **change):
    made, config = MODELS[name]
    config = copy.deepcopy(config)
    for key, value in change.items():
        if hasattr(config, key):
            setattr(config, key, value)
    torch.manual_seed(0)
    return made(config)


# ------------------------------------------------------------------ in a user's own code


@pytest.mark.parametrize("name", MODELS)
def test_each_is_applied_to_as_its_kind(name, tmp_path):
    """The loss and its gradients are those of plain transformers, and the export comes back."""
    model, batch = small(name, **STILL), collate(EXAMPLES)
    plain = copy.deepcopy(model)
    handle = leantune.apply(model, "came", data=EXAMPLES, steps=2)
    mine, theirs = handle.model(**batch).loss, plain(**batch).loss
    mine.backward()
    theirs.backward()
    assert mine.item() == theirs.item()
    for (key, p), (_, q) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert p.grad is None if q.grad is None else torch.equal(p.grad, q.grad), key
    handle.optimizer().step()
    trained = handle.model.eval()(**batch).logits
    assert not torch.equal(trained, plain.eval()(**batch).logits)
    handle.export(tmp_path)
    assert torch.equal(leantune.load(tmp_path)(**batch).logits, trained)


def test_a_decoder_that_stands_in_the_same_list_of_transformers_is_not_one():
    config = transformers.BartConfig(**WIDTH, is_encoder_decoder=False)
    model = BartForConditionalGeneration(config)
    handle = leantune.apply(model, "full", steps=1)
    assert handle._ctx.kind == "masked_lm"  # as transformers lists BART's class too


def test_data_without_targets_are_refused():
    with pytest.raises(BadInput, match="two sequences, input_ids and labels; labels are missing"):
        leantune.apply(small(), "full", data=[{"input_ids": [5, 3]}], steps=1)


def test_it_has_no_head():
    model = small()
    mark_head(model, "seq2seq_lm")
    assert not any(map(is_head, model.parameters()))


# ------------------------------------------------------------------ batches and losses


def test_targets_are_padded_apart_from_the_inputs():
    batch = collate(EXAMPLES)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == (3, 5)
    assert batch["labels"].tolist()[0] == [9, 10, 3, -100, -100]
    assert longest_batch_shape(Dataset.from_list(EXAMPLES), 2) == (2, 5, 5)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_padding_changes_no_loss(name):
    model = small(name, init_std=0.5)
    split = Dataset.from_list(EXAMPLES)
    alone, together = (
        predict_split(model, batches(split, collate, size), "seq2seq_lm", "cpu", "fp32")
        for size in (1, 3)
    )
    assert alone[1] == together[1] == [3, 5, 1]
    assert alone[0] == pytest.approx(together[0], rel=1e-5)
    for example, loss in zip(EXAMPLES, alone[0], strict=True):  # as plain transformers has it
        given = {key: torch.tensor([ids]) for key, ids in example.items()}
        assert loss == pytest.approx(model(**given).loss.item() * len(example["labels"]), rel=1e-5)
    unmasked = {k: v for k, v in collate(EXAMPLES).items() if k != "attention_mask"}
    mean = model(**unmasked).loss.item()  # the control: padding that is read as text
    assert mean != pytest.approx(sum(together[0]) / 9, rel=1e-3)


def test_what_is_written_does_not_depend_on_the_batch():
    tokenizer = load_tokenizer(plugins.get("models", "mini-t5").raw)
    model = load_model(plugins.get("models", "mini-t5").raw, "seq2seq_lm").eval()
    rows = {
        "text": ["a king and a queen", "the", "once upon a time there was a fox"],
        "references": [["x"], ["y"], ["z"]],
    }
    split = Dataset.from_dict({**rows, **encode_apart(rows, tokenizer, 16, 8, answered=False)})
    made = Collate.of("seq2seq_lm", tokenizer)
    found = [
        written_answers(
            model, split, tokenizer, 8, size, "cpu", "fp32", None, batches(split, made, size)
        )
        for size in (1, 3)
    ]
    assert found[0] == found[1]
    assert found[0][1] == rows["references"]
    for text, ids in zip(found[0][0], split["input_ids"], strict=True):
        written = [0]
        for _ in range(8):
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([written])
                ).logits
            written.append(int(logits[0, -1].argmax()))
            if written[-1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(written[1:], skip_special_tokens=True).strip()


def test_sources_and_targets_end_as_t5s_do_and_are_cut_before_that():
    tokenizer = load_tokenizer(plugins.get("models", "mini-t5").raw)
    rows = {"text": ["the king " * 9, "the"], "references": [["the queen " * 9], ["fox"]]}
    made = encode_apart(rows, tokenizer, 6, 4, answered=True)
    assert [len(ids) for ids in made["input_ids"]] == [6, 2]
    assert len(made["labels"][0]) == 4
    assert all(ids[-1] == tokenizer.eos_token_id for ids in made["input_ids"] + made["labels"])
    assert "labels" not in encode_apart(rows, tokenizer, 6, 4, answered=False)
    assert len(encode_apart(rows, tokenizer, 6, None, answered=True)["labels"][0]) == 6
    tokenizer.eos_token = None
    with pytest.raises(BadInput, match="end token"):
        encode_apart(rows, tokenizer, 6, 4, answered=True)


# ------------------------------------------------------------------ memory


def probe(stack, shape):
    ctx = Context(
        kind="seq2seq_lm",
        **{"family": "t5", "steps": 8, "head_lr": 1e-3, "seed": 0, "device": "cpu"},
        **{"batch": shape[0], "length": shape[1], "cache": Path(), "probe": True},
    )
    return Probe(Stack(parse_stack(stack, "seq2seq_lm")), Schedule(steps=8), ctx, shape)


@pytest.mark.parametrize("name", MODELS)
def test_predicted_memory_is_that_of_real_tensors(name):
    """To the byte for T5. The decoders of the others make a mask of ones, which transformers drops
    where it can read its values: a prediction has it."""
    numbers = ("optimizer_state_bytes", "flops_per_step")
    probes = probe("full", (2, 12, 5)), probe("full", (2, 12))
    fake, real = probes[0].fake(small(name), cuda=False), probes[0].real(small(name))
    assert [fake[n] for n in numbers] == [real[n] for n in numbers]
    masks = 0 if "t5" in name else 4 * 2 * 5 * 5
    for phase, found in fake["by_phase"].items():
        assert 0 <= found - real["by_phase"][phase] <= masks, phase
    same = probes[1].fake(small(name), cuda=False)  # targets as long as the inputs
    assert same["flops_per_step"] > fake["flops_per_step"]


def test_a_targets_length_is_the_tasks_or_the_inputs(capsys):
    assert Ask("mini-t5", "full", 2, 16).target == 16
    assert Ask("mini-t5", "full", 2, 16, task="headlines").target == 32
    assert Ask("mini-gpt", "full", 2, 16).target is None
    words = ["--model", "mini-t5", "--method", "full", "--batch", "2", "--seq", "16", "--json"]
    assert main(["predict", *words]) == 0
    default = json.loads(capsys.readouterr().out)
    assert default["kind"] == "seq2seq_lm"
    assert default["parameters"]["head"] == 0
    assert main(["predict", *words, "--head", "seq2seq"]) == 0
    named = json.loads(capsys.readouterr().out)
    assert named["peak_bytes"] == default["peak_bytes"]


# ------------------------------------------------------------------ a stranger's method


@pytest.mark.parametrize("supports", ["families: [t5]", "tasks: [seq2seq_lm]"])
def test_a_method_of_these_models_is_checked_on_a_small_t5(supports, tmp_path, monkeypatch):
    folder = tmp_path / "methods" / f"mine_{len(supports)}"
    folder.mkdir(parents=True)
    (folder / "method.yaml").write_text(
        f"name: {folder.name}\nsummary: Every parameter is trained, under another name.\n"
        "slot: adaptation\nbase: full\nkinds: {seq2seq_lm: {lr: 3.0e-3}}\n"
        f"supports: {{{supports}}}\n"
    )
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(tmp_path))
    plugins._discovered.cache_clear()
    subject = Subject(folder.name)
    assert (subject.family, subject.kind) == ("t5", "seq2seq_lm")
    for check in checks_of(subject):
        check(subject)
