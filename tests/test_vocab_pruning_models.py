"""Vocabulary pruning on many architectures, and a pruned model in a user's own code."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from test_vocab_pruning import COUNTING, FULL, PRUNED, VocabPruning, make, prune
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)
from transformers.trainer_pt_utils import LabelSmoother

import leantune
from leantune.api import Data
from leantune.errors import BadInput, Unsupported

LANGUAGE = sys.modules[VocabPruning.__module__.replace(".method", ".language_model")]
SIZES = dict(vocab_size=FULL, pad_token_id=1, bos_token_id=0, eos_token_id=2)
ENCODER = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=48)
DECODER = dict(ENCODER, head_dim=16, num_key_value_heads=2)
BOTH = dict(
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    decoder_start_token_id=2,
    max_position_embeddings=64,
)
# what of the model has the vocabulary's size beside the embedding
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gemma2": (AutoModelForCausalLM, DECODER),  # an attribute copied in `__init__`
    "gemma3_text": (AutoModelForCausalLM, DECODER),
    "xlm": (
        AutoModelForMaskedLM,
        dict(n_words=FULL, emb_dim=32, n_layers=2, n_heads=2),
    ),  # own loss
    "bart": (AutoModelForSeq2SeqLM, BOTH),  # a buffer [1, V]
    "blenderbot": (AutoModelForSeq2SeqLM, BOTH),  # no prepare_decoder_input_ids_from_labels
    "mobilebert": (  # an output glued of two matrices
        AutoModelForMaskedLM,
        dict(ENCODER, embedding_size=16, intra_bottleneck_size=32, true_hidden_size=32),
    ),
    "bert": (AutoModelForMaskedLM, dict(ENCODER, hidden_size=FULL)),  # equal by chance
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 2], [12, 13, 14, 15, 16, 17, 18, 2]])


def built(family: str) -> Any:
    auto, changes = KINDS[family]
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(family, **{**SIZES, **changes}))


def task(kind: str = "causal_lm") -> Data:
    split = Dataset.from_dict({"input_ids": IDS.tolist()})
    return Data(kind, split, split, split)


def decoder(cache: Path) -> Any:
    return prune(make("gpt2", AutoModelForCausalLM), cache, "causal_lm", task())


@pytest.mark.parametrize("family", KINDS)
def test_every_kind_of_head_follows_and_comes_back(family: str, tmp_path: Path) -> None:
    model = built(family).eval()
    whole = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        before = model(input_ids=IDS, labels=IDS)
    pruned, method, ctx = prune(model, tmp_path, "causal_lm", task())
    with torch.no_grad():
        after = pruned(input_ids=IDS, labels=IDS)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)
    out = pruned.train()(input_ids=IDS, labels=IDS)
    kept = len(pruned.get_input_embeddings().weight)
    assert out.logits.rows().shape[-1] == kept < 25
    assert out.logits.shape[-1] == FULL
    out.loss.backward()
    assert pruned.get_input_embeddings().weight.grad.any()
    assert all(torch.equal(v, whole[k]) for k, v in pruned.state_dict().items())
    restored = method.export(pruned, ctx).eval()
    assert type(restored) is type(built(family))
    assert all(torch.equal(v, whole[k]) for k, v in restored.state_dict().items())


@pytest.mark.parametrize("family", ["gemma2", "mobilebert"])
def test_without_what_follows_the_class_is_refused_and_whole(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the forward without values finds it, and the model is as it was."""
    monkeypatch.setattr(LANGUAGE, "_followers", lambda *_: ([], []))
    model = built(family)
    name = type(model).__name__
    with pytest.raises(Unsupported, match=f"training step of {name} fails"):
        prune(model, tmp_path, "causal_lm", task())
    assert len(model.get_input_embeddings().weight) == FULL
    assert not isinstance(model, PRUNED.Pruned)


# ------------------------------------------------------------------ in a user's own code


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("sample", [True, False])
def test_generate_chooses_kept_tokens_only(train: bool, sample: bool, tmp_path: Path) -> None:
    model, method, ctx = decoder(tmp_path)
    kept = set(model.vocabulary.keep.tolist())
    words = dict(do_sample=sample, max_new_tokens=20, eos_token_id=None, pad_token_id=2)
    found = model.train(train).generate(IDS[:, :3], **words)
    assert set(found.flatten().tolist()) <= kept
    plain = method.export(model, ctx).eval().generate(IDS[:, :3], **{**words, "do_sample": True})
    assert not set(plain.flatten().tolist()) <= kept  # there were others to choose


