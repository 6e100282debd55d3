"""Resident memory, and CUDA's tracker on a machine with and without CUDA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leantune.meter import host
from leantune.meter.cuda import CudaMemory
from leantune.meter.host import resident_peak_bytes

MIB = 2**20


@pytest.mark.process
def test_the_peak_counts_what_was_given_back_since() -> None:
    """In a process of its own: this one may have held more before."""
    code = (
        "from leantune.meter.host import resident_peak_bytes\n"
        "before = resident_peak_bytes()\n"
        "block = bytearray(b'x') * (200 * 2**20)\n"
        "del block\n"
        "print(resident_peak_bytes() - before)\n"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert 195 * MIB < int(done.stdout) < 230 * MIB


def test_a_system_without_the_mark_gives_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "STATUS", tmp_path / "none")
    assert resident_peak_bytes() is None
    (tmp_path / "none").write_text("Name:\tpython\nVmRSS:\t12 kB\n")
    assert resident_peak_bytes() is None


def test_without_cuda_there_is_no_number() -> None:
    tracker = CudaMemory()
    with tracker.phase("load"):
        torch.zeros(10)
    assert (tracker.result() is None) == (not torch.cuda.is_available())


@pytest.mark.gpu
def test_cuda_peaks_per_phase() -> None:
    tracker = CudaMemory()
    with tracker.phase("big"):
        torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    with tracker.phase("small"):
        torch.empty(MIB, dtype=torch.uint8, device="cuda")
    result = tracker.result()
    assert result is not None
    big, small = result["by_phase"]["big"], result["by_phase"]["small"]
    assert big["allocated_peak_bytes"] - result["baseline_allocated_bytes"] == 64 * MIB
    assert (
        small["allocated_peak_bytes"]
        < big["allocated_peak_bytes"]
        == result["allocated_peak_bytes"]
    )
    assert result["reserved_peak_bytes"] >= result["active_peak_bytes"] >= 64 * MIB
