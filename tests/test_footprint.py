"""The footprint table and grids: what is kept, what is a row, and figures of paper-scale models to
the byte."""

from __future__ import annotations

import csv
import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest

from leantune.cli import parser
from leantune.files.record import BYTE_KINDS
from leantune.models import load as models
from leantune.prediction import cards, one, paper_scale
from leantune.prediction.ask import CACHE, Ask, answer, versions
from leantune.spec import plugins as registry
from leantune.spec.config import load_config
from leantune.spec.stacks import parse_stack

TINY = (
    "{name: %s, summary: A GPT-2 of one layer., family: gpt2, source: {none: true}, "
    "kinds: [causal_lm, classification], traits: [from_scratch], parameters: 1, "
    "architecture: {model_type: gpt2, vocab_size: 512, n_positions: 64, n_embd: 128, n_layer: 1, "
    "n_head: 4, bos_token_id: 0, eos_token_id: 0, pad_token_id: 0}}"
)
METHOD = (
    "name: rank_one\nsummary: LoRA of rank one under another name.\nslot: adaptation\nbase: lora\n"
    'points: {two: {rank: 2}}\nsources: {two: "a table, of this test"}\nparams: {rank: 1}\n'
)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models that predict fast, and a method whose files the test may change."""
    folder = tmp_path / "plugins"
    (folder / "models").mkdir(parents=True)
    (folder / "methods" / "rank_one").mkdir(parents=True)
    for name in ("tiny-a", "tiny-b"):
        (folder / "models" / f"{name}.yaml").write_text(TINY % name)
    (folder / "methods" / "rank_one" / "method.yaml").write_text(METHOD)
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(folder))
    return folder


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "tables" / "footprint.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def config(folder: Path, *methods: str, models: tuple[str, ...] = ("tiny-a",), **more: Any) -> Path:
    block = {"kind": "causal_lm", "batches": [2], "lengths": [16], "dtype": "fp32", **more}
    content = {
        "output": str(folder / "out"),
        "cells": [{"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["full"]}],
        "footprint": [{"models": list(models), "methods": list(methods), **block}],
    }
    file = folder / "config.json"
    file.write_text(json.dumps(content))
    return file


def make(folder: Path, *methods: str, **more: Any) -> list[dict[str, str]]:
    assert parser.main(["footprint", "--config", str(config(folder, *methods, **more))]) == 0
    return table_of(folder / "out")


# ------------------------------------------------------------------ the table


def test_a_row_holds_the_prediction_its_source_and_what_made_it(
    plugins: Path, tmp_path: Path
) -> None:
    full, named, head = make(tmp_path, "full", "rank_one@two+came", "head")
    expected = one.predict(Ask("tiny-a", "rank_one@two+came", batch=2, length=16))
    assert {
        k: named[k]
        for k in ("model", "method", "point", "kind", "batch", "seq", "dtype", "status", "path")
    } == {
        "model": "tiny-a",
        "method": "rank_one@two+came",
        "point": "two",
        "kind": "causal_lm",
        "batch": "2",
        "seq": "16",
        "dtype": "fp32",
        "status": "ok",
        "path": expected["path"],
    }
    for name in (
        "peak_bytes",
        "allocated_bytes",
        "reserved_bytes",
        "optimizer_state_bytes",
        "flops_per_step",
    ):
        assert int(named[name]) == expected[name], name
    assert (
        int(named["trainable_parameters"]) == 2 * (128 + 384) == expected["parameters"]["trainable"]
    )
    assert sum(int(named[f"{kind}_bytes"]) for kind in BYTE_KINDS) == int(named["peak_bytes"])
    assert named["smallest_card"] == "8GB"
    assert (named["point_source"], full["point_source"]) == ("a table, of this test", "")
    assert {name: named[name] for name in ("measurement", "torch", "transformers")} == {
        k: str(v) for k, v in versions().items()
    }
    assert (head["status"], head["peak_bytes"]) == ("unsupported", "")
    assert "supports tasks classification, regression, span; this is causal_lm" in head["reason"]


def test_the_same_predictions_are_the_same_bytes(plugins: Path, tmp_path: Path) -> None:
    make(tmp_path, "full", "head")
    asks = paper_scale.expand(load_config(tmp_path / "config.json"))
    made = [answer(ask) for ask in asks]
    again = [answer(ask, tmp_path / "out" / CACHE) for ask in asks]
    texts = {paper_scale.table(asks, rows) for rows in (made, again)}
    assert texts == {(tmp_path / "out" / "tables" / "footprint.csv").read_text()}
    assert next(csv.reader(io.StringIO(texts.pop()))) == paper_scale.COLUMNS


def test_only_what_changed_is_predicted_again(
    plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = one.predict

    def noted(ask: Ask) -> dict[str, Any]:
        asked.append(f"{ask.model} {ask.method}")
        return real(ask)

    monkeypatch.setattr(one, "predict", noted)
    first = make(tmp_path, "full", "rank_one", models=("tiny-a", "tiny-b"))
    assert len(asked) == 4
    assert make(tmp_path, "full", "rank_one", models=("tiny-a", "tiny-b")) == first
    assert len(asked) == 4

    del asked[:]
    (kept,) = (tmp_path / "out" / CACHE / "tiny-a" / "full").glob("*.json")
    kept.write_text("{")
    assert make(tmp_path, "full", "rank_one", models=("tiny-a", "tiny-b")) == first
    assert asked == ["tiny-a full"]

    del asked[:]
    file = plugins / "methods" / "rank_one" / "method.yaml"
    file.write_text(METHOD.replace("rank: 1", "rank: 4"))
    registry.read.cache_clear()
    again = make(tmp_path, "full", "rank_one", models=("tiny-a", "tiny-b"))
    assert asked == ["tiny-a rank_one", "tiny-b rank_one"]
    counts = [
        [int(row["trainable_parameters"]) for row in rows if row["method"] == "rank_one"]
        for rows in (first, again)
    ]
    assert counts[1] == [4 * n for n in counts[0]]


def test_progress_is_a_line_for_each_row(
    plugins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, "full", "head")
    lines = [line for line in capsys.readouterr().err.splitlines() if " of 2: " in line]
    assert lines[0].startswith("1 of 2: tiny-a full: ")
    assert lines[1].startswith("2 of 2: tiny-a head: unsupported, 0 s left")


def test_published_rows_are_replaced_by_their_key_and_others_stay(
    plugins: Path, tmp_path: Path
) -> None:
    make(tmp_path, "full", "head")
    paper_scale.publish(tmp_path / "out", tmp_path / "results")
    first = table_of(tmp_path / "results")
    assert first == table_of(tmp_path / "out")
    make(tmp_path, "came", "full", batches=[2, 4])
    file = tmp_path / "out" / "tables" / "footprint.csv"
    file.write_text(
        file.read_text().replace(",forward,", ",elsewhere,").replace(",backward,", ",elsewhere,")
    )
    paper_scale.publish(tmp_path / "out", tmp_path / "results")
    rows = {(row["method"], row["batch"]): row for row in table_of(tmp_path / "results")}
    assert list(rows) == [("full", "2"), ("head", "2"), ("came", "2"), ("came", "4"), ("full", "4")]
    assert rows["head", "2"] == first[1]
    assert rows["full", "2"]["peak_phase"] == "elsewhere"
    paper_scale.publish(tmp_path / "nothing", tmp_path / "results")  # a run without a footprint
    assert len(table_of(tmp_path / "results")) == 5


def test_a_source_belongs_to_a_point(
    plugins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plugins / "methods" / "rank_one" / "method.yaml").write_text(
        METHOD.replace("sources: {two", "sources: {three")
    )
    registry.read.cache_clear()
    assert parser.main(["footprint", "--config", str(config(tmp_path, "rank_one"))]) == 2
    assert "'three', which is none of its points" in capsys.readouterr().err


def test_every_point_of_the_shipped_tables_names_its_source() -> None:
    folder = registry.roots()[0] / "config"
    asks = [
        ask
        for name in ("config", "full", "smoke")
        for ask in paper_scale.expand(load_config(folder / f"{name}.yaml"))
    ]
    assert all(part.source for ask in asks for part in ask.parts if part.point)
    assert parse_stack("softlms@stage2", "classification")[0].source


def test_the_full_table_is_twelve_stacks_on_eleven_models() -> None:
    asks = paper_scale.expand(load_config(registry.roots()[0] / "config" / "full.yaml"))
    pairs = {(ask.model, ask.method) for ask in asks}
    assert len(asks) == len(pairs) == 132
    assert len({model for model, _ in pairs}) == 11


@pytest.mark.process
def test_the_largest_batch_is_searched_for_the_named_stacks_alone(
    plugins: Path, tmp_path: Path
) -> None:
    full, lora = make(tmp_path, "full", "lora", largest_batch=["lora"])
    assert {full[f"largest_batch_{size}gib"] for size in paper_scale.BUDGETS_GIB} == {""}
    words = {"length": 16, "head": "causal-lm", "dtype": "fp32"}
    for size in paper_scale.BUDGETS_GIB:
        found = int(lora[f"largest_batch_{size}gib"])
        fits, larger = (
            one.predict(Ask("tiny-a", "lora", batch=n, **words))["reserved_bytes"]
            for n in (found, found + 1)
        )
        assert fits + cards.CONTEXT_BYTES <= size * 2**30 < larger + cards.CONTEXT_BYTES


def test_no_sequence_fits_into_too_small_a_budget(plugins: Path) -> None:
    words = {"length": 16, "head": "causal-lm", "dtype": "fp32"}
    ask = Ask("tiny-a", "full", **words, budgets=(2**20, 2**30))
    assert one.largest_batches(ask)[0] == 0


def test_a_largest_batch_of_a_stack_that_is_not_asked_for_is_refused(
    tmp_path: Path, plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        parser.main(
            ["footprint", "--config", str(config(tmp_path, "full", largest_batch=["lora"]))]
        )
        == 2
    )
    assert "'largest_batch' names 'lora', which is none of the methods" in capsys.readouterr().err


# ------------------------------------------------------------------ grids


def predicted(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert parser.main(["predict", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_grid_is_the_single_predictions_in_order(
    plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = predicted(
        capsys,
        "--model",
        "tiny-a,tiny-b",
        "--method",
        "full",
        "--method",
        "lora",
        "--batch",
        "1,2",
        "--seq",
        "8",
    )
    asked = [(m, s, b) for m in ("tiny-a", "tiny-b") for s in ("full", "lora") for b in (1, 2)]
    assert [(row["model"], row["method"], row["batch"]) for row in rows] == asked
    single = predicted(
        capsys, "--model", "tiny-b", "--method", "lora", "--batch", "2", "--seq", "8"
    )
    seconds = {"seconds": single["seconds"]}
    assert {**rows[-1], **seconds} == {**single, "status": "ok", "reason": None}


def test_what_cannot_be_predicted_is_a_row_with_its_reason(
    plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = predicted(
        capsys,
        "--model",
        "tiny-a,mini-gpt",
        "--method",
        "lora,lora+svfit,head,vocab_pruning,tfidf",
        "--batch",
        "1",
        "--seq",
        "100",
        "--set",
        "lora.rank=2",
    )
    reasons = {(row["model"], row["method"]): row["reason"] for row in rows}
    assert reasons["mini-gpt", "lora"] is None
    assert "64 positions" in reasons["tiny-a", "lora"]
    assert "both take the slot 'adaptation'" in reasons["mini-gpt", "lora+svfit"]
    assert "supports tasks" in reasons["mini-gpt", "head"]
    assert "vocab_pruning@sst2" in reasons["mini-gpt", "vocab_pruning"]
    assert "control" in reasons["mini-gpt", "tfidf"]
    assert [row["status"] for row in rows].count("ok") == 1


def test_a_grid_for_people_is_a_line_for_each_row(
    plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        parser.main(
            ["predict", "--model", "tiny-a", "--method", "full,head", "--batch", "2", "--seq", "8"]
        )
        == 0
    )
    out, err = capsys.readouterr()
    header, full, head = out.splitlines()
    assert header.split()[:5] == ["model", "method", "batch", "seq", "dtype"]
    assert full.startswith("tiny-a  full    2      8    fp32   ")
    assert full.endswith("8GB")
    assert "unsupported" in head
    assert "this is causal_lm" in head
    assert "2 of 2" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "tiny-a,nope", "--method", "full", "--batch", "1", "--seq", "8"],
            "unknown model 'nope'",
        ),
        (
            ["--model", "tiny-a", "--method", "full,lora+nope", "--batch", "1", "--seq", "8"],
            "unknown method 'nope'",
        ),
        (
            ["--model", "tiny-a", "--method", "full,lora@nope", "--batch", "1", "--seq", "8"],
            "no point 'nope'",
        ),
        (
            ["--model", "tiny-a", "--method", "full,lora", "--batch", "1,0", "--seq", "8"],
            "at least 1",
        ),
        (["--model", "tiny-a", "--method", "full,lora", "--batch", "1"], "--seq"),
        (["--model", "tiny-a", "--method", "full,lora", "--task", "nope"], "unknown task 'nope'"),
        (
            [
                "--model",
                "tiny-a",
                "--method",
                "full",
                "--batch",
                "1,2",
                "--seq",
                "8",
                "--under",
                "8GiB",
            ],
            "--under",
        ),
        (
            [
                "--model",
                "tiny-a",
                "--method",
                "full,lora",
                "--batch",
                "1",
                "--seq",
                "8",
                "--set",
                "lora.rnk=1",
            ],
            "'rnk'",
        ),
        (
            [
                "--model",
                "tiny-a",
                "--method",
                "full,lora",
                "--batch",
                "1",
                "--seq",
                "8",
                "--set",
                "came.clip=1",
            ],
            "'came'",
        ),
        (["--model", "tiny-a", "--method", "head", "--batch", "1", "--seq", "8"], "supports tasks"),
    ],
)
def test_a_wrong_word_ends_a_grid_before_it_begins(
    words: list[str],
    message: str,
    plugins: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(one, "build", lambda *_: pytest.fail("a prediction was started"))
    assert parser.main(["predict", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# ------------------------------------------------------------------ exact figures

PEAKS = {  # of torch 2.13 and transformers 5.23, fp32: encoders at 8 x 128, decoders at 1 x 128
    ("bert-base", "full"): 1_974_453_324,
    ("bert-base", "head"): 477_430_888,
    ("bert-base", "lora"): 914_950_648,
    ("bert-base", "bitfit"): 875_390_632,
    ("bert-base", "adapter"): 967_040_152,
    ("bert-base", "adafactor"): 1_537_812_804,
    ("bert-base", "came"): 1_538_618_136,
    ("roberta-base", "full"): 2_156_429_420,
    ("roberta-base", "svfit"): 1_124_339_112,
    ("roberta-base", "svfit@r64"): 1_002_896_296,
    ("roberta-base", "came"): 1_660_098_616,
    ("roberta-base", "safe@prefix6"): 776_350_104,
    ("roberta-base", "vocab_pruning@sst2+svfit+came"): 1_016_264_364,
    ("roberta-large", "lora"): 2_649_777_048,
    ("roberta-large", "svfit"): 3_144_233_672,
    ("deberta-v3-base", "bitfit"): 2_287_638_140,
    ("xlm-r-base", "full"): 4_451_894_188,
    ("xlm-r-base", "vocab_pruning@sst2"): 1_780_591_284,
    ("minilm-l6", "softlms@stage2"): 296_841_352,
    ("gpt2", "full"): 2_299_819_608,
    ("gpt2", "lora"): 690_317_096,
    ("gpt2-medium", "came"): 4_674_444_944,
    ("smollm2-135m", "lora"): 754_248_136,
    ("smollm2-135m", "svfit"): 849_200_344,
}


@functools.cache
def figures(model: str, method: str) -> dict[str, Any]:
    encoder = "masked_lm" in registry.get("models", model).spec.kinds
    return one.predict(Ask(model, method, batch=8 if encoder else 1, length=128))


@pytest.mark.process
@pytest.mark.parametrize(("model", "method"), PEAKS)
def test_peak_to_the_byte(model: str, method: str) -> None:
    found = figures(model, method)
    assert found["peak_bytes"] == sum(found["by_kind"].values()) == PEAKS[model, method]


@pytest.mark.process
def test_adamw_keeps_eight_bytes_for_each_trained_number() -> None:
    for model, method in PEAKS:
        if not {"came", "adafactor"} & set(method.split("+")):
            counts = figures(model, method)["parameters"]
            trained = counts["trainable"] + counts["head"]
            assert figures(model, method)["optimizer_state_bytes"] == 8 * trained, (model, method)


@pytest.mark.process
def test_states_of_came_and_adamw_equal_papers_came_md() -> None:
    """Fine-tuning of roberta-base, xlm-r-base and gpt2-medium."""
    states = {pair: figures(*pair)["optimizer_state_bytes"] for pair in PEAKS}
    assert states["roberta-base", "full"] == 997_177_360
    assert states["roberta-base", "came"] == 500_847_360
    assert states["xlm-r-base", "full"] == 2_224_361_488
    assert states["gpt2-medium", "came"] == 1_424_151_176


@pytest.mark.process
def test_states_of_factored_optimizers_equal_their_formulas() -> None:
    """CAME: 4 N_2d + 8 N_1d + 8 sum(rows + cols). Adafactor with momentum: one pair of vectors
    instead of two."""
    spec = registry.get("models", "bert-base").raw
    shapes = [p.shape for p in models.empty_model(spec, "classification", 2).parameters()]
    momentum = sum(4 * s.numel() if len(s) > 1 else 8 * s.numel() for s in shapes)
    vectors = sum(4 * sum(s) for s in shapes if len(s) > 1)
    assert figures("bert-base", "came")["optimizer_state_bytes"] == momentum + 2 * vectors
    assert figures("bert-base", "adafactor")["optimizer_state_bytes"] == momentum + vectors


@pytest.mark.process
def test_counts_equal_papers_baselines_md_svfit_md_and_safe_md() -> None:
    trainable = {pair: figures(*pair)["parameters"]["trainable"] for pair in PEAKS}
    assert trainable["bert-base", "lora"] == 294_912
    assert trainable["bert-base", "bitfit"] == 101_376
    assert trainable["bert-base", "adapter"] == 24 * 74_544 == 1_789_056
    assert trainable["roberta-base", "svfit"] == 18_432
    assert trainable["roberta-base", "svfit@r64"] == 24 * 64
    assert (
        trainable["roberta-base", "safe@prefix6"] == 12 * 74_544
    )  # half of the 24 adapters are frozen
    assert trainable["roberta-large", "lora"] == 786_432
    assert trainable["roberta-large", "svfit"] == 49_152
    assert trainable["deberta-v3-base", "bitfit"] == 102_144
    assert trainable["smollm2-135m", "lora"] == 20 * trainable["smollm2-135m", "svfit"]
    parameters = {
        model: figures(model, "full")["parameters"]
        for model in ("bert-base", "roberta-base", "gpt2")
    }
    assert {model: counts["total"] for model, counts in parameters.items()} == {
        "bert-base": 109_483_778,
        "roberta-base": 124_647_170,
        "gpt2": 124_439_808,
    }
    assert parameters["roberta-base"]["head"] == 592_130
    assert figures("roberta-large", "lora")["parameters"]["head"] == 1_051_650


@pytest.mark.process
def test_embedding_bytes_saved_equal_papers_vocab_pruning_md() -> None:
    """xlm-r-base on SST-2: 16 bytes for each number of the rows left out are 2,819.8 MiB."""
    full, pruned = figures("xlm-r-base", "full"), figures("xlm-r-base", "vocab_pruning@sst2")
    gone = full["parameters"]["total"] - pruned["parameters"]["total"]
    assert gone == (250_002 - round(0.0375 * 250_002)) * 768
    assert f"{16 * gone / 2**20:.1f}" == "2819.8"
    assert full["by_kind"]["weights"] - pruned["by_kind"]["weights"] == 4 * gone
    assert full["optimizer_state_bytes"] - pruned["optimizer_state_bytes"] == 8 * gone
    assert (
        pruned["by_kind"]["buffers"] - full["by_kind"]["buffers"] == 4 * 250_002
    )  # the table from id to row
