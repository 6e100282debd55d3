"""Questions answered by a span: windows, the tokens of an answer and back, the best span, and
SQuAD's scores."""

from __future__ import annotations

import itertools

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import ok, write
from samples import check_answers, plugin, run_sample, write_squad
from small import load_made, small_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from leantune import metrics, report
from leantune.api import is_head
from leantune.data import question_answering
from leantune.data.collate import Collate, batches
from leantune.data.load import sample_hash
from leantune.data.question_answering import LONGEST, best_spans, windows
from leantune.errors import BadInput
from leantune.files.text import read_csv
from leantune.metrics import stats
from leantune.metrics.question_answering import exact_match, token_f1
from leantune.models.load import load_tokenizer
from leantune.prediction.ask import Ask
from leantune.prediction.metered_step import longest_batch
from leantune.prediction.one import predict
from leantune.results import build
from leantune.spec import plugins
from leantune.training.evaluation import span_answers


def paired(types: bool = True) -> PreTrainedTokenizerFast:
    """Words and punctuation, framed in pairs as BERT does."""
    made = Tokenizer(
        WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, ".": 4}, unk_token="[UNK]")
    )
    made.pre_tokenizer = Whitespace()
    frame = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    made.post_processor = TemplateProcessing(**frame, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    inputs = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **names)


def rows(context, answer, start, question="which one?"):
    return {"text": [question], "pair": [context], "references": [[answer]], "start": [start]}


# ------------------------------------------------------------------ windows


@st.composite
def examples(draw):
    word = st.text("ab.,é中", min_size=1, max_size=5)
    words = draw(st.lists(word, min_size=1, max_size=60))
    context = draw(st.sampled_from(["", "  "])) + draw(st.sampled_from([" ", "  ", "\n"])).join(
        words
    )
    visible = [i for i, letter in enumerate(context) if not letter.isspace()]
    start, last = sorted((draw(st.sampled_from(visible)), draw(st.sampled_from(visible))))
    return context, start, last + 1, draw(st.lists(word, max_size=30)), draw(st.integers(12, 48))


@settings(max_examples=150, deadline=None)
@given(examples())
def test_an_answer_is_found_again_in_every_window_that_holds_it(example):
    context, start, end, question, length = example
    tokenizer = paired()
    answer = context[start:end]
    made = windows(
        rows(context, answer, start, " ".join(question)), tokenizer, length, located=True
    )
    whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    touched = [place for place in whole if place[1] > start and place[0] < end]
    expected = context[
        touched[0][0] : touched[-1][1]
    ]  # of whole tokens, as an answer may begin within one
    assert answer in expected
    held, covered = 0, set()
    for ids, label, begins, ends in zip(
        *(made[n] for n in ("input_ids", "label", "begins", "ends")), strict=True
    ):
        assert len(ids) <= length
        places = [place for place in zip(begins, ends, strict=True) if place[0] >= 0]
        covered |= set(places)
        inside = places[0][0] <= start and places[-1][1] >= end
        held += inside
        if inside:
            assert context[begins[label[0]] : ends[label[1]]] == expected
        else:
            assert label == (0, 0)
            assert ids[0] == tokenizer.cls_token_id
    assert covered == set(whole)
    assert held or len(touched) > length // 3  # windows share a third of the length


@pytest.mark.parametrize("chunk", [1, 2])  # examples tokenized at once
def test_a_window_has_its_example_and_tells_question_from_context(chunk, monkeypatch):
    monkeypatch.setattr(question_answering, "_CHUNK", chunk)
    first, second = rows("x . y", "y", 4), rows(" ".join(["word"] * 40) + " z", "z", 200, "what ?")
    both = {name: first[name] + second[name] for name in first}
    made = windows(both, paired(), 24, located=False)
    assert made["example"] == [0, *[1] * (len(made["example"]) - 1)]
    assert len(made["example"]) > 3
    assert made["text"][-1] == "what ?"
    assert made["label"][0] == (7, 7)  # [CLS] which one ? [SEP] x . y [SEP]
    assert made["token_type_ids"][0] == [0] * 5 + [1] * 4
    assert made["label"][1:-1] == [(0, 0)] * (len(made["label"]) - 2)
    assert "begins" not in made
    assert "token_type_ids" not in windows(both, paired(types=False), 24, located=False)


