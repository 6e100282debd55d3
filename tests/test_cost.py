"""`leantune plan`: what a config would take, checked against predictions made one by one; and the
papers' configs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from leantune.cli import parser
from leantune.errors import BadInput
from leantune.prediction import cards, cost
from leantune.prediction.ask import Ask
from leantune.prediction.one import predict
from leantune.spec import plugins as registry
from leantune.spec.config import expand, load_config
from leantune.training.flatness import NORMS
from leantune.workflow import jobs

ROOT = registry.roots()[0]
MODEL = {
    "summary": "A model of one layer.",
    "source": {"none": True},
    "traits": ["from_scratch"],
    "parameters": 1,
}
GPT = {
    "family": "gpt2",
    "kinds": ["causal_lm", "classification"],
    "architecture": {
        "model_type": "gpt2",
        "vocab_size": 512,
        "n_positions": 64,
        "n_embd": 128,
        "n_layer": 1,
        "n_head": 4,
        "pad_token_id": 0,
        "eos_token_id": 0,
    },
}
BERT = {
    "family": "bert",
    "kinds": ["classification", "regression", "masked_lm"],
    "architecture": {
        "model_type": "bert",
        "vocab_size": 200000,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    },
}
SPLITS = {"train": 100, "validation": 10, "test": 30}
TRAINING = {"steps": 20, "batch": 8, "length": 16, "dtype": "bf16", "evaluations": 2}


@pytest.fixture(autouse=True)
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models that predict fast and two tasks that have no data."""
    folder = tmp_path / "plugins"
    (folder / "models").mkdir(parents=True)
    for name, spec in (("tiny-gpt", GPT), ("tiny-bert", BERT)):
        (folder / "models" / f"{name}.yaml").write_text(
            yaml.safe_dump({"name": name, **MODEL, **spec})
        )
    for name in ("words", "tiny-sst2"):
        task = {
            "name": name,
            "summary": "A task without data.",
            "kind": "classification",
            "source": {"local": "nowhere"},
            "splits": SPLITS,
            "training": TRAINING,
            "metric": {"module": "classification", "score": "accuracy", "higher_is_better": True},
        }
        (folder / "tasks" / name).mkdir(parents=True)
        (folder / "tasks" / name / "task.yaml").write_text(yaml.safe_dump(task))
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(folder))
    return folder


def block(
    *methods: str, model: str = "tiny-gpt", task: str = "words", **more: Any
) -> dict[str, Any]:
    return {"models": [model], "tasks": [task], "methods": list(methods), **more}


def drawn(*cells: dict[str, Any], gpu: str = "L4", **more: Any) -> cost.Estimate:
    grids = more.get("grids")
    config = load_config({"device": "cuda", **({} if grids else {"cells": list(cells)}), **more})
    return cost.estimate(config, gpu)


def row(found: cost.Estimate, method: str, what: str = "cell") -> dict[str, Any]:
    (one,) = (row for row in found.rows if (row["method"], row["what"]) == (method, what))
    return one


# ------------------------------------------------------------------ one run


def test_a_run_takes_its_steps_and_a_third_of_a_step_for_every_batch_that_it_evaluates() -> None:
    found = drawn(block("full", "lora", seeds=[0, 1]))
    for method in ("full", "lora"):
        one, alone = row(found, method), predict(Ask("tiny-gpt", method, task="words"))
        assert alone["dtype"] == "bf16-autocast"
        assert one["memory_bytes"] == alone["reserved_bytes"] + cards.CONTEXT_BYTES
        assert one["smallest_card"] == "8GB"
        step = alone["flops_per_step"]
        assert (one["runs"], one["status"], one["flops_per_step"]) == (2, "ok", step)
        assert one["flops"] == pytest.approx(20 * step + step / 8 / 3 * (2 * 10 + 30))
        assert one["hours"] == pytest.approx(one["flops"] / (121e12 * 0.35) / 3600)
    assert found.predictions == 2


def test_hours_go_with_the_peak_of_the_dtype_and_the_efficiency() -> None:
    config = load_config({"device": "cuda", "cells": [block("full", set={"task.dtype": "fp32"})]})
    slow, fast = (cost.estimate(config, "A100-40GB", share).rows[0] for share in (0.1, 0.5))
    assert slow["hours"] == pytest.approx(slow["flops"] / (19.5e12 * 0.1) / 3600)
    assert slow["hours"] == pytest.approx(5 * fast["hours"])


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_of_many_micro_batches_two_tell_all(accumulate: int) -> None:
    training = {"batch": 8, "accumulate": accumulate, "dtype": "bf16"}
    alone = predict(Ask("tiny-gpt", "lora", task="words", training=training))
    one = row(drawn(block("lora", set={"task.accumulate": accumulate})), "lora")
    assert one["memory_bytes"] == alone["reserved_bytes"] + cards.CONTEXT_BYTES
    assert one["flops_per_step"] == alone["flops_per_step"]
    assert (one["batch"], one["steps"]) == (8, 20)


