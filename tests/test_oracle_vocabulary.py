"""Vocabulary pruning against the package transformer-smaller-training-vocab 0.4.2: `make
oracle-test`.

It needs transformers 4. The authors' own code is no package: each row of the specification's table
shows what this package does there, and that ours does better, or the same where the package does
well.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from oracle_env import ask
from test_vocab_pruning import FULL, HIDDEN, batch, data, make, prune, rows
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from leantune.api import Data
from leantune.data.load import load_data
from leantune.errors import BadInput
from leantune.models.load import load_tokenizer
from leantune.spec import plugins

pytestmark = pytest.mark.oracle_env
SPECIAL = {"pad_token": "w00", "unk_token": "w03"}


def theirs(
    what: str, model: Any, names: Any, folder: Path, texts: list[str], **question: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The package's answer about this model, its tokenizer and these texts."""
    model.save_pretrained(folder / "model")
    names.backend_tokenizer.save(str(folder / "tokenizer.json"))
    special = {name: str(token) for name, token in names.special_tokens_map.items()}
    return ask(
        "smaller_vocab",
        folder,
        what=what,
        auto=type(model).__name__,
        special=special,
        texts=texts,
        **question,
    )


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One word per id, of one length: a special token is found inside longer words too."""
    backend = Tokenizer(WordLevel({f"w{i:02d}": i for i in range(FULL)}, unk_token="w03"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def words(ids: list[int]) -> str:
    return " ".join(f"w{i:02d}" for i in ids)


def texts_of(task: Data) -> list[str]:
    """The toy task as texts, for its word-level tokenizer."""
    return [
        words(ids)
        for split in (task.train, task.validation, task.test)
        for ids in split["input_ids"]
    ]


def kept(model: Any) -> Tensor:
    return torch.from_numpy(model.get_input_embeddings().stores["weight"].vocabulary.keep)


# ------------------------------------------------------------------ the same method


def test_real_texts_and_weights_from_counting_to_the_whole_embedding(
    minilm: Any, tmp_path: Path
) -> None:
    """Kept set, reduced matrix, training logits under dropout, and the whole matrix afterwards."""
    names = load_tokenizer(plugins.get("models", "minilm-l6").raw)
    task = plugins.get("tasks", "sentiment")
    found = load_data(task, names, 512)
    texts = [
        text for split in (found.train, found.validation, found.test) for text in split["text"]
    ]
    whole = minilm.get_input_embeddings().weight.detach().clone()
    batches = [found.train.select(range(8 * step, 8 * step + 8)) for step in range(5)]
    answer, _ = theirs(
        "train",
        minilm,
        names,
        tmp_path,
        texts,
        lr=1e-3,
        batches=[[list(b["text"]), list(b["label"])] for b in batches],
    )

    pruned, method, ctx = prune(minilm, tmp_path, task=found)
    keep = kept(pruned)
    assert torch.equal(keep, answer["kept"])
    assert 5000 < len(keep) < 15_000
    assert torch.equal(pruned.get_input_embeddings().weight.detach(), answer["reduced"])

    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-3, weight_decay=0.0)
    pruned.train()
    assert found.collate is not None
    for step, examples in enumerate(batches):  # ragged: every batch has a length of its own
        inputs = found.collate(list(examples))
        assert torch.equal(torch.searchsorted(keep, inputs["input_ids"]), answer[f"ids{step}"])
        torch.manual_seed(step)
        result = pruned(**inputs)
        torch.testing.assert_close(
            result.logits.detach(), answer[f"logits{step}"], rtol=1e-4, atol=1e-4
        )
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len({answer[f"ids{step}"].shape[1] for step in range(5)}) > 1

    exported = method.export(pruned, ctx).eval()
    after = exported.get_input_embeddings().weight.detach()
    unused = torch.ones(len(whole), dtype=torch.bool).index_fill(0, keep, False)
    assert torch.equal(after[unused], whole[unused])
    assert torch.equal(answer["whole"][unused], whole[unused])
    assert (after[keep] - whole[keep]).abs().max() > 1e-3
    torch.testing.assert_close(after, answer["whole"], rtol=1e-3, atol=1e-4)
    inputs = found.collate(list(batches[0]))
    assert torch.equal(inputs["input_ids"], answer["ids_after"])
    torch.testing.assert_close(
        exported(**inputs).logits.detach(), answer["logits_after"], rtol=1e-3, atol=1e-3
    )


def test_named_points_are_the_packages_usage_table(tmp_path: Path) -> None:
    _, about = ask("smaller_vocab", tmp_path, what="usage")
    assert about["version"] == "0.4.2"
    row = re.compile(
        r"\[(bert-base-cased|roberta-base|xlm-roberta-base)\][^|]*\| (\w+) \| +([\d.]+)% \|"
    )
    families = {
        "bert-base-cased": "bert",
        "roberta-base": "roberta",
        "xlm-roberta-base": "xlm-roberta",
    }
    table: dict[str, dict[str, float]] = {}
    for model, task, pruned in row.findall(about["description"]):
        table.setdefault(task, {})[families[model]] = round(1 - float(pruned) / 100, 4)
    points = plugins.get("methods", "vocab_pruning").spec.points
    assert len(points) == 8
    for name, point in points.items():
        shares = dict(table[name])
        if name == "mrpc":
            assert (
                shares.pop("xlm-roberta") == table["stsb"]["xlm-roberta"]
            )  # doubtful: the number of another row
        assert point["used_share"] == shares


# ------------------------------------------------------------------ the table, row by row


def test_row_pad_above_an_unused_id(tmp_path: Path) -> None:
    """GPT-2 classifies at the last token before padding; the package leaves the pad id of the
    config as it was."""
    model, names = make("gpt2").eval(), tokenizer(pad_token="w91", unk_token="w03")
    task = data(tokenizer=names)
    inputs = batch(model, 0, labels=False)
    chosen = [words(ids) for ids in rows(0)[:4]]
    answer, facts = theirs("padded_logits", model, names, tmp_path, texts_of(task), batch=chosen)
    assert facts["error"] is None
    assert facts["pad"] == 91 > facts["rows"]
    torch.testing.assert_close(answer["before"], model(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert (
        answer["after"] - answer["before"]
    ).abs().max() > 1e-3  # another token's scores, and no error

    pruned, *_ = prune(model, tmp_path, task=task)
    torch.testing.assert_close(pruned(**inputs).logits, answer["before"], rtol=1e-4, atol=1e-5)


def test_row_ragged_batches(tmp_path: Path) -> None:
    """The package takes them as well, since it counts texts: both give the logits of the whole
    model."""
    model, names = make("bert").eval(), tokenizer(**SPECIAL)
    task = data(tokenizer=names)
    for ids in (rows(0)[:4], rows(1)[:2]):
        chosen = [words(i) for i in ids]
        answer, _ = theirs("padded_logits", model, names, tmp_path, texts_of(task), batch=chosen)
        torch.testing.assert_close(answer["after"], answer["before"], rtol=1e-4, atol=1e-5)
        width = max(map(len, ids))
        inputs = {
            "input_ids": torch.tensor([i + [0] * (width - len(i)) for i in ids]),
            "attention_mask": torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in ids]),
        }
        pruned, *_ = prune(make("bert").eval(), tmp_path, task=task)
        torch.testing.assert_close(pruned(**inputs).logits, answer["before"], rtol=1e-4, atol=1e-5)


def test_row_unseen_token_in_wordpiece(minilm: Any, tmp_path: Path) -> None:
    """With a reduced vocabulary the word is cut into other pieces, and nothing says so; ours names
    the token."""
    names = load_tokenizer(plugins.get("models", "minilm-l6").raw)
    texts = ["a good film with a good story", "not good at all"]
    _, facts = theirs("unseen", minilm, names, tmp_path, texts, unseen="a good symphony")
    assert facts["before"] == ["a", "good", "symphony"]
    assert facts["after"] != facts["before"]
    assert facts["error"] is None
    assert max(facts["ids"]) < facts["rows"]

    split = Dataset.from_dict({"input_ids": names(texts)["input_ids"]})
    task = Data("classification", split, split, split, tokenizer=names)
    pruned, *_ = prune(minilm, tmp_path, task=task)
    with pytest.raises(BadInput, match="'symphony'"):
        pruned(**names("a good symphony", return_tensors="pt"))


def test_row_unseen_token_in_bpe(tmp_path: Path) -> None:
    """There the reduced tokenizer gives ids that the embedding lacks: an IndexError later."""
    names = _bpe(["low lower lowest new newer newest wide wider widest"])
    model = make("gpt2").eval()
    texts = ["low lower", "new newer low"]
    _, facts = theirs("unseen", model, names, tmp_path, texts, unseen="widest new")
    assert facts["error"] == "IndexError"
    assert max(facts["ids"]) >= facts["rows"]

    split = Dataset.from_dict({"input_ids": names(texts)["input_ids"]})
    pruned, *_ = prune(
        model, tmp_path, task=Data("classification", split, split, split, tokenizer=names)
    )
    with pytest.raises(BadInput, match="does not occur in the data that vocab_pruning counted"):
        pruned(input_ids=torch.tensor([names("widest new")["input_ids"]]))


def _bpe(texts: list[str]) -> Any:
    backend = Tokenizer(BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = BpeTrainer(vocab_size=FULL, special_tokens=["<unk>", "<pad>"], show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")


def test_row_tied_output_embedding(tmp_path: Path) -> None:
    """The package breaks the tie, so parameters go up, and the loss of a language model fails."""
    model, names = make("gpt2", AutoModelForCausalLM), tokenizer(pad_token="w91", unk_token="w03")
    task = data("causal_lm", tokenizer=names)
    before = sum(p.numel() for p in model.parameters())
    _, facts = theirs("tied", model, names, tmp_path, texts_of(task))
    assert facts["tied_before"]
    assert not facts["tied"]
    assert facts["before"] == before
    assert facts["after"] == before + facts["rows"] * HIDDEN
    assert facts["error"] is not None

    pruned, *_ = prune(model, tmp_path, "causal_lm", task)
    weight = pruned.get_input_embeddings().weight
    assert pruned.get_output_embeddings().weight is weight
    assert sum(p.numel() for p in pruned.parameters()) == before - (FULL - len(weight)) * HIDDEN
    ids = torch.tensor(rows(0)[:1])
    assert torch.isfinite(pruned(input_ids=ids, labels=ids).loss)


def test_row_frozen_embedding(tmp_path: Path) -> None:
    """The package keeps it frozen in between and trains it afterwards."""
    model, names = make("bert"), tokenizer(**SPECIAL)
    task = data(tokenizer=names)
    _, facts = theirs("frozen", model, names, tmp_path, texts_of(task))
    assert facts == {"between": False, "after": True}

    model.get_input_embeddings().weight.requires_grad_(False)
    pruned, method, ctx = prune(model, tmp_path, task=task)
    assert not pruned.get_input_embeddings().weight.requires_grad
    assert not method.export(pruned, ctx).get_input_embeddings().weight.requires_grad


def test_row_encoder_decoder(tmp_path: Path) -> None:
    """Targets are not counted by the package: theirs become the unknown token."""
    model, names = make("t5", AutoModelForSeq2SeqLM), tokenizer(**SPECIAL)
    sources, aim = [[5, 6, 7], [8, 9]], [[41, 42], [43, 44]]
    answer, _ = theirs(
        "targets", model, names, tmp_path, [words(s) for s in sources], targets=words(aim[0])
    )
    assert not set(answer["kept"].tolist()) & {41, 42}

    split = Dataset.from_dict({"input_ids": sources, "labels": aim})
    pruned, *_ = prune(
        model, tmp_path, "causal_lm", Data("causal_lm", split, split, split, tokenizer=names)
    )
    assert {5, 9, 41, 44} <= set(kept(pruned).tolist())
    assert torch.isfinite(
        pruned(input_ids=torch.tensor([sources[0]]), labels=torch.tensor([aim[0]])).loss
    )


@pytest.mark.parametrize("told", [False, True])
def test_row_optimizer_built_before_pruning(told: bool, tmp_path: Path) -> None:
    """Not told of the optimizer the package never trains the embedding; told, it drops another
    parameter instead."""
    model, names = make("bert"), tokenizer(**SPECIAL)
    task = data(tokenizer=names)
    _, facts = theirs("stale_optimizer", model, names, tmp_path, texts_of(task), told=told)
    assert facts["error"] is None
    assert facts["stale"]  # the old matrix is still held
    lost = "bert.embeddings.LayerNorm.weight" if told else "bert.embeddings.word_embeddings.weight"
    assert facts["unlisted"] == [lost]
    assert facts["still"] == [lost]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruned, *_ = prune(model, tmp_path, task=task)
    pruned(**batch(model, 0)).loss.backward()
    with pytest.raises(BadInput, match="optimizer was built before"):
        optimizer.step()


def test_row_attributes_after_restoring(tmp_path: Path) -> None:
    """num_embeddings is right in the package too, which makes a new module; the padding id is lost
    for good."""
    model, names = make("bert"), tokenizer(**SPECIAL)
    task = data(tokenizer=names)
    _, facts = theirs("attributes", model, names, tmp_path, texts_of(task))
    pruned, method, ctx = prune(model, tmp_path, task=task)
    embedding = pruned.get_input_embeddings()
    count = len(embedding.weight)
    assert (embedding.num_embeddings, embedding.padding_idx) == (count, 0)
    embedding = method.export(pruned, ctx).get_input_embeddings()
    assert (embedding.num_embeddings, embedding.padding_idx) == (FULL, 0)
    assert facts["seen"][0] == [FULL, 0]
    assert [padding for _, padding in facts["seen"][1:]] == [None, None]
    assert facts["seen"][2][0] == FULL


def test_row_ids_in_the_config(tmp_path: Path) -> None:
    """BART's classifier pools at the last eos: the package leaves that id as it was, and the model
    fails."""
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
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    names = tokenizer(bos_token="w92", pad_token="w93", eos_token="w94", unk_token="w03")
    task, ids = data(tokenizer=names), [[5, 6, 94], [7, 8, 94]]
    answer, facts = theirs(
        "padded_logits", model, names, tmp_path, texts_of(task), batch=[words(i) for i in ids]
    )
    assert facts["eos"] == 94 > facts["rows"]
    assert facts["error"] is not None

    pruned, *_ = prune(model, tmp_path, task=task)
    torch.testing.assert_close(
        pruned(input_ids=torch.tensor(ids)).logits, answer["before"], rtol=1e-4, atol=1e-5
    )
