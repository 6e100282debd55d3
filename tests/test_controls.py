"""The control methods and the control task: known quantities, found by the meter, the clock and the
score."""

import time

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from small import batch_of, small_context, small_data, small_model, stack

from leantune import metrics
from leantune.api import Data
from leantune.data.load import load_data
from leantune.prediction.metered_step import Probe
from leantune.spec import plugins
from leantune.training.loop import Schedule, train

FIELDS = ("peak_bytes", "persistent_bytes", "allocated_bytes", "reserved_bytes")


def _reading(name, tmp_path, kind="classification"):
    control, ctx = stack(name, kind), small_context(tmp_path, kind=kind, probe=True)
    model, _ = control.attach(small_model(kind=kind), None, ctx)
    return Probe(control, Schedule(steps=10), ctx, (4, 14))(model)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_meter_finds_exactly_64_mib(tmp_path, kind):
    floor, control = _reading("head", tmp_path, kind), _reading("allocate_64mib", tmp_path, kind)
    assert {name: control[name] - floor[name] for name in FIELDS} == dict.fromkeys(FIELDS, 2**26)
    by_kind = {k: control["by_kind"][k] - size for k, size in floor["by_kind"].items()}
    assert by_kind == {**dict.fromkeys(by_kind, 0), "buffers": 2**26}


def test_the_64_mib_are_not_deployed_and_change_no_logit(tmp_path):
    control, ctx, given_data = (
        stack("allocate_64mib"),
        small_context(tmp_path),
        small_data(tmp_path),
    )
    plain = small_model().eval()
    model, _ = control.attach(small_model().eval(), given_data, ctx)
    exported = control.export(model, ctx)
    assert [n for n, _ in exported.named_buffers()] == [n for n, _ in plain.named_buffers()]
    batch = batch_of(given_data)
    assert torch.equal(exported(**batch).logits, plain(**batch).logits)


def test_the_clock_holds_the_sleep_of_every_step_and_the_probe_does_not_sleep(
    tmp_path, monkeypatch
):
    control, ctx, given_data = (
        stack("sleep"),
        small_context(tmp_path, steps=3),
        small_data(tmp_path),
    )
    model, _ = control.attach(small_model(), given_data, ctx)
    steps = (batch_of(given_data, i) for i in range(3))
    done = train(model, control, steps, Schedule(steps=3), ctx)
    assert len(done.step_seconds) == 3
    assert min(done.step_seconds) >= 0.2
    monkeypatch.setattr(
        time, "sleep", lambda seconds: pytest.fail("slept while memory was measured")
    )
    assert _reading("sleep", tmp_path)["peak_bytes"] == _reading("head", tmp_path)["peak_bytes"]


@pytest.mark.parametrize("kind", ["classification", "regression", "causal_lm"])
def test_nothing_is_trained_not_even_the_head(tmp_path, kind):
    family = "gpt2" if kind == "causal_lm" else "bert"
    control, ctx = stack("train_nothing", kind), small_context(tmp_path, family, kind)
    model, before = small_model(family, kind), small_model(family, kind).state_dict()
    model, _ = control.attach(model, small_data(tmp_path, kind), ctx)
    assert not control.trains
    assert not [p for p in model.parameters() if p.requires_grad]
    after = control.export(model, ctx).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def _labelled(kind, train_labels, test_labels):
    splits = [
        Dataset.from_dict({"text": ["x"] * len(y), "label": y})
        for y in (train_labels, [0], test_labels)
    ]
    return Data(kind, *splits)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 0.95))
def test_guesses_have_the_shares_of_the_training_labels(tmp_path_factory, seed, share):
    labels = [int(i < share * 1000) for i in range(1000)]
    ctx = small_context(tmp_path_factory.mktemp("x"), seed=seed)
    control = stack("random").control
    guesses = control.fit_predict(_labelled("classification", labels, [0] * 4000), ctx)
    assert guesses == control.fit_predict(
        _labelled("classification", labels, [1] * 4000), ctx
    )  # sees no test label
    spread = (share * (1 - share) / 4000) ** 0.5
    assert abs(sum(guesses) / 4000 - sum(labels) / 1000) < 6 * spread


def test_another_seed_guesses_otherwise(tmp_path):
    given_data = _labelled("classification", [0, 1] * 50, [0] * 50)
    first, second = (
        stack("random").control.fit_predict(given_data, small_context(tmp_path, seed=s))
        for s in (0, 1)
    )
    assert first != second


def test_regression_guesses_are_the_training_labels_in_another_order(tmp_path):
    labels = [i / 500 for i in range(500)]
    given_data = _labelled("regression", labels, labels)
    guesses = stack("random", "regression").control.fit_predict(
        given_data, small_context(tmp_path, kind="regression")
    )
    assert sorted(guesses) == labels
    assert abs(metrics.compute("regression", guesses, labels)["pearson"]) < 0.15
    longer = _labelled("regression", labels[:3], labels)
    guesses = stack("random", "regression").control.fit_predict(
        longer, small_context(tmp_path, kind="regression")
    )
    assert set(guesses) == set(labels[:3])


def test_a_leaked_label_is_read_by_words_alone(tmp_path):
    task = plugins.get("tasks", "leak")
    loaded = load_data(task, None, 8)
    names = loaded.label_names
    for split in (loaded.train, loaded.test):
        assert all(
            text.split()[0] == names[label]
            for text, label in zip(split["text"], split["label"], strict=True)
        )
    predictions = stack("tfidf").control.fit_predict(loaded, small_context(tmp_path))
    assert predictions == loaded.test["label"]
