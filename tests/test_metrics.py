"""Scores against values worked out by hand."""

import math
import os
import subprocess
import sys

import pytest

from leantune.errors import BadInput
from leantune.metrics import compute


def test_classification():
    # class 0: precision 1, recall 1/2, F1 2/3; class 1: 1/2, 1, 2/3; class 2: never right, 0;
    # accuracy 2/4
    scores = compute("classification", [0, 1, 1, 2], [0, 0, 1, 3])
    assert scores["accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)


def test_binary_classification():
    # class 1: 2 hits, 3 predicted, 4 there: F1 4/7; of 7, 4 right; Matthews (2*2 - 1*2) / sqrt(3 *
    # 4 * 3 * 4)
    scores = compute("binary_classification", [1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0, 0])
    assert scores == pytest.approx({"accuracy": 4 / 7, "binary_f1": 4 / 7, "matthews": 2 / 12})
    assert compute("binary_classification", [0, 0], [0, 1]) == {
        "accuracy": 0.5,
        "binary_f1": 0.0,
        "matthews": 0.0,
    }


def test_regression():
    scores = compute("regression", [1.0, 2.0, 9.0], [1.0, 2.0, 3.0])
    # deviations (-3, -2, 5) and (-1, 0, 1): 8 / sqrt(38 * 2)
    assert scores["pearson"] == pytest.approx(8 / math.sqrt(76))
    assert scores["spearman"] == pytest.approx(1.0)


@pytest.mark.filterwarnings("error")  # nor is the user told of a constant array
@pytest.mark.parametrize("predictions", [[0.5, 0.5, 0.5], [float("nan"), 1.0, 2.0]])
def test_undefined_correlation_is_none(predictions):
    assert compute("regression", predictions, [1.0, 2.0, 3.0]) == {
        "pearson": None,
        "spearman": None,
    }


def test_language_modelling_weighs_tokens_not_examples():
    scores = compute("language_modelling", [30.0, 2.0], [10, 1])
    assert scores["loss"] == pytest.approx(32 / 11)
    assert scores["perplexity"] == pytest.approx(math.exp(32 / 11))
    assert compute("language_modelling", [1e5], [1])["perplexity"] == math.inf


@pytest.mark.parametrize(
    ("module", "predictions", "message"),
    [
        ("accuracy", [1], "unknown metric module 'accuracy'"),
        ("regression", [], "at least one"),
        ("regression", [1, 2], "as many"),
    ],
)
def test_bad_input(module, predictions, message):
    with pytest.raises(BadInput, match=message):
        compute(module, predictions, [1])


@pytest.mark.process
def test_nothing_is_written_at_home_and_no_hub_is_asked(tmp_path):
    code = (
        "from leantune.metrics import compute;"
        "print(compute('classification', [1, 0], [1, 1])['accuracy'])"
    )
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))
    }
    environment = {**kept, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0.5"
    assert list(tmp_path.rglob("*")) == []


def test_the_modules_wrap_libraries_and_need_no_files():
    """Labels come as whole numbers or as floats that are whole, as a record keeps them."""
    numbers = compute("classification", [0.0, 1.0, 2.0], [0, 1, 1])
    assert numbers == compute("classification", [0, 1, 2], [0.0, 1.0, 1.0])
    assert set(compute("generation", ["a cat"], [["a cat", "cats"]])) == {"bleu", "sentence_bleu"}
