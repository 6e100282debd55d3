"""Texts written for a text: what is trained on, greedy decoding whatever the batch, and BLEU."""

from __future__ import annotations

import pytest
import sacrebleu
import torch
from datasets import Dataset
from samples import check_answers, plugin, run_sample, write_e2e
from small import small_context, small_model, words
from small import stack as small_stack

from leantune import metrics
from leantune.api import Data, is_head
from leantune.data.collate import Collate
from leantune.data.generation import encode
from leantune.data.load import load_data
from leantune.errors import BadInput
from leantune.metrics import stats
from leantune.models.load import load_tokenizer
from leantune.spec import plugins
from leantune.spec.cells import resolve_cell
from leantune.training.evaluation import written_answers

SIZES = {"train": 60, "validation": 6, "test": 8, "seed": 0}


def decoder_words():
    """Whole words, nothing put before a text; the end token (2) also pads, as with a decoder."""
    tokenizer = words(60)
    tokenizer.eos_token = "[SEP]"
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


def prompts(count=7):
    texts = [" ".join(f"w{(7 * i + j) % 60}" for j in range(1 + i % 5)) for i in range(count)]
    return {"text": texts, "references": [[f"w{i} w{i + 1}", "w9"] for i in range(count)]}


# ------------------------------------------------------------------ examples and batches


def test_an_example_is_the_prompt_then_the_answer_and_the_end():
    tokenizer = decoder_words()
    rows = {"text": ["w0 w1 w2"], "references": [["w5 w6", "w7"]]}
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    prompt = [4, 5, 6, *line_end]
    made = encode(rows, tokenizer, 16, 4, answered=True)
    assert made["input_ids"] == [[*prompt, 9, 10, 2]]
    assert made["prompt"] == [len(prompt)]
    assert encode(rows, tokenizer, 16, 4, answered=False)["input_ids"] == [prompt]
    assert encode(rows, tokenizer, 16, 2, answered=True)["input_ids"] == [
        [*prompt, 9, 10]
    ]  # cut, so it does not end
    assert encode(rows, tokenizer, 6 + len(line_end), 4, answered=True)["input_ids"] == [
        [4, 5, *line_end, 9, 10, 2]
    ]


def test_the_special_tokens_before_a_text_come_first():
    made = encode({"text": ["w0"], "references": [["w5"]]}, with_begin(), 16, 4, answered=True)
    assert made["input_ids"][0][:2] == [1, 4]
    assert made["input_ids"][0][-2:] == [9, 2]
    assert made["input_ids"][0].count(1) == 1


def with_begin():
    tokenizer = words(60)
    tokenizer.eos_token = "[SEP]"
    return tokenizer


@pytest.mark.parametrize(("length", "most"), [(8, 8), (4, 4)])
def test_without_room_for_a_prompt_it_is_refused(length, most):
    with pytest.raises(BadInput, match="leaves no room for a prompt before max_new_tokens"):
        encode(prompts(1), decoder_words(), length, most, answered=True)


def test_the_loss_is_on_the_answer_alone():
    tokenizer = decoder_words()
    made = encode(
        {"text": ["w0", "w0 w1"], "references": [["w5"], ["w6 w7"]]},
        tokenizer,
        16,
        6,
        answered=True,
    )
    examples = [
        {"input_ids": i, "prompt": p}
        for i, p in zip(made["input_ids"], made["prompt"], strict=True)
    ]
    batch = Collate.of("generation", tokenizer)(examples)
    told = [row[row != -100].tolist() for row in batch["labels"]]
    assert told == [[9, 2], [10, 11, 2]]  # the end token too, though it also pads
    assert (batch["labels"][0, -2:] == -100).all()
    assert torch.equal(
        batch["input_ids"][batch["labels"] != -100], batch["labels"][batch["labels"] != -100]
    )


# ------------------------------------------------------------------ writing