def test_unseen_tokens_are_evaluated_and_not_trained(tmp_path: Path) -> None:
    whole = make("gpt2", AutoModelForCausalLM).eval()
    model, *_ = decoder(tmp_path)
    ids = torch.tensor([[5, 60, 61]])
    assert torch.equal(model.eval()(ids, labels=ids).loss, whole(ids, labels=ids).loss)
    with pytest.raises(BadInput, match=r"id 61 does.*data\['train'\].*model.eval\(\)"):
        model.train()(ids)
    classifier, *_ = prune(make("bert"), tmp_path)
    assert torch.equal(classifier.eval()(ids).logits, make("bert").eval()(ids).logits)


def test_scores_of_training_read_as_the_whole_vocabulary(tmp_path: Path) -> None:
    model, *_ = decoder(tmp_path)
    out = model(input_ids=IDS, labels=IDS)
    rows, keep = out.logits.rows(), torch.from_numpy(model.vocabulary.keep)
    assert torch.equal(out.logits.argmax(-1), keep[rows.argmax(-1)])
    assert torch.equal(out.logits[..., keep], rows)
    assert out.logits.float().dtype == torch.float32
    assert type(out.logits.float()) is type(out.logits)
    assert model(input_ids=IDS, labels=IDS, return_dict=False)[1].shape[-1] == FULL
    (gradient,) = torch.autograd.grad(out.logits[..., 5].sum(), model.get_input_embeddings().weight)
    assert gradient.any()


def test_a_loss_of_the_users_own_is_over_the_whole_vocabulary(tmp_path: Path) -> None:
    """As the Trainer does with label_smoothing_factor: no labels for the model, all scores back."""
    losses = []
    for model in (make("gpt2", AutoModelForCausalLM), decoder(tmp_path)[0]):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loss = LabelSmoother(0.1)(model(input_ids=IDS), IDS, shift_labels=True)
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    assert model.get_input_embeddings().weight.grad.any()


def test_resizing_is_refused(tmp_path: Path) -> None:
    model, method, ctx = decoder(tmp_path)
    with pytest.raises(BadInput, match="resize_token_embeddings before vocab_pruning"):
        model.resize_token_embeddings(FULL + 4)
    assert method.export(model, ctx).resize_token_embeddings(FULL + 4).num_embeddings == FULL + 4


def test_a_saved_model_is_the_whole_one(tmp_path: Path) -> None:
    model, *_ = decoder(tmp_path)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(model))):
        assert type(again) is type(make("gpt2", AutoModelForCausalLM))
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(BadInput, match="save the model"):
        pickle.dumps(model.get_input_embeddings())


def test_special_ids_are_read_from_all_configs() -> None:
    model = make("gpt2", AutoModelForCausalLM)
    model.config.text_config = {"image_token_id": 70, "eos_token_id": [71]}
    words = dict(eos_token_id=[72, 73], suppress_tokens=[74], begin_suppress_tokens=[75])
    for name, value in dict(words, bad_words_ids=[[76, 77]], forced_eos_token_id=78).items():
        setattr(model.generation_config, name, value)
    assert set(range(70, 79)) <= COUNTING.special_ids(model, None, FULL)


def test_preference_data_are_counted(tmp_path: Path) -> None:
    columns = {
        "prompt_input_ids": [[5]],
        "chosen_input_ids": [[6]],
        "rejected_labels": [[7, -100]],
        "chosen": [{"input_ids": [8], "attention_mask": [1]}],
        "rejected": [[[9], [10]]],
        "token_type_ids": [[90]],
        "prompt": ["text"],
    }
    counts = COUNTING.count_tokens([Dataset.from_dict(columns)], FULL)
    assert counts.nonzero()[0].tolist() == [5, 6, 7, 8, 9, 10]
    rows = [{"chosen_input_ids": [5, 6], "rejected_input_ids": [5, 7]}]
    handle = leantune.apply(make("gpt2", AutoModelForCausalLM), "vocab_pruning", data=rows)
    assert {5, 6, 7} <= set(handle.model.vocabulary.keep.tolist())


def test_a_gpu_is_not_waited_for_and_the_id_is_reported_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Event:
        done = False

        def query(self) -> bool:
            return self.done

        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(COUNTING.Unseen, "_waits", lambda *_: True)
    monkeypatch.setattr(COUNTING.Unseen, "_copy", lambda _, found: (Event(), found))
    model, *_ = prune(make("bert"), tmp_path)
    unseen = torch.tensor([[5, 60]])
    assert torch.isfinite(model(unseen).logits).all()
    with pytest.raises(BadInput, match="id 60"):
        model.state_dict()
    model(unseen)
    Event.done = True
    with pytest.raises(BadInput, match="id 60"):
        model(torch.tensor([[5, 6]]))