def test_checkpointing_and_flatness_count() -> None:
    plain = row(drawn(block("full")), "full")
    flat = row(drawn(block("full", flatness=3)), "full")
    forward = plain["flops_per_step"] / 8 / 3
    assert flat["flops"] - plain["flops"] == pytest.approx(
        (1 + 3 * len(NORMS)) * 10 * forward, rel=1e-3
    )
    recomputed = row(drawn(block("full", set={"task.checkpointing": True})), "full")
    assert recomputed["flops_per_step"] > 1.2 * plain["flops_per_step"]


def test_settings_count_and_rates_share_a_prediction() -> None:
    found = drawn(
        block("lora"), block("lora", task="tiny-sst2", set={"lora.rank": 64, "lora.lr": 1e-4})
    )
    small, large = found.rows
    assert found.predictions == 2
    assert large["flops"] > small["flops"]
    assert (
        drawn(block("lora"), block("lora", task="tiny-sst2", set={"lora.lr": 1e-4})).predictions
        == 1
    )


def test_a_vocabulary_is_what_was_published_of_the_task_or_what_the_config_says() -> None:
    def memory(task: str, method: str = "vocab_pruning", **settings: Any) -> int:
        return row(drawn(block(method, model="tiny-bert", task=task, set=settings)), method)[
            "memory_bytes"
        ]

    published = memory("tiny-sst2")
    assert (
        published
        == memory("tiny-sst2", "vocab_pruning@sst2")
        == memory("words", "vocab_pruning@sst2")
    )
    assert published == memory("words", **{"vocab_pruning.vocabulary": round(0.3761 * 200000)})
    assert memory("tiny-sst2", **{"vocab_pruning.vocabulary": 200000}) > published


def test_what_cannot_be_predicted_is_told_with_its_reason_and_a_control_takes_no_gpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = drawn(
        block("vocab_pruning", "softlms", "tfidf", "full"),
        block("bitfit", model="tiny-bert", task="words"),
    )
    lost, control = row(found, "vocab_pruning"), row(found, "tfidf")
    assert lost["status"] == "unsupported"
    assert "vocab_pruning.vocabulary=ROWS" in lost["reason"]
    assert (control["flops"], control["memory_bytes"], control["status"]) == (0, 0, "ok")
    assert found.totals()[-1]["unsupported"] == 1
    text = cost.describe(found)
    assert "not predicted:\n  tiny-gpt words vocab_pruning (1 x cell): vocab_pruning keeps" in text


# ------------------------------------------------------------------ all of them


def test_totals_are_of_each_grid_alone_and_of_all_with_shared_runs_once() -> None:
    found = drawn(
        grids={
            "a": [block("full", "lora", seeds=[0, 1])],
            "b": [block("lora", "bitfit", seeds=[0])],
        }
    )
    a, b, everything = found.totals()
    assert [total["grid"] for total in (a, b, everything)] == ["a", "b", "all"]
    assert (a["runs"], b["runs"], everything["runs"]) == (4, 2, 5)
    one = {row["method"]: row for row in found.rows}
    assert a["flops"] == 2 * one["full"]["flops"] + 2 * one["lora"]["flops"]
    assert b["flops"] == one["lora"]["flops"] + one["bitfit"]["flops"]
    assert everything["flops"] == a["flops"] + b["flops"] - one["lora"]["flops"]
    assert everything["hours"] == pytest.approx(everything["flops"] / (121e12 * 0.35) / 3600)
    assert everything["largest_bytes"] == max(row["memory_bytes"] for row in found.rows)
    assert everything["longest_hours"] == max(row["hours"] for row in found.rows)