def test_a_long_question_leaves_room_for_the_context():
    made = windows(rows("x y z", "z", 4, "why " * 100), paired(), 24, located=True)
    assert made["token_type_ids"][0].count(0) == 1 + 24 // 6 + 1
    assert made["label"] == [(8, 8)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": [1]}, "example 0: 'z' does not start at character 1"),
        ({"references": [[""]]}, "does not start at"),
    ],
)
def test_an_answer_that_is_not_in_its_place_is_refused(change, message):
    with pytest.raises(BadInput, match=message):
        windows({**rows("x y z", "z", 4), **change}, paired(), 24, located=True)


def test_what_no_window_can_be_made_of_is_refused():
    with pytest.raises(BadInput, match="windows of 12 tokens or more; length is 11"):
        windows(rows("x y z", "z", 4), paired(), 11, located=True)
    tokenizer = paired()
    tokenizer.cls_token = None
    with pytest.raises(BadInput, match="class token"):
        windows(rows("x y z", "z", 4), tokenizer, 24, located=True)


def test_a_batch_of_windows():
    some = [
        {"input_ids": [2, 5, 3], "label": [1, 2], "token_type_ids": [0, 1, 1]},
        {"input_ids": [2], "label": [0, 0], "token_type_ids": [0]},
    ]
    batch = Collate("span", 0)(some)
    assert batch["start_positions"].tolist() == [1, 0]
    assert batch["end_positions"].tolist() == [2, 0]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert set(longest_batch(small_model("bert", "span"), "span", 2, 3, True)) == set(batch)


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize("seed", range(5))
def test_the_best_span_is_the_best_of_all_that_are_allowed(seed):
    generator = torch.Generator().manual_seed(seed)
    starts, ends = torch.randn(2, 3, 50, generator=generator)
    inside = torch.rand(3, 50, generator=generator) < 0.7
    for row, (score, begin, end) in enumerate(best_spans(starts, ends, inside)):
        allowed = [
            (b, e)
            for b, e in itertools.product(range(50), repeat=2)
            if b <= e < b + LONGEST and inside[row, b] and inside[row, e]
        ]
        best = max(allowed, key=lambda span: starts[row, span[0]] + ends[row, span[1]])
        assert (begin, end) == best
        assert score == pytest.approx(float(starts[row, best[0]] + ends[row, best[1]]))


def test_a_span_is_thirty_tokens_at_most():
    starts, ends = torch.zeros(2, 1, 60)
    starts[0, 5], ends[0, 34], ends[0, 35] = 9.0, 4.0, 8.0
    assert best_spans(starts, ends, torch.ones(1, 60, dtype=torch.bool))[0][1:] == (5, 34)


