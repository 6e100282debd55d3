"""What a run shows: real Snakemake on stub cells, on a pseudo-terminal and without one."""

import json
import os
import pty
import re
import subprocess
import sys
import termios
import time

import pytest
from test_dag import ROOT, Project

from snakemake_logger_plugin_leantune import Cells, Job

pytestmark = pytest.mark.process
TABLES = [
    "cells",
    "leaderboard",
    "failures",
    "calibration",
    "decisions",
    "overall",
    "pareto",
    "budgets",
]


@pytest.fixture
def project(tmp_path):
    """Four cells: two end well, one records `diverged`, one fails without a record."""
    project = Project(tmp_path)
    block = {
        "models": ["minilm-l6"],
        "tasks": ["sentiment"],
        "methods": ["alpha", "beta"],
        "seeds": [0, 1],
    }
    project.configure(block)
    record = next((ROOT / "results" / "records").rglob("sentiment/lora/0.json"))
    good = json.loads(record.read_text())
    bad = {**good, "status": "diverged", "reason": "the loss is nan\x1b[2J at step 3\n"}
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    tables = f"mkdir -p out/tables; for t in {' '.join(TABLES)}; do touch out/tables/$t.csv; done"
    project.fake_python(
        'case "$*" in\n'
        f"*' tables '*) {tables};;\n"
        "*' report '*figures) mkdir -p out/figures;;\n"
        "*' report '*) mkdir -p out/report; touch out/report/index.html;;\n"
        "*' gate '*) echo the table of what was reproduced;;\n"
        "*beta*1.json) echo 'the log of the broken cell' >&2; exit 3;;\n"
        '*alpha*1.json) cp bad.json "$last";;\n'
        "*) echo 'sentiment toy: step 40 of 50, loss 0.7, 3 s left' >&2\n"
        '   sleep 1.5; cp good.json "$last";;\n'
        "esac"
    )
    return project


def shown_on_a_terminal(project: Project, *arguments: str, columns: int = 110) -> str:
    """What `snakemake` writes to a terminal, with its control characters."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    words = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--cores",
        "2",
        *arguments,
    ]
    path = f"{project.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "LEANTUNE_PLUGINS": str(project.plugins),
        "PATH": path,
        "TERM": "xterm",
    }
    running = subprocess.Popen(
        words, cwd=project.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            parts.append(os.read(ours, 4096))
        except OSError:  # the other end is closed
            break
        if not parts[-1]:
            break
    os.close(ours)
    running.wait()
    return b"".join(parts).decode()


def shown_without_one(project: Project, *arguments: str) -> str:
    done = project.snakemake(
        *arguments, PATH=f"{project.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    )
    return done.stdout + done.stderr


def test_without_a_terminal_cells_and_the_dag_are_plain_lines_and_failures_show_their_log(project):
    text = shown_without_one(project, "--until", "cell")
    lines = text.splitlines()
    assert "4 cells to run" in lines
    assert (
        sum(line.lstrip().startswith("ok  sentiment lora seed 0: accuracy") for line in lines) == 2
    )
    assert (
        sum(
            line.startswith("   diverged  sentiment lora seed 0: the loss is nan") for line in lines
        )
        == 1
    )
    told = [line for line in lines if "cells done" in line]
    assert [int(line.split()[0]) for line in told] == [1, 2, 3, 4]
    assert re.fullmatch(r"4 of 4 cells done, 0 running, 2 failed", told[-1])
    assert all("about" in line for line in told[:-1])
    assert "the log of the broken cell" in text
    assert "\r" not in text
    assert "\x1b" not in text  # nor from a record
    assert "rule cell:" not in text.replace("Error in rule cell:", "")
    (log,) = (project.folder / ".snakemake" / "log").glob("*.log")
    assert "rule cell:" in log.read_text()  # Snakemake's own account is kept


def test_on_a_terminal_one_line_is_updated_in_place_below_the_cells_that_ended(project):
    text = shown_on_a_terminal(project, "--until", "cell")
    states = re.findall(r"\r(\d of 4 cells done, \d running, \d failed[^|\r]*)", text)
    assert {state[0] for state in states} == set("01234")
    assert any("2 running" in state for state in states)
    assert any("about" in state and "left" in state for state in states)
    assert any(
        "sentiment alpha 0 80 %" in state or "sentiment beta 0 80 %" in state for state in states
    )
    assert states[-1].startswith("4 of 4 cells done, 0 running, 2 failed")
    rows = [
        line.split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n")
    ]  # what stays on the screen
    assert sum(row.startswith("         ok  sentiment lora") for row in rows) == 2
    assert not any("cells done" in row for row in rows)
    assert "the log of the broken cell" in text
    assert "\x1b[2J" not in text  # a record must not clear the screen
    widest = max(len(part) for part in re.split(r"[\r\n]", text) if "cells done" in part)
    assert widest <= 110


def test_the_table_of_what_was_reproduced_follows_the_removed_line(project):
    project.configure({"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["alpha"]})
    text = shown_on_a_terminal(project)
    rows = [line.split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n")]
    assert "the table of what was reproduced" in rows
    assert any(row.startswith("       done  tables (") for row in rows)
    assert "cells done" not in text[text.index("the table of what was reproduced") :]


def test_a_wrong_config_is_a_sentence_on_a_terminal_too(project):
    project.configure({"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["nonsense"]})
    text = shown_on_a_terminal(project)
    assert "unknown method 'nonsense'" in text
    assert "Traceback" not in text


def job(started: float) -> Job:
    return Job("cell", ("sentiment", "alpha", "0"), (), (), started)


def test_time_left_is_the_mean_of_the_ended_cells_side_by_side():
    cells = Cells(total=6)
    for number in (1, 2):
        cells.started(number, job(0.0))
    assert cells.seconds_left(0.0) is None
    cells.ended(1, 10.0, failed=False)
    cells.ended(2, 20.0, failed=False)
    cells.started(3, job(20.0))
    cells.started(4, job(20.0))
    assert cells.seconds_left(20.0) == pytest.approx(4 * 15 / 2)
    assert cells.seconds_left(25.0) == pytest.approx((2 * 10 + 2 * 15) / 2)
    assert cells.line(20.0) == "2 of 6 cells done, 2 running, 0 failed, about 30 s left"


def test_a_failed_cell_that_is_tried_again_counts_once():
    cells = Cells(total=2)
    cells.started(1, job(0.0))
    cells.ended(1, 5.0, failed=True)
    assert cells.line(time.monotonic()).startswith("1 of 2 cells done, 0 running, 1 failed")
    cells.started(1, job(5.0))
    assert cells.line(5.0) == "0 of 2 cells done, 1 running, 0 failed"
    cells.ended(1, 5.0, failed=False)
    assert cells.line(10.0).startswith("1 of 2 cells done, 0 running, 0 failed")
