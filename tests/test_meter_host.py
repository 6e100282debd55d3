"""Resident memory per phase, and CUDA's tracker on a machine with and without CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leantune.meter import host
from leantune.meter.cuda import CudaMemory
from leantune.meter.host import HostMemory, resident_bytes

MIB = 2**20


def touch(mebibytes: int) -> bytearray:
    return bytearray(b"x") * (mebibytes * MIB)


def test_each_phase_has_its_own_peak() -> None:
    tracker = HostMemory()
    start = resident_bytes()
    assert start is not None
    with tracker.phase("big"):
        block = touch(200)
        del block
    with tracker.phase("small"):
        touch(1)
    peaks = tracker.result()["by_phase"]
    assert 195 * MIB < peaks["big"] - start < 230 * MIB
    assert peaks["small"] < peaks["big"] - 150 * MIB
    assert tracker.result()["peak_bytes"] == peaks["big"]


def test_a_phase_that_comes_again_keeps_its_highest() -> None:
    tracker = HostMemory()
    with tracker.phase("load"):
        touch(100)
    first = tracker.result()["by_phase"]["load"]
    with tracker.phase("load"):
        pass
    assert tracker.result()["by_phase"]["load"] == first


def test_an_outer_phase_sees_what_its_inner_phases_took_and_what_it_took_before() -> None:
    tracker = HostMemory()
    with tracker.phase("outer"):
        touch(150)
        with tracker.phase("inner"):
            touch(50)
    peaks = tracker.result()["by_phase"]
    assert peaks["outer"] > peaks["inner"] + 80 * MIB


def test_a_phase_that_fails_is_measured_too() -> None:
    tracker = HostMemory()
    with pytest.raises(MemoryError), tracker.phase("attach"):
        raise MemoryError
    assert tracker.result()["by_phase"]["attach"] > 0


def test_a_system_without_the_mark_gives_null(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "CLEAR", tmp_path / "none" / "clear_refs")
    tracker = HostMemory()
    with tracker.phase("load"):
        pass
    assert tracker.result() == {"peak_bytes": None, "by_phase": {"load": None}}
    monkeypatch.setattr(host, "STATUS", tmp_path / "none")
    assert resident_bytes() is None


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
