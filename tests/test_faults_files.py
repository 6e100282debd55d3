"""Faults of the files around a cell: a full disk, a folder that may not be written, damage,
company, a wrong clock."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from tests.fault_cells import STEPS, workers_in
from tests.test_faults_cells import cells, out, result, shared, whole

from leantune import svd
from leantune.fetch import cache
from leantune.spec.config import expand, load_config

__all__ = ["cells", "out", "shared"]
pytestmark = [pytest.mark.faults, pytest.mark.process]
ROOT = os.geteuid() == 0


# ------------------------------------------------------------------ no room, no right


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of one MiB; yields its folder."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("needs the right to mount a disk of its own; run as root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(disk).f_bavail == 0


def test_a_record_that_finds_the_disk_full_is_a_clear_error_and_leaves_no_half_of_itself(
    cells, small_disk
):
    fill(small_disk)
    file = small_disk / "records" / "0.json"
    file.parent.mkdir()
    done = cells.run([*cells.words(), "--out", file])
    assert done.returncode == 2
    assert f"cannot write {file}: No space left on device; free space" in done.said
    assert list(file.parent.iterdir()) == []
    (small_disk / "filler").unlink()
    assert cells.run([*cells.words(), "--out", file]).returncode == 0
    assert result(cells.record(file)) == result(whole(cells))


def test_a_checkpoint_that_finds_the_disk_full_is_given_up_and_the_cell_starts_over(
    cells, small_disk
):
    file = small_disk / "records" / "0.json"
    file.parent.mkdir()
    with (small_disk / "filler").open("wb") as filler:
        filler.write(bytes(2**20 - 2**16))  # room for a record, and not for a checkpoint
    words = [*cells.words(at="'step 3'", fault="'stop SIGTERM'"), "--out", file]
    with cells.broken():
        stopped = cells.run(words)
    assert stopped.returncode == 75
    assert "the checkpoint was not kept, so the cell will start over" in stopped.said
    assert list(file.parent.iterdir()) == []
    assert cells.run(words).returncode == 0
    assert result(cells.record(file)) == result(whole(cells))


def test_a_scratch_folder_that_fills_up_ends_the_cell_as_error_and_it_can_be_run_again(
    cells, out, small_disk
):
    words = [*cells.words(at="'step 2'", fault="'fill disk'"), "--out", out]
    with cells.broken():
        done = cells.run(words, TMPDIR=str(small_disk))
    assert done.returncode == 0
    row = cells.record(out)
    assert (row["status"], row["quality"]) == ("error", None)
    assert "No space left on device" in row["reason"]
    (small_disk / "filler").unlink()
    assert cells.run(words, TMPDIR=str(small_disk)).returncode == 0
    assert result(cells.record(out)) == result(whole(cells))


@pytest.mark.skipif(not ROOT, reason="takes the right to mount a disk")
def test_results_that_may_not_be_written_are_told_before_anything_runs(cells, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    started = time.monotonic()
    done = cells.run([*cells.words(), "--out", small_disk / "records" / "0.json"])
    assert done.returncode == 2
    assert (
        f"cannot write into {small_disk / 'records'}: Read-only file system; choose another --out"
        in done.said
    )
    assert time.monotonic() - started < 10


# ------------------------------------------------------------------ company


@pytest.mark.slow
def test_two_runs_of_one_cell_at_once_both_end_well_and_leave_one_whole_record(cells, out):
    other = cells.start([*cells.words(), "--out", out])  # an interpreter of its own
    done = cells.run([*cells.words(), "--out", out])
    said, errors = other.communicate(timeout=200)
    assert (done.returncode, other.returncode) == (0, 0), said + errors
    assert [p.name for p in out.parent.iterdir()] == ["0.json"]
    assert result(cells.record(out)) == result(whole(cells))


# ------------------------------------------------------------------ a clock that is set


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_that_is_set_while_a_cell_runs_changes_no_duration(cells, out, hours, tmp_path):
    """The wall clock jumps in both processes of a command: here as they start, and again and again
    while they run."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import time
        real, calls = time.time, [0]

        def jumping():
            calls[0] += 1
            return real() + calls[0] * {hours * 3600}

        time.time = jumping
        """)
    )
    former = cells.environment.get("PYTHONPATH", "")
    cells.environment["PYTHONPATH"] = f"{tmp_path}:{former}"
    try:
        started = time.monotonic()
        other = cells.start([*cells.words(), "--out", out])
        said, errors = other.communicate(timeout=200)
        took = time.monotonic() - started
    finally:
        cells.environment["PYTHONPATH"] = former
    assert other.returncode == 0, errors
    row = cells.record(out)
    times = row["time"]
    assert abs(int(row["provenance"]["started"][:4]) - time.gmtime().tm_year) <= 1
    durations = [*times["phases"].values(), *times["step_seconds"], times["train_seconds_total"]]
    assert len(durations) == len(times["phases"]) + STEPS + 1
    assert all(0 <= seconds <= took for seconds in durations)
    assert 0 < sum(times["phases"].values()) <= took
    assert 0 <= int(said.rstrip(" s)\n").rpartition("(")[2]) <= took + 1  # what the summary says
    assert result(row) == result(whole(cells))


# ------------------------------------------------------------------ damage


def test_a_truncated_record_is_named_left_out_of_the_tables_and_can_be_run_again(
    cells, monkeypatch
):
    output = cells.folder / "other"
    block = {"methods": ["faulty"], "seeds": [0, 1]}
    config = cells.configure(block, allowed_statuses=["ok"], output=str(output))
    monkeypatch.setenv("LEANTUNE_PLUGINS", cells.environment["LEANTUNE_PLUGINS"])
    planned = expand(load_config(config))
    files = [output / cell.record_path for cell in planned]
    for seed, file in enumerate(files):
        words = [
            "run",
            "--model",
            "tiny",
            "--task",
            "words",
            "--method",
            "faulty",
            "--seed",
            str(seed),
        ]
        assert cells.run([*words, "--device", "cpu", "--out", file]).returncode == 0
    sound = files[0].read_bytes()
    files[1].write_bytes(files[1].read_bytes()[:700])

    told = cells.run(["tables", "--config", config])
    assert told.returncode == 0
    assert f"damaged record: {files[1].relative_to(output / 'records')}" in told.said
    cells_csv = (output / "tables" / "cells.csv").read_text()
    assert ",ok," in cells_csv
    assert "damaged" in (output / "tables" / "failures.csv").read_text()
    gate = cells.run(["gate", "--config", config])
    assert gate.returncode == 1
    assert "1 of 2 cells ended with a status that the config does not allow (damaged)" in gate.said

    removed = cells.run(["rerun", "--status", "damaged", "--config", config])
    assert str(files[1]) in removed.said
    assert files[0].read_bytes() == sound
    assert not files[1].exists()


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_truncated_decomposition_in_the_cache_is_made_again(tmp_path, damage):
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    first = svd.cached_svd(weight, tmp_path)
    (file,) = (tmp_path / "svd").iterdir()
    bytes_ = file.read_bytes()
    file.write_bytes(bytes_[: len(bytes_) // 2] if damage == "cut" else b"")
    again = svd.cached_svd(weight, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert file.read_bytes() == bytes_


def test_a_truncated_download_in_the_cache_is_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LEANTUNE_CACHE", str(tmp_path))

    def build(folder):
        (folder / "weights.bin").write_bytes(bytes(range(256)) * 40)

    file = cache.entry("key", build) / "weights.bin"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes()[:100])
    assert (
        hashlib.sha256((cache.entry("key", build) / "weights.bin").read_bytes()).hexdigest()
        == digest
    )


# ------------------------------------------------------------------ a control group


@pytest.fixture
def control_group():
    """A memory group of cgroup version 1 that the test sets a limit on; yields its folder."""
    group = Path("/sys/fs/cgroup/memory") / f"leantune-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs the right to make a memory control group of version 1; run as root")
    yield group
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


@pytest.mark.slow
def test_a_cell_that_the_kernel_kills_for_memory_ends_as_oom_with_phase_and_headroom(
    cells, out, control_group
):
    (control_group / "memory.limit_in_bytes").write_text(str(2**30))
    words = [*cells.words(at="'step 2'", fault="'fill memory'"), "--out", out]
    with cells.broken():
        enter = f"echo $$ > {control_group}/cgroup.procs && exec " + '"$@"'
        done = subprocess.run(
            ["sh", "-c", enter, "sh", sys.executable, "-m", "leantune", *map(str, words)],
            env=cells.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    row = cells.record(out)
    assert (row["status"], row["phase"]) == ("oom", "steady training")
    assert row["reason"] == "the kernel killed the worker: out of memory"
    assert 0 < row["details"]["headroom_bytes"] < 2**30
    assert not workers_in(cells.folder)