class Scripted(torch.nn.Module):
    """Scores a token by its id, as a start and as an end; 0 where nothing is said."""

    def __init__(self, starts, ends):
        super().__init__()
        self.scores = starts, ends

    def forward(self, input_ids, attention_mask):
        made = [
            torch.tensor([[told.get(int(i), 0.0) for i in row] for row in input_ids])
            for told in self.scores
        ]
        return type("Output", (), {"start_logits": made[0], "end_logits": made[1]})


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_answer_is_the_best_over_all_windows_of_an_example(size):
    # Token 0 is outside the context and scores highest. Of the first example the second window is
    # best, of the last the first, with an answer of two tokens.
    split = Dataset.from_dict(
        {
            "example": [0, 0, 1, 2, 2],
            "pair": ["one two three", "one two three", "four five", "six seven", "six seven"],
            "references": [["two"], ["two"], ["four", "five"], ["seven"], ["seven"]],
            "input_ids": [[0, 1, 2], [0, 2, 3], [0, 4, 5], [0, 6, 7], [0, 7]],
            "begins": [[-1, 0, 4], [-1, 4, 8], [-1, 0, 5], [-1, 0, 4], [-1, 4]],
            "ends": [[-1, 3, 7], [-1, 7, 13], [-1, 4, 9], [-1, 3, 9], [-1, 9]],
            "label": [[1, 1], [0, 0], [2, 2], [2, 2], [1, 1]],
        }
    )
    alike = {0: 100.0, 1: 1.0, 2: -5.0, 3: 2.0, 4: 3.0, 5: 3.5}
    model = Scripted({**alike, 6: 4.0}, {**alike, 7: 4.0})
    found = span_answers(
        model, split, batches(split, Collate("span", 9), size), "cpu", "fp32", None
    )
    assert found == (["three", "five", "six seven"], [["two"], ["four", "five"], ["seven"]])


def test_only_the_span_scores_are_the_head():
    for family in ("bert", "roberta", "deberta-v2"):
        model = small_model(family, "span")
        assert {name for name, p in model.named_parameters() if is_head(p)} == {
            "qa_outputs.weight",
            "qa_outputs.bias",
        }
    counts = predict(Ask("minilm-l6", "head", task="squad", batch=2, length=16))["parameters"]
    assert (counts["trainable"], counts["head"]) == (0, 2 * 384 + 2)


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize(
    ("prediction", "references", "match", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("in Paris, France", ["Paris"], 0.0, 0.5),
        ("Paris", ["London", "the city of Paris"], 0.0, 0.5),
        ("x x y", ["x y y"], 0.0, 2 / 3),
        ("y x", ["x y"], 0.0, 1.0),
        ("the theatre", ["theatre"], 1.0, 1.0),
        ("a.m.", ["am"], 1.0, 1.0),
        ("U.S.", ["us", "America"], 1.0, 1.0),
        ("", ["x"], 0.0, 0.0),
        ("1,000", ["1000"], 1.0, 1.0),
    ],
)
def test_scores_by_squads_rules(prediction, references, match, f1):
    assert exact_match(prediction, references) == match
    assert token_f1(prediction, references) == pytest.approx(f1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["x", "y", "z", "Theatre"]), max_size=6),
    st.text("xyz a.", max_size=12),
)
def test_case_articles_punctuation_and_space_count_nothing(kept, other):
    dressed = ", THE  ".join(word.upper() + "!" for word in kept) + " a."
    for score in (exact_match, token_f1):
        assert score(dressed, [other]) == score(" ".join(kept), [other]) == score(other, [dressed])
        assert score(dressed, [other, " ".join(kept)]) == 1.0
    assert exact_match(dressed, [other]) <= token_f1(dressed, [other]) <= 1.0


def test_a_record_keeps_each_examples_score_and_their_mean_is_the_tasks():
    predictions, references = (
        ["The Eiffel Tower", "in Paris", "x"],
        [["eiffel tower"], ["Paris", "London"], ["y"]],
    )
    values = metrics.compute("question_answering", predictions, references)
    assert values == {
        "token_f1": pytest.approx((1 + 2 / 3) / 3),
        "exact_match": pytest.approx(1 / 3),
    }
    for score, value in values.items():
        kept, ones = metrics.kept("question_answering", score, predictions, references)
        assert ones == [1.0] * 3
        assert stats.weighted_score(score, kept, ones)(torch.ones(1, 3).numpy())[
            0
        ] == pytest.approx(value)
    with pytest.raises(
        BadInput, match="cannot be scored by 'bleu' of question_answering; choose token_f1, exact"
    ):
        metrics.kept("question_answering", "bleu", predictions, references)
    assert metrics.kept("regression", "pearson", [0.5], [1.0]) == ([0.5], [1.0])


