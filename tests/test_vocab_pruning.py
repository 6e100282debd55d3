"""Vocabulary pruning: every exact check and every failure row of its specification."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
)

from leantune.api import Context, Data, mark_head
from leantune.errors import BadInput
from leantune.training.stack import load_method

VocabPruning = load_method("vocab_pruning")
CAME = sys.modules[load_method("came").__module__].CAME
PRUNED = sys.modules[VocabPruning.__module__.replace(".method", ".pruned")]
COUNTING = sys.modules[VocabPruning.__module__.replace(".method", ".vocabulary")]
FULL, HIDDEN, LENGTH = 96, 32, 10
SMALL = dict(
    vocab_size=FULL,
    hidden_size=HIDDEN,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    num_labels=2,
    pad_token_id=1,
)
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": dict(SMALL, pad_token_id=0),
    "roberta": SMALL,
    "xlm-roberta": SMALL,
    "distilbert": dict(
        vocab_size=FULL,
        dim=HIDDEN,
        n_layers=2,
        n_heads=2,
        hidden_dim=64,
        num_labels=2,
        pad_token_id=0,
    ),
    "deberta-v2": dict(
        SMALL,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        pooler_hidden_size=HIDDEN,
        legacy=True,
    ),
    "gpt2": dict(
        vocab_size=FULL,
        n_embd=HIDDEN,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=95,
        eos_token_id=95,
    ),
    "llama": dict(
        SMALL, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=90, eos_token_id=2
    ),
    "mamba": dict(
        vocab_size=FULL,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        state_size=4,
        tie_word_embeddings=True,
    ),
    "t5": dict(
        vocab_size=FULL,
        d_model=HIDDEN,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    ),
}
CLASSIFIERS = ["bert", "roberta", "distilbert", "deberta-v2", "xlm-roberta", "gpt2", "llama"]
PAD = {"gpt2": 91, "llama": 90}


def make(family: str, auto: Any = AutoModelForSequenceClassification, **changes: Any) -> Any:
    """A tiny model of a family with seeded weights; GPT-2's and Llama's pad id lies above unused
    ids."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**CONFIGS[family], **changes})
    if config.pad_token_id is None:
        config.pad_token_id = PAD.get(family, 0)
    model = auto.from_config(config)
    if auto is AutoModelForSequenceClassification:
        mark_head(model, "classification")
    return model


def rows(seed: int, count: int = 12, ids: tuple[int, int] = (5, 40)) -> list[list[int]]:
    """Ragged sequences of ids in [5, 40), so that 40 and above is never used."""
    rng = np.random.default_rng(seed)
    return [rng.integers(*ids, size=rng.integers(3, LENGTH + 1)).tolist() for _ in range(count)]


def dataset(seed: int) -> Dataset:
    tokens = rows(seed)
    return Dataset.from_dict({"input_ids": tokens, "label": [i % 2 for i in range(len(tokens))]})


def data(kind: str = "classification", **changes: Any) -> Data:
    splits = {"train": dataset(0), "validation": dataset(1), "test": dataset(2)}
    return Data(kind, **{**splits, **changes})


def context(
    cache: Path, kind: str = "classification", family: str = "bert", probe: bool = False
) -> Context:
    return Context(kind, family, 20, 1e-3, 0, "cpu", 4, LENGTH, cache, probe)


def plugin(**params: Any) -> Any:
    return VocabPruning({"unk": False, "vocabulary": None, "used_share": {}, **params})


def prune(
    model: Any, cache: Path, kind: str = "classification", task: Data | None = None, **params: Any
) -> Any:
    method, ctx = plugin(**params), context(cache, kind)
    pruned, _ = method.attach(model, task or data(kind), ctx)
    return pruned, method, ctx


def batch(model: Any, seed: int, labels: bool = True) -> dict[str, Tensor]:
    """A padded batch of original ids."""
    pad = model.config.pad_token_id
    tokens = rows(seed % 3, 12)[:4]
    ids = torch.tensor([t + [pad] * (LENGTH - len(t)) for t in tokens])
    out = {
        "input_ids": ids,
        "attention_mask": (torch.arange(LENGTH) < torch.tensor([[len(t)] for t in tokens])).long(),
    }
    if labels:
        out["labels"] = torch.tensor([0, 1, 1, 0])
    return out


