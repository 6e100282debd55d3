"""The gate: a run with a failed cell fails loudly, and its tables are there all the same."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest
import yaml
from tests.fault_cells import Cells

from leantune.spec import plugins

pytestmark = [pytest.mark.faults, pytest.mark.process]
CONTROL = """from leantune.api import Method


class {name}(Method):
    def fit_predict(self, data, ctx):
        if {fails}:
            raise ValueError("this control is broken on purpose")
        return [0.0] * len(data.test)
"""


@pytest.mark.slow
def test_a_run_with_a_failed_cell_fails_with_a_table_and_has_its_tables_all_the_same(
    tmp_path, record_property, host
):
    cells = Cells(tmp_path, host)
    for name, fails in (("works", False), ("breaks", True)):
        folder = tmp_path / "plugins" / "methods" / name
        folder.mkdir()
        (folder / "method.py").write_text(CONTROL.format(name=name.title(), fails=fails))
        spec = {
            "name": name,
            "summary": "A control that does nothing.",
            "slot": "control",
            "params": {},
        }
        (folder / "method.yaml").write_text(yaml.safe_dump(spec))
    config = cells.configure({"methods": ["works", "breaks"]}, allowed_statuses=["ok"])
    snakefile = plugins.roots()[0] / "Snakefile"
    words = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--cores", "1"]
    path = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}

    def run():
        return subprocess.run(
            words,
            cwd=tmp_path,
            env={**cells.environment, **path},
            capture_output=True,
            text=True,
            check=False,
        )

    failed = run()
    said = failed.stdout + failed.stderr
    assert failed.returncode != 0
    assert "1 of 2 cells ended with a status that the config does not allow (error)" in said
    assert "ValueError: this control is broken on purpose" in said
    with (cells.output / "tables" / "failures.csv").open() as file:
        assert [(row["method"], row["status"]) for row in csv.DictReader(file)] == [
            ("breaks", "error")
        ]
    with (cells.output / "tables" / "cells.csv").open() as file:
        assert {row["method"]: row["status"] for row in csv.DictReader(file)} == {
            "works": "ok",
            "breaks": "error",
        }
    assert not (cells.output / "gate.ok").exists()

    kept = cells.finished()
    cells.configure({"methods": ["works", "breaks"]}, allowed_statuses=["ok", "error"])
    allowed = run()
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr
    assert (cells.output / "gate.ok").exists()
    assert cells.finished() == kept
    record_property("records_before", len(kept))
    record_property("records_kept", len(set(kept.items()) & set(cells.finished().items())))
    assert config.exists()
