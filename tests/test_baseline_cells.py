"""Baselines as whole cells: the record holds a prediction that equals the measured peak, and what
the method reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.host import Host, cell_words

from leantune.files import record

pytestmark = pytest.mark.process
SMALL = [
    "task.steps=4",
    "task.train=64",
    "task.validation=32",
    "task.test=48",
    "task.evaluations=1",
    "task.length=16",
    "task.checkpointing=true",
]


@pytest.mark.parametrize("stack", ["adalora+adamw_8bit", "qlora+adalomo"])
def test_a_cell(tmp_path: Path, stack: str, host: Host) -> None:
    out = tmp_path / "row.json"
    done = host.run(cell_words(stack, out, *SMALL))
    assert done.returncode == 0, done.stderr
    row = record.read_record(out)
    assert row["status"] == "ok"
    assert row["memory"]["predicted"]["peak_bytes"] == row["memory"]["peak_bytes"]
    assert row["memory"]["tensors"]["path"] == "cuda-simulated"
    assert row["memory"]["tensors"]["fallback"] is None
    assert (
        row["size"]["deployed_parameters"] == 22_713_986
    )  # plain MiniLM with its pooler and two classes
    if stack.startswith("adalora"):
        assert len(row["details"]["ranks"]) == 12
        assert sum(row["details"]["ranks"].values()) == 12 * 8