def lm_batch(model: Any, seed: int) -> dict[str, Tensor]:
    out = batch(model, seed, labels=False)
    out["labels"] = out["input_ids"].where(out["attention_mask"].bool(), -100)
    return out


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(FULL)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


# ------------------------------------------------------------------ logits before and after


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_logits_are_bit_equal_before_and_after(family: str, tmp_path: Path) -> None:
    model = make(family).eval()
    inputs = batch(model, 0)
    before, ids = model(**inputs).logits, inputs["input_ids"].clone()
    pruned, method, ctx = prune(model, tmp_path)
    assert len(pruned.get_input_embeddings().weight) < 45
    assert torch.equal(pruned(**inputs).logits, before)
    assert torch.equal(inputs["input_ids"], ids)
    assert torch.equal(method.export(pruned, ctx)(**inputs).logits, before)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba"])
def test_logits_of_language_models_are_over_the_full_vocabulary_in_eval_mode(
    family: str, tmp_path: Path
) -> None:
    model = make(family, AutoModelForCausalLM).eval()
    inputs = lm_batch(model, 0)
    before = model(**inputs)
    pruned, method, ctx = prune(model, tmp_path, "causal_lm")
    after = pruned(**inputs)
    assert after.logits.shape[-1] == FULL
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)
    assert torch.equal(method.export(pruned, ctx)(**inputs).logits, before.logits)


# ------------------------------------------------------------------ training runs