def test_trials_and_comparisons_are_counted() -> None:
    timing = {"models": ["tiny-gpt"], "tasks": ["words"], "methods": ["full", "lora"], "rounds": 4}
    found = drawn(block("lora", trials=3), timing=[timing])
    assert {(r["method"], r["what"]): r["runs"] for r in found.rows if r["what"] != "trial"} == {
        ("lora", "cell"): 1,
        ("full", "timing"): 4,
        ("lora", "timing"): 4,
    }
    trials = [r for r in found.rows if r["what"] == "trial"]
    assert sum(r["runs"] for r in trials) == 3
    forward = row(found, "lora")["flops_per_step"] / 8 / 3
    scored = {
        r["what"]: r["flops"] - 20 * r["flops_per_step"]
        for r in found.rows
        if r["method"] == "lora"
    }
    assert scored["cell"] == pytest.approx(forward * (2 * 10 + 30), rel=1e-3)
    assert scored["timing"] == pytest.approx(forward * (10 + 16), rel=1e-3)
    assert min(r["flops"] - 20 * r["flops_per_step"] for r in trials) == pytest.approx(
        forward * 30, rel=1e-3
    )
    assert found.totals()[-1]["runs"] == sum(r["runs"] for r in found.rows) == 12


def test_what_nobody_can_run_is_planned_and_never_started() -> None:
    content = {
        "device": "cuda",
        "cells": [block("full"), block("lora", not_run="the corpus is not public", trials=2)],
    }
    config = load_config(content)
    assert [cell.method for cell in expand(config)] == ["full"]
    assert len(jobs.Jobs(content).files("{cell}")) == 1
    found = cost.estimate(config, "L4")
    one = row(found, "lora")
    assert (one["status"], one["reason"]) == ("not_run", "the corpus is not public")
    assert one["hours"] > 0
    total = found.totals()[-1]
    assert (total["runs"], total["hours"], total["not_run"]) == (1, row(found, "full")["hours"], 3)


