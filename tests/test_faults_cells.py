"""Faults of a cell's processes: each is put in on purpose, the finished work stays, and the rest
can be run again."""

from __future__ import annotations

import os
import signal

import pytest
from tests.fault_cells import STEPS, Cells, wait_for, workers_in

pytestmark = [pytest.mark.faults, pytest.mark.process]
PHASES = [
    *(
        "data",
        "predict",
        "wait",
        "load",
        "attach",
        "measure",
        "training",
        "first step",
        "steady training",
    ),
    *("export", "evaluation"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, host):
    """A folder with one finished cell, which no fault may touch."""
    cells = Cells(tmp_path_factory.mktemp("faults"), host)
    done = cells.run([*cells.words(), "--out", cells.output / "records" / "finished" / "0.json"])
    assert done.returncode == 0
    assert len(cells.finished()) == 1
    return cells


@pytest.fixture
def cells(shared, record_property):
    """The folder; says afterwards how many finished records there were before and how many are
    still whole."""
    before = shared.finished()
    yield shared
    after = shared.finished()
    kept = [path for path, digest in before.items() if after.get(path) == digest]
    record_property("records_before", len(before))
    record_property("records_kept", len(kept))
    assert len(kept) == len(before)


@pytest.fixture
def out(shared, request):
    return shared.output / "records" / request.node.name.replace("/", "-") / "0.json"


def result(row):
    """What of a record two runs of one cell have in common, bit for bit."""
    quality = row["quality"]
    curve = [{k: v for k, v in point.items() if k != "seconds"} for point in quality["curve"]]
    return quality["predictions"], quality["metrics"], curve, row["memory"]["tensors"], row["key"]


def whole(cells):
    return cells.record(cells.output / "records" / "finished" / "0.json")


# ------------------------------------------------------------------ killed


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_supervisor_takes_its_worker_along_and_leaves_no_record(cells, out, phase):
    with cells.broken():
        done = cells.run([*cells.words(at=f"'{phase}'", fault="'kill supervisor'"), "--out", out])
        assert done.returncode == -signal.SIGKILL
        assert wait_for(lambda: not workers_in(cells.folder), 20)
    assert [p for p in out.parent.iterdir()] == []


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_worker_is_recorded_with_its_phase(cells, out, phase):
    with cells.broken():
        done = cells.run([*cells.words(at=f"'{phase}'", fault="'kill worker'"), "--out", out])
    assert done.returncode == 0
    row = cells.record(out)
    assert (row["status"], row["phase"], row["reason"]) == (
        "error",
        phase,
        "the worker was ended by SIGKILL",
    )


def test_a_worker_that_is_killed_while_it_imports_is_recorded(cells, out):
    running = cells.start([*cells.words(), "--out", out])
    assert wait_for(lambda: workers_in(cells.folder))
    os.kill(workers_in(cells.folder)[0], signal.SIGKILL)
    assert running.wait(60) == 0
    row = cells.record(out)
    assert (row["status"], row["phase"]) == ("error", "import")


def test_a_supervisor_that_is_killed_while_its_worker_imports_takes_it_along(cells, out):
    running = cells.start([*cells.words(), "--out", out])
    assert wait_for(lambda: workers_in(cells.folder))
    running.kill()
    running.wait()
    assert wait_for(lambda: not workers_in(cells.folder), 20)
    assert not out.exists()


# ------------------------------------------------------------------ asked to stop


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_stopped_cell_goes_on_and_its_record_equals_the_one_of_a_cell_that_never_stopped(
    cells, out, name
):
    words = [*cells.words(at="'step 3'", fault=f"'stop {name}'"), "--out", out]
    with cells.broken():
        stopped = cells.run(words)
    assert stopped.returncode == 75
    assert "the checkpoint after step 3 of 6 is kept" in stopped.said
    assert not out.exists()
    assert cells.checkpoint(out).exists()

    resumed = cells.run(words)
    assert resumed.returncode == 0
    assert "going on after step 3 of 6" in resumed.said
    row = cells.record(out)
    assert row["status"] == "ok"
    assert row["time"]["resumed_after"] == [3]
    assert len(row["time"]["step_seconds"]) == STEPS
    assert result(row) == result(whole(cells))
    assert not cells.checkpoint(out).exists()


def test_a_cell_that_is_stopped_before_it_trains_starts_over(cells, out):
    words = [*cells.words(at="measure", fault="'stop SIGTERM'"), "--out", out]
    with cells.broken():
        assert cells.run(words).returncode == 75
    assert [p for p in out.parent.iterdir()] == []


def test_a_cell_that_is_stopped_after_training_finishes(cells, out):
    with cells.broken():
        done = cells.run([*cells.words(at="evaluation", fault="'stop SIGTERM'"), "--out", out])
    assert done.returncode == 0
    assert result(cells.record(out)) == result(whole(cells))


def test_a_damaged_checkpoint_starts_the_cell_over(cells, out):
    words = [*cells.words(at="'step 3'", fault="'stop SIGTERM'"), "--out", out]
    with cells.broken():
        assert cells.run(words).returncode == 75
    kept = cells.checkpoint(out)
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    done = cells.run(words)
    assert done.returncode == 0
    assert "is not used, it is damaged" in done.said
    row = cells.record(out)
    assert "resumed_after" not in row["time"]
    assert result(row) == result(whole(cells))


def test_a_checkpoint_of_a_cell_that_asks_for_other_flatness_is_not_used(cells, out):
    words = [*cells.words(at="'step 3'", fault="'stop SIGTERM'"), "--out", out]
    with cells.broken():
        assert cells.run(words).returncode == 75
    done = cells.run([*words, "--flatness", "1"])
    assert done.returncode == 0
    assert "is not used, it is of other code, data or settings" in done.said
    row = cells.record(out)
    assert "resumed_after" not in row["time"]
    assert row["quality"]["flatness"]["draws"] == row["cell"]["settings"]["flatness"] == 1


# ------------------------------------------------------------------ hung, diverged, out of memory


@pytest.mark.slow
def test_a_hung_cell_ends_as_timeout_with_its_phase(cells, out):
    with cells.broken():
        done = cells.run(
            [*cells.words(at="'step 2'", fault="hang"), "--timeout", "0.3", "--out", out]
        )
    assert done.returncode == 0
    row = cells.record(out)
    assert (row["status"], row["phase"]) == ("timeout", "steady training")
    assert not workers_in(cells.folder)


def test_a_loss_that_is_not_finite_ends_as_diverged_with_its_step(cells, out):
    with cells.broken():
        done = cells.run([*cells.words(at="'step 2'", fault="nan"), "--out", out])
    assert done.returncode == 0
    row = cells.record(out)
    assert row["status"] == "diverged"
    assert "nan at step 3 of 6" in row["reason"]


def test_a_cell_above_its_address_space_ends_as_oom_with_phase_and_headroom(cells, out):
    words = [*cells.words(at="'step 2'", fault="'address space'"), "--out", out]
    with cells.broken():
        assert cells.run([*words, "--attempt", "1", "--attempts", "2"]).returncode == 75
        assert not out.exists()
        done = cells.run(words)
    assert done.returncode == 0
    row = cells.record(out)
    assert (row["status"], row["phase"]) == ("oom", "steady training")
    assert 0 < row["details"]["headroom_bytes"] <= 2**28