def test_scores_of_texts_are_ranked_by_their_examples_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "leantune.results.load.is_stale", lambda record: False
    )  # the hashes of these records belong to no file
    for task, metric, best in (("squad", "token_f1", 1.0), ("e2e", "sentence_bleu", 100.0)):
        for method, right in (("full", 36), ("lora", 35), ("head", 4)):
            scores = [best] * right + [0.0] * (40 - right)
            more = {"task": task, "metric": metric, "predictions": scores, "references": [1.0] * 40}
            write(tmp_path, ok(method, quality=sum(scores) / 40, **more))
    build.write_tables(tmp_path)
    rows = read_csv(tmp_path / "tables" / "leaderboard.csv")
    found = {(row["quality_metric"], row["method"]): int(row["tier"]) for row in rows}
    assert found == {
        (metric, method): tier
        for metric in ("token_f1", "sentence_bleu")
        for method, tier in (("full", 1), ("lora", 1), ("head", 2))
    }
    page = report.write_report(tmp_path, tmp_path / "report").read_text()
    assert "token_f1" in page
    assert "sentence_bleu" in page


# ------------------------------------------------------------------ the task

SIZES = {"train": 45, "validation": 9, "test": 12, "seed": 0}


@pytest.fixture
def squad(tmp_path, monkeypatch):
    write_squad(tmp_path / "rajpurkar" / "squad")
    monkeypatch.setenv("LEANTUNE_MIRROR", str(tmp_path))
    task = plugins.get("tasks", "squad")
    return {**task.raw, "folder": task.folder, "splits": SIZES}


def test_squad_is_read_from_a_mirror(squad):
    tokenizer = load_tokenizer(plugins.get("models", "minilm-l6").raw)
    data = load_made(squad, tokenizer, 40)
    counts = [len(set(split["example"])) for split in (data.train, data.validation, data.test)]
    assert counts == [45, 9, 12]
    assert len(data.train) > 45  # windows
    assert not set(data.train["pair"]) & set(
        data.validation["pair"]
    )  # a paragraph is in one split only
    assert {len(references) for references in data.test["references"]} == {3}
    for row in data.test:
        (begin, end), text = row["label"], row["references"][0]
        if (begin, end) != (0, 0):
            assert row["pair"][row["begins"][begin] : row["ends"][end]] == text
    batch = data.collate(data.train.select(range(4)).to_list())
    assert batch["token_type_ids"].max() == 1
    assert sample_hash(data) != sample_hash(
        load_made({**squad, "splits": {**SIZES, "seed": 1}}, tokenizer, 40)
    )


def test_a_mirror_that_is_not_complete_is_named(squad, tmp_path, monkeypatch):
    (file,) = (tmp_path / "rajpurkar" / "squad" / "plain_text").glob("validation-*")
    file.write_bytes(b"not parquet")
    with pytest.raises(BadInput, match="cannot be read"):
        load_made(squad, None, 40)
    file.unlink()
    with pytest.raises(BadInput, match=r"validation-\S+\.parquet is locked and missing"):
        load_made(squad, None, 40)
    monkeypatch.setenv("LEANTUNE_SOURCES_LOCK", str(tmp_path / "another.lock"))
    with pytest.raises(BadInput, match="lacks files of config 'plain_text' \\(split 'validation'"):
        load_made(squad, None, 40)


@pytest.mark.process
def test_a_cell_of_squad(tmp_path, host):
    root = plugin(
        tmp_path / "plugins",
        "squad",
        "kind: span\nsplits: {train: 45, validation: 9, test: 12}\n"
        "training: {steps: 4, batch: 8, length: 40, evaluations: 1}\n"
        "metric: {module: question_answering, score: token_f1, higher_is_better: true}",
    )
    row = run_sample(
        host, root, tmp_path / "row.json", "vocab_pruning+lora", "minilm-l6", "squad-sample"
    )
    check_answers(row, 12, {"token_f1", "exact_match"})
    assert row["parameters"]["head"] == 2 * 384 + 2