# ------------------------------------------------------------------ the command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    grids = {
        "small": [block("lora", "head")],
        "large": [block("full", "lora", model="tiny-bert", task="tiny-sst2")],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"device": "cuda", "grids": grids}, sort_keys=False))
    return path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert parser.main(["plan", *words, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_under_leaves_out_exactly_what_needs_more(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = told(capsys, "--config", str(file))
    sizes = sorted(r["memory_bytes"] for r in whole["rows"])
    assert [r["status"] for r in whole["rows"]] == ["ok"] * 4
    for limit in (sizes[-1], sizes[-1] - 1, sizes[1], sizes[0] - 1):
        some = told(capsys, "--config", str(file), "--under", f"{limit}B")
        assert [r["status"] for r in some["rows"]] == [
            "ok" if r["memory_bytes"] <= limit else "too large" for r in whole["rows"]
        ]
        total = some["totals"][-1]
        assert total["runs"] + total["too_large"] == 4
        assert total["hours"] == pytest.approx(
            sum(r["hours"] for r in some["rows"] if r["status"] == "ok")
        )
    assert parser.main(["plan", "--config", str(file), "--under", f"{sizes[-1] - 1}B"]) == 0
    assert (
        "tiny-bert tiny-sst2 full (1 x cell)"
        in capsys.readouterr().out.partition("left out, above")[2]
    )


def test_under_takes_a_card_and_a_gpu_takes_no_more_than_it_has(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = told(capsys, "--config", str(file), "--under", "T4")["limit_bytes"]
    assert limit == int(14.56 * 2**30)  # the whole card, as rows have the CUDA context in
    assert told(capsys, "--config", str(file), "--gpu", "L4")["limit_bytes"] == int(22.03 * 2**30)
    monkeypatch.setitem(cards.USABLE_GIB, "L4", 1.0)
    assert {r["status"] for r in told(capsys, "--config", str(file), "--gpu", "L4")["rows"]} == {
        "too large"
    }


def test_a_grid_is_chosen_by_flag_or_key(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    by_flag = told(
        capsys, "--config", str(file), "--grid", "small", "--csv", str(tmp_path / "plan.csv")
    )
    assert [r["method"] for r in by_flag["rows"]] == ["lora", "head"]
    assert [total["grid"] for total in by_flag["totals"]] == ["small", "all"]
    with (tmp_path / "plan.csv").open(newline="") as table:
        lines = list(csv.DictReader(table))
    assert [(line["method"], line["grids"]) for line in lines] == [
        ("lora", "small"),
        ("head", "small"),
    ]
    assert float(lines[0]["hours"]) == pytest.approx(by_flag["rows"][0]["hours"], rel=1e-6)
    content = yaml.safe_load(file.read_text())
    by_key = load_config({**content, "grid": "large", "cells": [block("bitfit")]})
    assert [cell.method for cell in expand(by_key)] == ["full", "lora"]
    assert (
        load_config(json.loads(json.dumps(by_key.resolved()))) == by_key
    )  # the DAG's steps read what it wrote


def test_comparisons_of_another_grid_are_left_out() -> None:
    timing = [
        {"models": ["tiny-gpt"], "tasks": ["words"], "methods": ["full", method], "grid": grid}
        for method, grid in (("lora", "a"), ("head", "b"))
    ]
    grids = {"a": [block("lora")], "b": [block("head")]}
    chosen = load_config({"device": "cuda", "grids": grids, "timing": timing, "grid": "b"})
    assert [one.methods for one in chosen.timing] == [["full", "head"]]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--grid", "medium"], "no grid is called 'medium'; its grids: small, large"),
        (["--gpu", "H9000"], "--gpu 'H9000' is no card whose peak is known; known: L4, RTX 4090"),
        (["--under", "lots"], "'lots' is no amount of memory"),
    ],
)
def test_a_wrong_word_is_one_sentence(
    words: list[str], sentence: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parser.main(["plan", "--config", str(file), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("share", ["0", "1.1", "-1"])
def test_an_efficiency_is_a_share(share: str, file: Path) -> None:
    with pytest.raises(SystemExit):
        parser.main(["plan", "--config", str(file), "--efficiency", share])


def test_a_config_without_anything_to_run_or_without_grids_says_so() -> None:
    with pytest.raises(BadInput, match="neither key 'cells' nor 'grids'"):
        load_config({"device": "cpu"})
    with pytest.raises(BadInput, match="no grid is called 'a'; its grids: none"):
        load_config({"cells": [block("full")], "grid": "a"})


# ------------------------------------------------------------------ epochs


def test_epochs_become_steps_of_each_task() -> None:
    def steps(**more: Any) -> list[int]:
        config = load_config({"device": "cuda", "cells": [block("full", **more)]})
        return [cell.training["steps"] for cell in expand(config)]

    assert steps(epochs=1) == [13]  # 100 examples in batches of 8
    assert steps(epochs=3) == [38]
    assert steps(epochs=3, set={"task.batch": 16, "task.train": 40}) == [8]
    config = load_config({"cells": [block("full", epochs=3)], "set": {"task.steps": 5}})
    (cell,) = expand(config)
    assert cell.training["steps"] == 38
    assert "task.steps=38" in cell.command()
    with pytest.raises(BadInput, match=r"both 'epochs' and 'task\.steps'"):
        steps(epochs=1, set={"task.steps": 4})
    with pytest.raises(BadInput, match="batch"):
        steps(epochs=1, set={"task.batch": "many"})


# ------------------------------------------------------------------ the papers


GRIDS = ["vocab_pruning", "svfit", "safe", "came", "softlms"]


@pytest.mark.parametrize("name", ["paper", "paper-lite"])
def test_the_papers_configs_name_what_there_is(name: str) -> None:
    file = ROOT / "config" / f"{name}.yaml"
    config = load_config(file)
    assert list(dict.fromkeys(one.grid for one in config.cells)) == GRIDS
    assert config.seeds == [0, 1, 2]
    parts = {grid: expand(load_config(file, grid)) for grid in GRIDS}
    assert {cell.record_path for cells in parts.values() for cell in cells} == {
        cell.record_path for cell in expand(config)
    }
    for grid, cells in parts.items():
        assert {"full", grid} <= {cell.method for cell in cells}, "a baseline in each"
    assert len(jobs.Jobs(yaml.safe_load(file.read_text())).files("{cell}")) == len(expand(config))


@pytest.mark.process
def test_paper_lite_is_a_day_on_one_card_of_24_gb() -> None:
    found = cost.estimate(load_config(ROOT / "config" / "paper-lite.yaml"), "L4")
    assert {row["status"] for row in found.rows} == {"ok"}
    total = found.totals()[-1]
    assert 0 < total["hours"] < 24
    assert total["largest_bytes"] <= 22.03 * 2**30
    for grid in GRIDS:
        names = {
            (row["model"], row["task"])
            for row in found.rows
            if grid in row["grids"] and len(row["grids"]) < 5
        }
        assert len({model for model, _ in names}) == 1
        assert len({task for _, task in names}) == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_paper_cell_is_predicted(grid: str) -> None:
    config = load_config(ROOT / "config" / "paper.yaml", grid)
    found = cost.estimate(config, "A100-80GB")
    assert {
        (r["model"], r["task"], r["method"], r["reason"])
        for r in found.rows
        if r["status"] == "unsupported"
    } == set()
    total = found.totals()[-1]
    assert total["longest_hours"] * 60 < config.timeout_minutes
    assert (total["not_run"] > 0) == (grid == "came")
