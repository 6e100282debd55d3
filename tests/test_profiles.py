"""What a profile makes the DAG ask for, through dry runs of the real Snakefile."""

import re
from pathlib import Path

import pytest
import yaml
from test_dag import ROOT, Project

from leantune.cli import parser
from leantune.machine import memory

PREDICTED = 3 * 2**30


def asked(project: Project, *arguments: str) -> dict[str, dict[str, int]]:
    """The resources of each cell that would start, by method."""
    text = project.planned("--printshellcmds", *arguments)[1]
    cells = re.findall(
        r"wildcards: key=\S+, .*method=(\S+), seed.*\n(?:.*\n)*?\s+resources: (.*)\n", text
    )
    return {
        method: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)\b(?!\.)", told)}
        for method, told in cells
    }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.configure(
        {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["alpha", "beta", "tfidf"]}
    )
    return made


@pytest.mark.process
def test_memory_is_what_was_predicted_before_and_a_bound_where_nothing_was(
    project: Project,
) -> None:
    bound = asked(project)["alpha"]["mem_mb"]
    tables = project.folder / "out" / "tables"
    tables.mkdir(parents=True)
    columns = "model,task,method,batch,length,dtype,checkpointing,predicted_peak_bytes\n"
    row = "minilm-l6,sentiment,{},16,48,bf16,false,{}\n"
    (tables / "cells.csv").write_text(
        columns + row.format("alpha", 1) + row.format("alpha", PREDICTED)
    )
    found = asked(project)
    assert found["alpha"]["mem_mb"] == pytest.approx(
        memory.need_bytes(PREDICTED) / 2**20, rel=0.06
    )  # MB or MiB
    assert found["beta"]["mem_mb"] == bound
    (tables / "cells.csv").write_text("model,task\nnonsense")
    assert asked(project)["alpha"]["mem_mb"] == bound


@pytest.mark.process
def test_a_cell_with_a_model_asks_for_a_gpu_where_the_device_is_one(project: Project) -> None:
    assert {cell["gpu"] for cell in asked(project).values()} == {0}
    found = asked(project, "--profile", str(ROOT / "profiles" / "gpu"))
    assert {method: cell["gpu"] for method, cell in found.items()} == {
        "alpha": 1,
        "beta": 1,
        "tfidf": 0,
    }


@pytest.mark.parametrize("profile", ["gpu", "slurm", "kubernetes"])
def test_a_cell_knows_how_many_attempts_the_profile_gives_it(profile: str) -> None:
    told = yaml.safe_load((ROOT / "profiles" / profile / "config.yaml").read_text())
    for rule in ("cell", "trial"):
        assert told["set-resources"][rule]["attempts"] == told["retries"] + 1


@pytest.mark.process
def test_the_slurm_profile_is_one_that_snakemake_takes(project: Project) -> None:
    text = project.planned("--printshellcmds", "--profile", str(ROOT / "profiles" / "slurm"))[1]
    assert "--attempts 3" in text


@pytest.mark.process
def test_a_cell_refuses_other_hardware_than_it_was_planned_for(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["alpha"]}
    before = project.planned("--printshellcmds")[1]
    project.configure(block, hardware="Abacus 'mk 2'")
    text = project.planned("--printshellcmds")[1]
    assert """--hardware 'Abacus '"'"'mk 2'"'"''""" in text
    assert re.findall(r"key=(\S+),", text)[0] not in before  # ranked apart
    cell = ["--model", "minilm-l6", "--task", "sentiment", "--method", "full", "--device", "cpu"]
    assert (
        parser.main(["run", *cell, "--hardware", "Abacus", "--out", str(tmp_path / "x.json")]) == 2
    )
    assert "planned for 'Abacus'" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