def greedy(model, tokenizer, ids, most):
    """One prompt at a time, the whole of it read again for each token."""
    ids, begun = list(ids), len(ids)
    for _ in range(most):
        with torch.no_grad():
            ids.append(
                int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            )
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[begun:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_what_is_written_does_not_depend_on_the_batch(family, batch):
    tokenizer = decoder_words()
    model = small_model(
        family, "generation", initializer_range=0.5
    ).eval()  # so that the prompts lead apart
    rows = Dataset.from_dict({**prompts(), **encode(prompts(), tokenizer, 16, 8, answered=True)})
    found, references = written_answers(model, rows, tokenizer, 8, batch, "cpu", "fp32", None)
    expected = [
        greedy(model, tokenizer, i[:p], 8)
        for i, p in zip(rows["input_ids"], rows["prompt"], strict=True)
    ]
    assert found == expected
    assert len(set(found)) > 4
    assert references == prompts()["references"]


def test_a_text_ends_before_the_end_token():
    tokenizer = decoder_words()
    model = small_model("gpt2", "generation").eval()
    rows = Dataset.from_dict({**prompts(3), **encode(prompts(3), tokenizer, 16, 8, answered=False)})
    model.lm_head = torch.nn.Linear(16, 64)
    model.lm_head.bias.data.fill_(-100.0)[2] = 100.0
    assert written_answers(model, rows, tokenizer, 8, 3, "cpu", "fp32", None)[0] == ["", "", ""]


def test_a_pruned_vocabulary_is_whole_again_where_texts_are_written(tmp_path):
    tokenizer = decoder_words()
    model = small_model("gpt2", "generation", initializer_range=0.5).eval()
    encoded = {a: encode(prompts(), tokenizer, 16, 8, answered=a) for a in (True, False)}
    splits = [Dataset.from_dict({**prompts(), **encoded[a]}) for a in (True, True, False)]
    before = written_answers(model, splits[2], tokenizer, 8, 4, "cpu", "fp32", None)
    pruning = small_stack("vocab_pruning", "generation")
    ctx = small_context(tmp_path, "gpt2", "generation")
    data = Data(
        "generation", *splits, tokenizer=tokenizer, collate=Collate.of("generation", tokenizer)
    )
    pruned, _ = pruning.attach(model, data, ctx)
    kept = len(pruned.get_input_embeddings().weight)
    assert kept < 64
    assert ctx.details["vocabulary"]["kept"] == kept
    batch = data.collate([data.train[i] for i in range(4)])
    assert pruned.train()(**batch).loss.isfinite()
    assert (
        written_answers(
            pruning.export(pruned, ctx), splits[2], tokenizer, 8, 4, "cpu", "fp32", None
        )
        == before
    )


def test_a_decoder_that_writes_has_no_head():
    assert not any(
        is_head(p)
        for family in ("llama", "gpt2")
        for p in small_model(family, "generation").parameters()
    )


# ------------------------------------------------------------------ scores


def test_bleu_is_sacrebleus_with_any_number_of_references():
    texts = ["the cat sat on the mat", "a dog", "there is nothing here to see"]
    right = [
        ["the cat sat on a mat", "a cat was on the mat"],
        ["a dog barks"],
        ["nothing to see here", "x", "y z"],
    ]
    values = metrics.compute("generation", texts, right)
    padded = [[r[i] if i < len(r) else None for r in right] for i in range(3)]
    assert values["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, padded).score)
    each = [sacrebleu.sentence_bleu(text, r).score for text, r in zip(texts, right, strict=True)]
    assert values["sentence_bleu"] == pytest.approx(sum(each) / 3)
    kept, ones = metrics.kept("generation", "sentence_bleu", texts, right)
    assert kept == pytest.approx(each)
    assert stats.weighted_score("sentence_bleu", kept, ones)(torch.ones(1, 3).numpy())[
        0
    ] == pytest.approx(sum(each) / 3)
    assert metrics.compute("generation", ["x", ""], [["x"], ["y"]])[
        "sentence_bleu"
    ] == pytest.approx(50.0)
    with pytest.raises(BadInput, match="choose sentence_bleu"):
        metrics.kept("generation", "bleu", texts, right)


# ------------------------------------------------------------------ the task


def test_e2e_is_read_from_a_mirror(tmp_path, monkeypatch):
    write_e2e(tmp_path / "tuetschek" / "e2e_nlg")
    monkeypatch.setenv("LEANTUNE_MIRROR", str(tmp_path))
    task = plugins.get("tasks", "e2e")
    tokenizer = load_tokenizer(plugins.get("models", "mini-gpt").raw)
    data = load_data(task, tokenizer, 192, SIZES)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [60, 6, 8]
    assert len(set(data.test["text"])) == 8
    for split in ("train", "validation", "test"):  # each from its own file
        assert all(f"number[{split} " in text for text in getattr(data, split)["text"])
    assert {len(references) for references in data.train["references"]} == {1}
    assert {len(references) for references in data.test["references"]} > {1}
    assert len(set(data.train["text"])) < 60  # several descriptions of a meaning, each an example
    row = data.train[0]
    assert tokenizer.decode(row["input_ids"][: row["prompt"]]) == row["text"] + "\n"
    assert (
        tokenizer.decode(row["input_ids"][row["prompt"] :])
        == row["references"][0] + tokenizer.eos_token
    )
    assert all(
        len(i) == p for i, p in zip(data.test["input_ids"], data.test["prompt"], strict=True)
    )


def test_the_most_tokens_of_a_text_are_a_setting_of_these_tasks_alone():
    assert (
        resolve_cell("gpt2", "e2e", "lora", overrides={"task.max_new_tokens": 8}).training[
            "max_new_tokens"
        ]
        == 8
    )
    with pytest.raises(BadInput, match="max_new_tokens"):
        resolve_cell("gpt2", "dialogue", "lora", overrides={"task.max_new_tokens": 8})
    rate = resolve_cell("gpt2", "e2e", "lora").parts[0].params["lr"]
    assert (
        rate == resolve_cell("gpt2", "dialogue", "lora").parts[0].params["lr"]
    )  # a decoder is trained alike


@pytest.mark.process
def test_a_cell_of_e2e(tmp_path, host):
    root = plugin(
        tmp_path / "plugins",
        "e2e",
        "kind: generation\nsplits: {train: 60, validation: 6, test: 9}\n"
        "training: {steps: 4, batch: 4, length: 64, max_new_tokens: 12, evaluations: 1}\n"
        "metric: {module: generation, score: sentence_bleu, higher_is_better: true}",
    )
    row = run_sample(
        host, root, tmp_path / "row.json", "vocab_pruning+full", "mini-gpt", "e2e-sample"
    )
    check_answers(row, 9, {"bleu", "sentence_bleu"})
    assert row["size"]["deployed_parameters"] == 1088256
