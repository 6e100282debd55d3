"""The DAG, through the real Snakefile with toy plugins and dry runs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import DEVNULL

import pytest
import yaml
from filelock import FileLock
from snakemake.exceptions import WorkflowError

from leantune.spec import plugins
from leantune.spec.config import load_config
from leantune.workflow.jobs import Jobs

pytestmark = pytest.mark.process
ROOT = plugins.roots()[0]
METHOD = """from leantune.api import Method


class {}(Method):
    def attach(self, model, data, ctx):
        return model, data
"""


class Project:
    """A working folder with its own config and plugins, and the checkout's Snakefile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = folder / "plugins"
        self.add_method("alpha")
        self.add_method("beta")
        self.configure(
            {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["alpha", "beta"]}
        )

    def add_method(self, name: str) -> None:
        folder = self.plugins / "methods" / name
        folder.mkdir(parents=True)
        spec = {
            "name": name,
            "summary": "A toy that trains everything.",
            "slot": "adaptation",
            "params": {"lr": 1.0e-4},
        }
        (folder / "method.yaml").write_text(yaml.safe_dump(spec))
        (folder / "method.py").write_text(METHOD.format(name.title()))

    def configure(self, *cells: dict, **more: object) -> None:
        (self.folder / "config").mkdir(exist_ok=True)
        config = {"output": "out", "device": "cpu", "cells": list(cells), **more}
        (self.folder / "config" / "config.yaml").write_text(yaml.safe_dump(config))

    def snakemake(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LEANTUNE_PLUGINS": str(self.plugins), **environment}
        words = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(ROOT / "Snakefile"),
            "--cores",
            "1",
            *arguments,
        ]
        return subprocess.run(
            words, cwd=self.folder, capture_output=True, text=True, env=environment, check=False
        )

    def planned(self, *arguments: str) -> tuple[list[str], str]:
        """The methods whose cells a run would start now, and the whole text."""
        done = self.snakemake("--dry-run", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        text = done.stdout + done.stderr
        return sorted(re.findall(r"wildcards: key=\S+, .*method=(\S+), seed", text)), text

    def fake_python(self, does: str) -> Path:
        """A `python` for the jobs that only does this shell line; `$last` is the last word, the
        record's file."""
        fake = self.folder / "bin" / "python"
        fake.parent.mkdir()
        fake.write_text(f"#!/bin/sh\nfor last; do :; done\n{does}\n")
        fake.chmod(0o755)
        return fake

    def run_with_empty_records(self) -> None:
        """Run the cell jobs for real, but with a `python` that only writes the record's file."""
        fake = self.fake_python('echo "{}" > "$last"')
        done = self.snakemake(
            "--until", "cell", PATH=f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_what_reruns_and_what_does_not(project):
    methods, text = project.planned()
    assert methods == ["alpha", "beta"]
    assert "profiles/default" in text
    project.run_with_empty_records()

    for file in (project.plugins).rglob("*.*"):
        file.touch()
    assert project.planned()[0] == []

    code = project.plugins / "methods" / "alpha" / "method.py"
    code.write_text(code.read_text() + "# changed\n")
    assert project.planned()[0] == ["alpha"]

    project.add_method("gamma")
    project.configure(
        {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["alpha", "beta", "gamma"]}
    )
    assert project.planned()[0] == ["alpha", "gamma"]

    shutil.rmtree(project.folder / ".snakemake")
    assert project.planned()[0] == ["gamma"]


def test_a_grid_is_chosen_by_config_and_every_later_step_sees_the_choice(project):
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"]}
    grids = {"one": [{**block, "methods": ["alpha"]}], "two": [{**block, "methods": ["beta"]}]}
    (project.folder / "grids.yaml").write_text(yaml.safe_dump({"grids": grids}))
    words = ["--configfile", "grids.yaml"]
    assert project.planned(*words)[0] == ["alpha", "beta"]  # in place of the default's cells
    assert project.planned(*words, "--config", "grid=two")[0] == ["beta"]
    done = project.snakemake(*words, "--config", "grid=two", "--until", "settings")
    assert done.returncode == 0, done.stderr
    kept = load_config(project.folder / "out" / "config.json")
    assert [(one.grid, one.methods) for one in kept.cells] == [("two", ["beta"])]
    wrong = project.snakemake("--dry-run", *words, "--config", "grid=three")
    assert wrong.returncode != 0
    assert "no grid is called 'three'; its grids: one, two" in wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr


def test_trials_come_first_and_their_choice_feeds_the_cells(project):
    alpha = project.plugins / "methods" / "alpha" / "method.yaml"
    alpha.write_text(alpha.read_text() + "search: {lr: [1.0e-4, 3.0e-4, 1.0e-3]}\n")
    block = {
        "models": ["minilm-l6"],
        "tasks": ["sentiment"],
        "methods": ["alpha", "beta"],
        "seeds": [0, 1],
    }
    project.configure({**block, "trials": 3})
    methods, text = project.planned()
    assert methods.count("alpha") == 3 + 2
    assert methods.count("beta") == 2
    assert text.count("rule choice:") == 1
    calls = project.folder / "calls"
    fake = project.fake_python(f'echo "$@" >> {calls}; echo "{{}}" > "$last"')
    done = project.snakemake(
        "--until", "cell", PATH=f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = calls.read_text().splitlines()
    chosen = next(i for i, line in enumerate(lines) if " choose " in line)
    alphas = [(i, line) for i, line in enumerate(lines) if "--method alpha" in line]
    assert [i < chosen for i, line in alphas if "--trial" in line] == [True] * 3
    assert [
        i > chosen and "chosen.json" in line for i, line in alphas if "--trial" not in line
    ] == [True] * 2
    assert not any("chosen.json" in line for line in lines if "--method beta" in line)
    assert (
        sum("--set alpha.lr" in line for _, line in alphas) == 2
    )  # the first trial is the default
    assert project.planned()[0] == []


def test_timing_has_the_machine_to_itself_and_comes_before_the_tables(project):
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["full", "alpha"]}
    project.configure(block, timing=[{**block, "rounds": 2}])
    _, text = project.planned("--printshellcmds", "--cores", "3")
    (command,) = re.findall(r"leantune compare .*", text)
    assert "--methods full alpha --rounds 2" in command
    assert "timing/minilm-l6/sentiment.json" in command
    assert re.search(r"rule timing:(?:\n .*)*\n    threads: 3", text)
    assert text.index("rule timing:") < text.index("rule tables:")


def test_a_killed_run_goes_on_where_it_was(project):
    """SIGKILL leaves Snakemake's lock; the next start through leantune.workflow.launch removes it
    and repeats nothing."""
    fake = project.fake_python('case "$last" in *beta*) sleep 60;; esac; echo "{}" > "$last"')
    path = {
        "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}",
        "LEANTUNE_PLUGINS": str(project.plugins),
    }
    words = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--cores",
        "2",
        "--until",
        "cell",
    ]
    killed = subprocess.Popen(
        words,
        cwd=project.folder,
        env={**os.environ, **path},
        stdout=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    noted = (
        project.folder / ".snakemake" / "metadata"
    )  # where Snakemake writes that alpha's cell is complete
    while not (noted.is_dir() and any(noted.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert project.snakemake("--until", "cell").returncode != 0  # locked

    arguments = ["--snakefile", str(ROOT / "Snakefile"), "--dry-run"]
    bench = [sys.executable, "-m", "leantune.workflow.launch", *arguments]
    done = subprocess.run(
        bench,
        cwd=project.folder,
        capture_output=True,
        text=True,
        env={**os.environ, **path},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"wildcards: key=\S+, .*method=(\S+), seed", done.stdout + done.stderr) == [
        "beta"
    ]


def test_only_one_run_at_a_time(project):
    (project.folder / "runs").mkdir()
    with FileLock(project.folder / "runs" / ".lock"):
        words = [sys.executable, "-m", "leantune.workflow.launch"]
        done = subprocess.run(
            words, cwd=project.folder, capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert "another run is under way" in done.stderr


def test_configfile_extends_and_every_cell_has_its_own_command(project):
    extra = project.folder / "more.yaml"
    block = {
        "models": ["minilm-l6"],
        "tasks": ["sentiment"],
        "methods": ["svfit@r64+came"],
        "seeds": [3],
        "set": {"task.steps": 2, "svfit.lr": 0.5},
    }
    extra.write_text(yaml.safe_dump({"cells": [block]}))
    limit = ("--set-resources", "cell:limit_mb=8000")
    methods, text = project.planned("--printshellcmds", *limit, "--configfile", str(extra))
    assert methods == ["svfit@r64+came"]
    command = next(line for line in text.splitlines() if "leantune run" in line)
    assert "--method svfit@r64+came --seed 3 --device cpu" in command
    assert "--set svfit.lr=0.5 --set task.steps=2" in command
    assert "--limit-mb 8000" in command
    assert re.search(
        r"--out out/records/cpu-\S+-s2-\S+/minilm-l6/sentiment/svfit@r64\+came/3.json", command
    )


def footprint_of(*methods: str) -> list[dict]:
    shape = {"kind": "classification", "batches": [2], "lengths": [16], "dtype": "fp32"}
    return [{"models": ["minilm-l6"], "methods": list(methods), **shape}]


def test_the_footprint_is_made_again_only_when_what_it_depends_on_changed(project):
    cells = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["alpha"]}
    project.configure(cells, footprint=footprint_of("beta"))

    def planned() -> bool:
        return "rule footprint:" in project.planned()[1]

    fake = project.fake_python("mkdir -p out/tables; echo figures > out/tables/footprint.csv")
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    done = project.snakemake("--until", "footprint", PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr

    for file in project.plugins.rglob("*.*"):
        file.touch()
    project.configure({**cells, "seeds": [1]}, footprint=footprint_of("beta"))
    code = project.plugins / "methods" / "alpha" / "method.py"
    code.write_text(code.read_text() + "# not in the footprint\n")
    assert not planned()

    code = project.plugins / "methods" / "beta" / "method.py"
    former = code.read_text()
    code.write_text(former + "# changed\n")
    assert planned()
    code.write_text(former)
    project.configure(cells, footprint=footprint_of("beta", "alpha"))
    assert planned()
    project.configure(cells)
    assert not planned()


WRONG = [
    ({"footprint": footprint_of("full+lora")}, "both take the slot"),
    ({"footprint": footprint_of("nonsense")}, "unknown method 'nonsense'"),
    ({"footprint": [{"models": ["minilm-l6"]}]}, "key 'footprint.0.methods' is missing"),
    ({"cell": []}, "key 'cell' is unknown; allowed: output"),
    ({"set": {"task.stepz": 3}}, "'task.stepz' is no setting of task 'sentiment'"),
]
BLOCK = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["full"]}


def test_a_wrong_config_is_a_clear_error(project):
    said = []
    for change, _ in WRONG:
        with pytest.raises(WorkflowError) as error:
            Jobs({"cells": [BLOCK], **change})
        said.append(str(error.value))
    assert [m for (_, m), text in zip(WRONG, said, strict=True) if m not in text] == [], said
    project.configure(BLOCK, **WRONG[0][0])
    done = project.snakemake("--dry-run", "--quiet")
    assert done.returncode != 0
    assert said[0] in done.stdout + done.stderr
    assert not (project.folder / "out").exists()


@pytest.mark.slow
def test_ten_thousand_cells_in_twenty_seconds(project):
    block = {
        "models": ["minilm-l6"],
        "tasks": ["sentiment"],
        "methods": ["alpha", "beta"],
        "seeds": list(range(5000)),
    }
    project.configure(block)
    before = os.times()
    done = project.snakemake("--dry-run", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (
        os.times().children_user - before.children_user < 20
    )  # other work on the machine does not count


def test_the_scheduler_looks_at_the_queue_once_for_each_cell_that_ends(project):
    """With Snakemake's rate limit it looks once more each second for every cell that has ended."""
    cells = 24
    project.configure(
        {
            "models": ["minilm-l6"],
            "tasks": ["sentiment"],
            "methods": ["alpha"],
            "seeds": list(range(cells)),
        }
    )
    fake = project.fake_python('sleep 0.3; echo "{}" > "$last"')
    path = {"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    done = project.snakemake("--until", "cell", "--verbose", **path)
    assert done.returncode == 0, done.stderr
    looks = done.stderr.count("Resources before job selection")
    assert cells <= looks <= 1.5 * cells


def test_the_claims_are_measured_where_the_config_asks(project: Project) -> None:
    assert "rule claims:" not in project.planned()[1]
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["alpha"]}
    project.configure(block, claims=True)
    text = project.planned()[1]
    assert "rule claims:" in text
    assert "out/tables/claims.csv" in text
