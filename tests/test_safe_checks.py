"""SAFE as a whole cell: what its record says about every check, and about memory after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.host import Host, cell_words

from leantune.files import record


@pytest.mark.process
def test_the_record_has_peak_work_and_first_trainable_layer_after_every_freeze(
    tmp_path: Path, host: Host
) -> None:
    """Half of the layers are left at the start; a high threshold then freezes the rest, so only the
    head learns."""
    out = tmp_path / "row.json"
    settings = [
        "task.steps=10",
        "task.train=64",
        "task.validation=16",
        "task.test=16",
        "task.evaluations=1",
        "task.length=16",
        "safe.prefix=3",
        "safe.tau=0.5",
    ]
    done = host.run(cell_words("safe", out, *settings))
    assert done.returncode == 0, done.stderr
    row = record.read_record(out)
    checks, memory = row["details"]["checks"], row["memory"]
    assert [c["progress"] for c in checks] == [k / 10 for k in range(3, 10)]
    assert [c["first_trainable_layer"] for c in checks] == [None] * 7
    assert {len(c["importance"]) for c in checks} == {12}
    first, second = memory["tensors"]["intervals"]
    assert (first["step"], second["step"]) == (0, 3)
    assert second["peak_bytes"] < first["peak_bytes"] == memory["peak_bytes"]
    assert second["by_kind"]["activations"] < 0.5 * first["by_kind"]["activations"]
    assert second["flops_per_step"] < 0.8 * first["flops_per_step"]
    weighted = (3 * first["peak_bytes"] + 7 * second["peak_bytes"]) / 10
    assert memory["mean_peak_bytes"] == pytest.approx(weighted, abs=1)
