"""One cache for all predictions: what is kept, what it is kept under, and who takes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from leantune.errors import BadInput, Unsupported
from leantune.files.record import BYTE_KINDS
from leantune.prediction import one, paper_scale
from leantune.prediction.ask import CACHE, Ask, answer, answers
from leantune.results.claims.measures import Predictions
from leantune.spec import plugins
from leantune.spec.config import load_config

ASK = Ask("bert-base", "lora", 8, 128)
FIELDS = ("peak_bytes", "allocated_bytes", "reserved_bytes", "optimizer_state_bytes")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Ask]:
    """What was predicted; nothing is, in truth."""
    found: list[Ask] = []

    def predict(ask: Ask) -> dict[str, Any]:
        found.append(ask)
        if ask.method == "head+came":
            raise Unsupported("no room")
        return {
            **{"model": ask.model, "method": ask.method, **dict.fromkeys(FIELDS, 7)},
            "by_kind": dict.fromkeys(BYTE_KINDS, 1),
            "parameters": {"total": 3, "trainable": 2, "head": 1},
            "fits": one.cards.fits(7),
            "flops_per_step": 5,
        }

    monkeypatch.setattr(one, "predict", predict)
    return found


def test_whatever_may_change_the_answer_changes_the_hash() -> None:
    others = [
        replace(ASK, model="bert-large"),
        replace(ASK, method="lora+came"),
        replace(ASK, batch=4),
        replace(ASK, length=64),
        replace(ASK, dtype="bf16"),
        replace(ASK, head="mlm"),
        replace(ASK, head="pretraining"),
        replace(ASK, task="glue-mrpc"),  # a pair of texts, and autocast
        replace(ASK, task="glue-mrpc", dtype="fp32"),
        replace(ASK, settings={"lora.rank": 4}),
        replace(ASK, training={"accumulate": 2}),
        replace(ASK, training={"checkpointing": True}),
        replace(ASK, budgets=(2**30,)),
    ]
    assert len({ask.hash for ask in [ASK, *others]}) == 1 + len(others)


def test_what_changes_no_answer_changes_no_hash() -> None:
    alike = [
        replace(ASK, dtype="fp32"),
        replace(ASK, head="classification"),
        replace(ASK, training={"warmup": 0.5, "head_lr": 1.0}),
        replace(ASK, batch=None, length=None, training={"batch": 8, "length": 128}),
        replace(ASK, task="glue-sst2", dtype="fp32"),
    ]
    assert {ask.hash for ask in alike} == {ASK.hash}
    came = [Ask("bert-base", stack, 8, 128).hash for stack in ("came+lora", "lora+came")]
    assert came[0] == came[1]
    texts = [Ask("roberta-base", "lora", 8, 128, task=f"glue-{name}") for name in ("sst2", "mrpc")]
    assert texts[0].hash == texts[1].hash  # RoBERTa does not tell two texts apart


def test_a_method_that_says_it_is_disabled_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "methods" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(tmp_path))
    hashes = set()
    for change in ({}, {"disabled": "not yet"}, {"supports": {"families": ["gpt2"]}}):
        spec = {
            "name": "mine",
            "summary": "A method that is LoRA.",
            "slot": "adaptation",
            "base": "lora",
        }
        (folder / "method.yaml").write_text(yaml.safe_dump({**spec, **change}))
        plugins.read.cache_clear()
        hashes.add(replace(ASK, method="mine").hash)
    assert len(hashes) == 3


def test_a_claim_takes_what_the_footprint_predicted(tmp_path: Path, asked: list[Ask]) -> None:
    names = {"models": ["bert-base"], "methods": ["lora"]}
    shape = {"kind": "classification", "batches": [8], "lengths": [128], "dtype": "fp32"}
    cells = [{**names, "tasks": ["sentiment"]}]
    config = load_config({"cells": cells, "footprint": [{**names, **shape}]})
    paper_scale.write(tmp_path, paper_scale.expand(config))
    claimed = Predictions(tmp_path / CACHE)
    found = claimed.predicted("bert-base", "lora", "peak_bytes", batch=8, seq=128)
    assert (found.mean, len(asked)) == (7, 1)


def test_a_stopped_run_goes_on_where_it_was(
    tmp_path: Path, asked: list[Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    four = [replace(ASK, batch=batch) for batch in (1, 2, 3, 4)]
    predict = one.predict

    def stops(ask: Ask) -> dict[str, Any]:
        if ask.batch == 3:
            raise KeyboardInterrupt
        return predict(ask)

    with monkeypatch.context() as patch:
        patch.setattr(one, "predict", stops)
        with pytest.raises(KeyboardInterrupt):
            answers(four, tmp_path)
    assert [row["status"] for row in answers(four, tmp_path)] == ["ok"] * 4
    assert [ask.batch for ask in asked] == [1, 2, 3, 4]


def test_what_cannot_be_predicted_is_not_kept(tmp_path: Path, asked: list[Ask]) -> None:
    ask = replace(ASK, method="head+came")
    assert [answer(ask, tmp_path)["reason"] for _ in range(2)] == ["no room"] * 2
    assert len(asked) == 2
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_no_reason_of_a_method(
    tmp_path: Path, asked: list[Ask]
) -> None:
    (tmp_path / "bert-base").write_text("a file where a folder should be")
    with pytest.raises(BadInput, match="cannot write"):
        answer(ASK, tmp_path)