def train(
    model: Any, optimizer: torch.optim.Optimizer, steps: int = 20, dtype: torch.dtype | None = None
) -> None:
    model.train()
    torch.manual_seed(7)
    for step in range(steps):
        model(**batch(model, step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


OPTIMIZERS = {
    "sgd": lambda p, decay: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=decay),
    "adamw": lambda p, decay: torch.optim.AdamW(p, lr=1e-3, weight_decay=decay, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_twenty_steps_with_dropout_are_bit_equal_to_the_full_run(
    family: str, optimizer: str, tmp_path: Path
) -> None:
    full, pruned = make(family), make(family)
    untouched = state(full)
    embedding = "weight"
    train(full, OPTIMIZERS[optimizer](full.parameters(), 0.0))
    pruned, method, ctx = prune(pruned, tmp_path)
    train(pruned, OPTIMIZERS[optimizer](pruned.parameters(), 0.0))
    expected = full.state_dict()
    saved = pruned.state_dict()  # shows the whole matrix before any export
    restored = method.export(pruned, ctx).state_dict()
    assert list(restored) == list(expected) == list(saved)
    for name, value in expected.items():
        assert torch.equal(restored[name], value), name
        assert torch.equal(saved[name], value), name
    moved = full.get_input_embeddings().weight.detach()
    name = next(k for k, v in untouched.items() if v.shape == moved.shape and k.endswith(embedding))
    assert not torch.equal(moved[5:40], untouched[name][5:40])
    assert torch.equal(moved[41:90], untouched[name][41:90])


def test_twenty_steps_equal_those_on_a_remapped_dataset(tmp_path: Path) -> None:
    """The paper's form, the oracle: plain pruned nn.Embedding, ids rewritten."""
    ours, oracle = make("bert"), make("bert")
    ours, *_ = prune(ours, tmp_path)
    keep = torch.from_numpy(ours.get_input_embeddings().stores["weight"].vocabulary.keep)
    embedding = oracle.get_input_embeddings()
    small = nn.Embedding(
        len(keep), HIDDEN, padding_idx=int(torch.searchsorted(keep, embedding.padding_idx))
    )
    small.weight = nn.Parameter(embedding.weight.detach()[keep])
    oracle.set_input_embeddings(small)
    a, b = (torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (ours, oracle))
    torch.manual_seed(0)
    for step in range(20):
        inputs = batch(oracle, step)
        torch.manual_seed(step)
        first = ours(**inputs).loss
        torch.manual_seed(step)
        second = oracle(
            **{**inputs, "input_ids": torch.searchsorted(keep, inputs["input_ids"])}
        ).loss
        assert torch.equal(first, second)
        for loss, optimizer in ((first, a), (second, b)):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(ours.get_input_embeddings().weight, small.weight)


def test_weight_decay_differs_in_unused_rows_only(tmp_path: Path) -> None:
    full, pruned = make("bert"), make("bert")
    train(full, OPTIMIZERS["adamw"](full.parameters(), 0.01))
    pruned, method, ctx = prune(pruned, tmp_path)
    keep = pruned.get_input_embeddings().stores["weight"].vocabulary.keep
    train(pruned, OPTIMIZERS["adamw"](pruned.parameters(), 0.01))
    expected, found = full.state_dict(), method.export(pruned, ctx).state_dict()
    (name,) = [k for k in expected if "word_embeddings" in k]
    assert all(torch.equal(found[k], v) for k, v in expected.items() if k != name)
    differing = (found[name] != expected[name]).any(1).nonzero().flatten().tolist()
    assert differing == sorted(set(range(FULL)) - set(keep.tolist()))


@pytest.mark.parametrize("full_matrix", [True, False])
@pytest.mark.parametrize(("family", "block"), [("llama", 0), ("bert", 200)])
def test_composition_with_came(family: str, block: int, full_matrix: bool, tmp_path: Path) -> None:
    """Pruned + CAME is the full CAME run to 1e-9 in fp64; with the setting off it is not (negative
    control)."""
    full, pruned = make(family).double(), make(family).double()
    for model in (
        full,
        pruned,
    ):  # attention ignores the keys' bias: its gradient is noise, which CAME would scale up
        for name, p in model.named_parameters():
            p.requires_grad_("key.bias" not in name)
    train(full, CAME(full.parameters(), lr=1e-3, clip=0.2, block=block))
    pruned, method, ctx = prune(pruned, tmp_path)
    train(
        pruned, CAME(pruned.parameters(), lr=1e-3, clip=0.2, block=block, full_matrix=full_matrix)
    )
    expected, found = full.state_dict(), method.export(pruned, ctx).state_dict()
    gap = max((expected[k] - found[k]).abs().max().item() for k in expected)
    assert (gap < 1e-9) == full_matrix, gap


# ------------------------------------------------------------------ tied output embeddings


@pytest.mark.parametrize(
    ("family", "auto"),
    [
        ("gpt2", AutoModelForCausalLM),
        ("llama", AutoModelForCausalLM),
        ("mamba", AutoModelForCausalLM),
        ("bert", AutoModelForMaskedLM),
        ("roberta", AutoModelForMaskedLM),
        ("distilbert", AutoModelForMaskedLM),
        ("deberta-v2", AutoModelForMaskedLM),
        ("t5", AutoModelForSeq2SeqLM),
    ],
)
def test_tied_output_is_pruned_and_its_loss_is_over_the_used_vocabulary(
    family: str, auto: Any, tmp_path: Path
) -> None:
    kind = "masked_lm" if auto is AutoModelForMaskedLM else "causal_lm"
    model = make(family, auto)
    parameters = {n: p.requires_grad for n, p in model.named_parameters()}
    count = sum(p.numel() for p in model.parameters())
    task, inputs = _lm_task(family, kind, model)
    reference = copy.deepcopy(model)
    for m in (model, reference):
        for module in m.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        m.train()
        m.config.resid_pdrop = 0.0
    torch.manual_seed(0)
    logits = _without_dropout(reference)(**inputs).logits
    pruned, method, ctx = prune(model, tmp_path, kind, task)
    embedding, output = pruned.get_input_embeddings(), pruned.get_output_embeddings()
    assert output.weight is embedding.weight
    assert output.out_features == len(embedding.weight) < FULL
    fewer = (FULL - len(embedding.weight)) * (HIDDEN + (output.bias is not None))
    assert sum(p.numel() for p in pruned.parameters()) == count - fewer
    assert {n: p.requires_grad for n, p in pruned.named_parameters()} == parameters

    result = _without_dropout(pruned)(**inputs)
    keep = torch.from_numpy(embedding.stores["weight"].vocabulary.keep)
    torch.testing.assert_close(result.logits.rows(), logits[..., keep], rtol=1e-5, atol=1e-5)
    labels = inputs["labels"]
    mapped = torch.searchsorted(keep, labels.clamp(min=0)).where(labels >= 0, -100)
    shift = 1 if family in ("gpt2", "llama", "mamba") else 0
    scores = logits[..., keep][:, : labels.shape[1] - shift]
    expected = nn.functional.cross_entropy(scores.flatten(0, 1), mapped[:, shift:].flatten())
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-5)
    assert pruned.config.vocab_size == FULL

    result.loss.backward()
    torch.optim.SGD(pruned.parameters(), lr=0.1).step()
    trained, whole = embedding.weight.detach().clone(), pruned.state_dict()
    before = reference.get_input_embeddings().weight.detach()
    restored = method.export(pruned, ctx)
    assert type(restored) is type(reference)
    assert restored.get_output_embeddings().weight is restored.get_input_embeddings().weight
    assert torch.equal(restored.get_input_embeddings().weight[keep], trained)
    unused = sorted(set(range(FULL)) - set(keep.tolist()))
    assert torch.equal(restored.get_input_embeddings().weight[unused], before[unused])
    assert {k: v.shape for k, v in restored.state_dict().items()} == {
        k: v.shape for k, v in whole.items()
    }
    assert restored.eval()(**inputs).logits.shape[-1] == FULL


def _lm_task(family: str, kind: str, model: Any) -> tuple[Data, dict[str, Tensor]]:
    """The examples and a batch of them; of an encoder-decoder both have labels of their own."""
    inputs = lm_batch(model, 0)
    if family != "t5":
        return data(kind), inputs
    splits = (dataset(seed).to_dict() for seed in range(3))
    rows = (Dataset.from_dict({**split, "labels": [[41, 42]] * 12}) for split in splits)
    return Data(kind, *rows), {**inputs, "labels": torch.tensor([[41, 42, 41]] * 4)}


def _without_dropout(model: Any) -> Any:
    for module in model.modules():
        for name in ("dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_an_untied_output_embedding_stays_whole(tmp_path: Path) -> None:
    """The paper leaves output embeddings alone; the loss and 5 steps are those of the full run."""
    full, pruned = (
        make("llama", AutoModelForCausalLM, tie_word_embeddings=False) for _ in range(2)
    )
    pruned, method, ctx = prune(pruned, tmp_path, "causal_lm")
    assert pruned.get_output_embeddings().weight.shape == (FULL, HIDDEN)
    for model in (full, pruned):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        for step in range(5):
            model(**lm_batch(model, step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    expected, found = full.state_dict(), method.export(pruned, ctx).state_dict()
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_random_words_of_masking_become_used_words(tmp_path: Path) -> None:
    names = tokenizer(pad_token="w0", mask_token="w4", unk_token="w3")
    collate = DataCollatorForLanguageModeling(
        names, mlm_probability=0.9, mask_replace_prob=0.0, random_replace_prob=1.0
    )
    model, *_ = prune(
        make("bert", AutoModelForMaskedLM),
        tmp_path,
        "masked_lm",
        data("masked_lm", tokenizer=names),
    )
    torch.manual_seed(0)
    inputs = collate([{"input_ids": r} for r in rows(0)])
    assert (inputs["input_ids"] >= 40).any()  # words that the data does not have
    model(**inputs).loss.backward()
    inputs["labels"][0, 0] = 77
    with pytest.raises(BadInput, match="'w77' \\(id 77\\)"):
        model(**inputs)


def test_an_output_computed_with_the_embedding_itself_is_pruned(tmp_path: Path) -> None:
    """This DeBERTa has no output embedding; its scores are a product with the input embedding."""
    model = make("deberta-v2", AutoModelForMaskedLM, legacy=False).eval()
    inputs = lm_batch(model, 0)
    before = model(**inputs).logits
    pruned, *_ = prune(model, tmp_path, "masked_lm")
    assert torch.equal(pruned(**inputs).logits, before)
    pruned.train()(**inputs).loss.backward()
    assert len(pruned.lm_predictions.lm_head.bias) == len(pruned.get_input_embeddings().weight)


# ------------------------------------------------------------------ what the reference gets wrong


@pytest.mark.parametrize("pad", [None, 91])
def test_a_missing_pad_and_one_above_an_unused_id_work(pad: int | None, tmp_path: Path) -> None:
    model = make("gpt2")
    model.config.pad_token_id = 91
    before = model.eval()(**batch(model, 0)).logits
    pruned, *_ = prune(
        model, tmp_path, task=data(tokenizer=tokenizer(pad_token="w91")) if pad else None
    )
    keep = pruned.get_input_embeddings().stores["weight"].vocabulary.keep
    assert {91, 95} <= set(keep.tolist())
    assert torch.equal(pruned(**batch(model, 0)).logits, before)


def test_special_ids_are_always_kept(tmp_path: Path) -> None:
    model = make("bert", eos_token_id=[60, 61], sep_token_id=70, decoder_start_token_id=80)
    model.config.pad_token_id = None  # the embedding still has its padding_idx, 0
    names = tokenizer(cls_token="w85", additional_special_tokens=["w86"])
    pruned, *_ = prune(model, tmp_path, task=data(tokenizer=names))
    keep = set(pruned.get_input_embeddings().stores["weight"].vocabulary.keep.tolist())
    assert {0, 60, 61, 70, 80, 85, 86} <= keep
    assert 62 not in keep
    assert pruned.get_input_embeddings().padding_idx == 0


def test_pad_row_gets_no_gradient_when_its_id_moves(tmp_path: Path) -> None:
    model, *_ = prune(make("roberta"), tmp_path)  # pad id 1, id 0 is kept as bos
    model(**batch(model, 0)).loss.backward()
    embedding = model.get_input_embeddings()
    row = embedding.stores["weight"].vocabulary.keep.tolist().index(1)
    assert embedding.padding_idx == row
    assert not embedding.weight.grad[row].any()
    assert embedding.weight.grad.any()


def test_an_unseen_token_is_named(tmp_path: Path) -> None:
    model, *_ = prune(make("bert"), tmp_path, task=data(tokenizer=tokenizer()))
    with pytest.raises(BadInput, match=r"'w50' \(id 50\).*vocab_pruning.unk=true"):
        model(input_ids=torch.tensor([[5, 50]]))
    with pytest.raises(BadInput, match="96 is outside the vocabulary of 96"):
        model(input_ids=torch.tensor([[5, 96]]))


def test_an_unseen_token_may_read_the_unknown_one(tmp_path: Path) -> None:
    names = tokenizer(unk_token="w3")
    model, *_ = prune(make("bert").eval(), tmp_path, task=data(tokenizer=names), unk=True)
    with_unseen, with_unk = torch.tensor([[5, 50]]), torch.tensor([[5, 3]])
    assert torch.equal(model(input_ids=with_unseen).logits, model(input_ids=with_unk).logits)
    with pytest.raises(BadInput, match="unknown token"):
        prune(make("bert"), tmp_path, task=data(tokenizer=tokenizer()), unk=True)


def test_an_unseen_label_is_named(tmp_path: Path) -> None:
    model, *_ = prune(
        make("gpt2", AutoModelForCausalLM),
        tmp_path,
        "causal_lm",
        data("causal_lm", tokenizer=tokenizer()),
    )
    inputs = lm_batch(model, 0)
    inputs["labels"][0, 1] = 44
    with pytest.raises(BadInput, match="'w44'"):
        model(**inputs)
    assert model.config.vocab_size == FULL


def test_a_frozen_embedding_stays_frozen(tmp_path: Path) -> None:
    model = make("bert")
    model.get_input_embeddings().weight.requires_grad_(False)
    pruned, method, ctx = prune(model, tmp_path)
    assert not pruned.get_input_embeddings().weight.requires_grad
    assert not method.export(pruned, ctx).get_input_embeddings().weight.requires_grad


def test_marks_on_the_parameter_survive(tmp_path: Path) -> None:
    model = make("bert")
    model.get_input_embeddings().weight.mark = "mine"
    pruned, method, ctx = prune(model, tmp_path)
    weight = pruned.get_input_embeddings().weight
    assert (weight.mark, weight.full_numel) == ("mine", FULL * HIDDEN)
    weight = method.export(pruned, ctx).get_input_embeddings().weight
    assert weight.mark == "mine"
    assert not hasattr(weight, "full_numel")


def test_decoder_ids_and_labels_are_counted(tmp_path: Path) -> None:
    columns = {
        "input_ids": [[5, 6], [7]],
        "decoder_input_ids": [[50], [51, 52]],
        "labels": [[53, -100], [54]],
    }
    split = Dataset.from_dict(columns)
    model, *_ = prune(
        make("t5", AutoModelForSeq2SeqLM),
        tmp_path,
        "causal_lm",
        Data("causal_lm", split, split, split),
    )
    keep = set(model.get_input_embeddings().stores["weight"].vocabulary.keep.tolist())
    assert {5, 6, 7, 50, 51, 52, 53, 54} <= keep
    model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[53, 54]])).loss.backward()


@pytest.mark.parametrize("call", ["step", "zero_grad"])
def test_an_optimizer_built_before_pruning_is_an_error(call: str, tmp_path: Path) -> None:
    model = make("bert")
    stale = torch.optim.AdamW(model.parameters(), fused=True)
    model, *_ = prune(model, tmp_path)
    model(**batch(model, 0)).loss.backward()
    with pytest.raises(BadInput, match="optimizer was built before vocab_pruning"):
        getattr(stale, call)()


def test_num_embeddings_follows(tmp_path: Path) -> None:
    pruned, method, ctx = prune(make("bert"), tmp_path)
    embedding = pruned.get_input_embeddings()
    assert embedding.num_embeddings == len(embedding.weight) < FULL
    embedding = method.export(pruned, ctx).get_input_embeddings()
    assert (embedding.num_embeddings, embedding.weight.shape, embedding.padding_idx) == (
        FULL,
        (FULL, HIDDEN),
        0,
    )
    assert type(embedding) is nn.Embedding
    assert not list(embedding.buffers())


def test_pooling_that_searches_for_eos_works(tmp_path: Path) -> None:
    """BART's classifier pools at the last eos of the original ids."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bart",
        vocab_size=FULL,
        d_model=HIDDEN,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=94,
        pad_token_id=93,
        bos_token_id=92,
        decoder_start_token_id=94,
        scale_embedding=True,
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.tensor([[5, 6, 94], [7, 8, 94]])
    before = model(input_ids=ids).logits
    pruned, method, ctx = prune(model, tmp_path)
    assert torch.equal(pruned(input_ids=ids).logits, before)
    assert torch.equal(method.export(pruned, ctx)(input_ids=ids).logits, before)


# ------------------------------------------------------------------ saving, loading, copying


def test_state_dicts_show_the_whole_matrix_and_loading_takes_one(tmp_path: Path) -> None:
    full = make("bert")
    pruned, *_ = prune(make("bert"), tmp_path)
    shapes = {k: v.shape for k, v in full.state_dict().items()}
    assert {k: v.shape for k, v in pruned.state_dict().items()} == shapes
    other = {k: v + 1 if v.is_floating_point() else v for k, v in full.state_dict().items()}
    pruned.load_state_dict(other)
    assert all(torch.equal(v, other[k]) for k, v in pruned.state_dict().items())
    wrong = {k: v[:5] if "word_embeddings" in k else v for k, v in other.items()}
    with pytest.raises(RuntimeError, match="whole matrix"):
        pruned.load_state_dict(wrong)


def test_the_whole_matrix_leaves_memory_for_a_file(tmp_path: Path) -> None:
    model = make("bert")
    whole = model.get_input_embeddings().weight.detach().clone()
    prune(model, tmp_path)
    sizes = {t.untyped_storage().nbytes() for t in [*model.parameters(), *model.buffers()]}
    assert whole.untyped_storage().nbytes() not in sizes
    (file,) = (tmp_path / "vocab_pruning").iterdir()
    with safe_open(file, "pt") as stored:
        assert torch.equal(stored.get_tensor("weight"), whole)
    prune(make("bert"), tmp_path)
    assert len(list((tmp_path / "vocab_pruning").iterdir())) == 1
    file.unlink()
    with pytest.raises(BadInput, match="was deleted"):
        model.state_dict()


def test_exported_model_saves_and_loads_with_plain_transformers(tmp_path: Path) -> None:
    pruned, method, ctx = prune(make("gpt2", AutoModelForCausalLM), tmp_path, "causal_lm")
    torch.optim.SGD(pruned.parameters(), lr=0.1)
    pruned(**lm_batch(pruned, 0)).loss.backward()
    exported = method.export(pruned, ctx).eval()
    exported.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    inputs = lm_batch(exported, 0)
    assert torch.equal(again(**inputs).logits, exported(**inputs).logits)


def test_a_deep_copy_trains_apart(tmp_path: Path) -> None:
    model, method, ctx = prune(make("gpt2", AutoModelForCausalLM), tmp_path, "causal_lm")
    twin = copy.deepcopy(model)
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight
    twin(**lm_batch(twin, 0)).loss.backward()
    assert twin.get_input_embeddings().weight.grad is not None
    assert model.get_input_embeddings().weight.grad is None
    assert method.export(twin, ctx).get_input_embeddings().num_embeddings == FULL
    assert model.get_input_embeddings().num_embeddings < FULL


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_lora_on_a_pruned_model(auto: Any, tmp_path: Path) -> None:
    kind = "causal_lm" if auto is AutoModelForCausalLM else "classification"
    model, method, ctx = prune(make("llama", auto), tmp_path, kind)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    make_batch = lm_batch if kind == "causal_lm" else batch
    wrapped(**make_batch(model, 0)).loss.backward()
    merged = method.export(wrapped.merge_and_unload(), ctx).eval()
    assert merged.get_input_embeddings().weight.shape == (FULL, HIDDEN)
    assert torch.isfinite(merged(**make_batch(model, 0)).logits).all()


def test_bf16_weights(tmp_path: Path) -> None:
    model = make("bert").bfloat16().eval()
    before, whole = model(**batch(model, 0)).logits, state(model)
    pruned, method, ctx = prune(model, tmp_path)
    assert torch.equal(pruned(**batch(model, 0)).logits, before)
    restored = method.export(pruned, ctx).state_dict()
    assert all(torch.equal(restored[k], v) for k, v in whole.items())


# ------------------------------------------------------------------ counting


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 19), max_size=6), min_size=1, max_size=8))
def test_counts_equal_a_plain_loop(tokens: list[list[int]]) -> None:
    split = Dataset.from_dict({"input_ids": [[*t, 3] for t in tokens]})
    expected = np.zeros(20, dtype=int)
    for t in tokens:
        for i in [*t, 3]:
            expected[i] += 2
    assert (
        COUNTING.count_tokens([split, split.select(range(len(tokens)))], 20).tolist()
        == expected.tolist()
    )


def test_a_selection_counts_its_own_rows_only() -> None:
    split = Dataset.from_dict({"input_ids": [[1], [2], [3]]}).select([2, 0])
    assert COUNTING.count_tokens([split], 5).nonzero()[0].tolist() == [1, 3]


@pytest.mark.parametrize(("kind", "kept"), [("classification", True), ("causal_lm", False)])
def test_the_test_split_counts_except_in_language_modelling(
    kind: str, kept: bool, tmp_path: Path
) -> None:
    task = data(
        kind,
        test=Dataset.from_dict({"input_ids": [[55, 5]]}),
        validation=Dataset.from_dict({"input_ids": [[56]]}),
    )
    auto = AutoModelForCausalLM if kind == "causal_lm" else AutoModelForSequenceClassification
    model, *_ = prune(make("gpt2", auto), tmp_path, kind, task)
    keep = set(model.get_input_embeddings().stores["weight"].vocabulary.keep.tolist())
    assert (55 in keep) == kept
    assert 56 in keep


def test_ids_of_another_tokenizer_and_untokenized_data_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="token id 96 is outside the embedding of 96"):
        prune(make("bert"), tmp_path, task=data(train=Dataset.from_dict({"input_ids": [[96]]})))
    with pytest.raises(BadInput, match="input_ids"):
        prune(make("bert"), tmp_path, task=data(train=Dataset.from_dict({"text": ["a"]})))


# ------------------------------------------------------------------ prediction


def test_a_prediction_needs_the_number_of_rows(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"vocab_pruning.vocabulary=ROWS.*vocab_pruning@sst2"):
        plugin().attach(make("bert"), None, context(tmp_path, probe=True))
    with pytest.raises(BadInput, match="it must be"):
        plugin(vocabulary=FULL + 1).attach(make("bert"), None, context(tmp_path, probe=True))


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_a_prediction_prunes_meta_tensors_without_a_file(auto: Any, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model("gpt2", **CONFIGS["gpt2"], pad_token_id=91))
    kind = "causal_lm" if auto is AutoModelForCausalLM else "classification"
    ctx = context(tmp_path, kind, probe=True)
    pruned, none = plugin(vocabulary=30).attach(model, None, ctx)
    assert none is None
    assert pruned.get_input_embeddings().weight.shape == (30, HIDDEN)
    assert all(t.is_meta for t in [*pruned.parameters(), *pruned.buffers()])
    assert not list(tmp_path.iterdir())
    assert plugin().export(pruned, ctx).get_input_embeddings().weight.shape == (FULL, HIDDEN)


def test_xlm_r_base_on_sst2_saves_2819_8_mib(tmp_path: Path) -> None:
    """16 bytes per number with fp32 AdamW, and the usage table's 3.75 %."""
    from leantune.spec.stacks import parse_stack

    (part,) = [
        p for p in parse_stack("vocab_pruning@sst2", "classification") if p.slot == "vocabulary"
    ]
    config = AutoConfig.for_model(
        "xlm-roberta", vocab_size=250_002, num_hidden_layers=1, max_position_embeddings=514
    )
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    before = sum(p.numel() for p in model.parameters())
    ctx = context(tmp_path, family="xlm-roberta", probe=True)
    VocabPruning(part.params).attach(model, None, ctx)
    saved = 16 * (before - sum(p.numel() for p in model.parameters())) / 2**20
    assert saved == pytest.approx(2819.8, abs=0.1)
    assert ctx.details["vocabulary"]["used_share"] == pytest.approx(0.0375, abs=1e-5)


BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
ROBERTA = dict(type_vocab_size=1, max_position_embeddings=514)
DEBERTA = dict(
    BASE,
    relative_attention=True,
    position_buckets=256,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type=["p2c", "c2p"],
    position_biased_input=False,
    type_vocab_size=0,
    max_relative_positions=-1,
    pooler_hidden_size=768,
    problem_type="single_label_classification",
)


@pytest.mark.parametrize(
    ("share", "family", "architecture"),
    [
        (35.01, "distilbert", dict(vocab_size=30522)),
        (21.41, "bert", dict(vocab_size=30522)),
        (30.97, "roberta", dict(ROBERTA, vocab_size=50265)),
        (14.48, "roberta", dict(LARGE, **ROBERTA, vocab_size=50265)),
        (53.34, "deberta-v2", dict(DEBERTA, vocab_size=128_100)),
        (51.62, "bert", dict(vocab_size=119_547)),
        (69.05, "xlm-roberta", dict(ROBERTA, vocab_size=250_002)),
        (45.72, "xlm-roberta", dict(LARGE, **ROBERTA, vocab_size=250_002)),
        (88.95, "xlm-roberta", dict(ROBERTA, vocab_size=901_629)),
        (69.14, "deberta-v2", dict(DEBERTA, vocab_size=251_000)),
    ],
)
def test_embedding_share(share: float, family: str, architecture: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(family, num_labels=2, **architecture)
        )
    embedding = model.get_input_embeddings().weight.numel()
    assert 100 * embedding / sum(p.numel() for p in model.parameters()) == pytest.approx(
        share, abs=5.1e-3
    )
