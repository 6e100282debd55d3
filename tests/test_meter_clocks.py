"""Clocks and slowdowns of a GPU while it trains, from a script called `nvidia-smi` in place of the
driver's."""

import ast
import os
import time
from pathlib import Path

import pytest

from leantune.machine.gpus import start_query
from leantune.meter.clocks import EVERY_MS, Clocks

SAMPLES = """1980, 1980, 45, 310.50, 0x0000000000000000
1410, 1980, 71, 699.20, 0x0000000000000004
1200, 1980, 88, 420.00, 0x0000000000000021
1980, 1980, 60, [N/A], 0x0000000000000002
19"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Says the text of a file, and then goes on running as `--loop-ms` does; notes how it was
    called."""
    file = tmp_path / "nvidia-smi"
    file.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/called\ncat {tmp_path}/says\nexec sleep 60\n'
    )
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def sampled(smi, says, wanted=True):
    (smi / "says").write_text(says)
    clocks = Clocks(wanted)
    with clocks:
        time.sleep(0.3)
    return clocks.result()


def test_slow_samples_and_their_reasons_are_counted(smi, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaaa")
    assert sampled(smi, SAMPLES) == {
        "samples": 4,  # the last line was cut
        "sm_mhz_median": 1695.0,
        "sm_mhz_lowest": 1200.0,
        "sm_mhz_limit": 1980.0,
        "hottest_celsius": 88.0,
        "most_watts": 699.2,
        "throttled_share": 0.5,  # idle (0x1) and a clock that somebody set (0x2) are none
        "slowdowns": ["power cap", "thermal, by the driver"],
    }
    called = (smi / "called").read_text()
    assert "--id=GPU-aaaa" in called
    assert f"--loop-ms={EVERY_MS}" in called


def test_a_device_that_keeps_its_clock_has_no_slowdown(smi):
    result = sampled(smi, "1980, 1980, 45, 310.50, 0x0000000000000000\n" * 3)
    assert (result["throttled_share"], result["slowdowns"]) == (0.0, [])


def test_what_the_device_does_not_tell_is_null(smi):
    result = sampled(smi, "[N/A], [N/A], 45, [N/A], [N/A]\n")
    assert result["hottest_celsius"] == 45.0
    assert {result[name] for name in ("sm_mhz_median", "most_watts", "throttled_share")} == {None}


def test_without_a_device_there_is_no_number(smi, monkeypatch):
    assert sampled(smi, SAMPLES, wanted=False) is None
    assert not (smi / "called").exists()
    monkeypatch.setenv("PATH", "/nonexistent")
    with Clocks(wanted=True) as clocks:
        pass
    assert clocks.result() is None


def test_one_function_starts_nvidia_smi():
    source = Path(start_query.__code__.co_filename).parents[1]
    named = [
        file.relative_to(source).as_posix()
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value == "nvidia-smi"
    ]
    assert named == ["machine/gpus.py"]
