import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time

import pytest
from contenders import stay

from leantune.machine import memory
from leantune.machine.memory import GIB, DoesNotFit, Memory
from leantune.machine.memory_lease import lease_folder, memory_lease, unused_bytes

BUDGET = 10 * GIB
SPAWN = mp.get_context("spawn")


def budget():
    return Memory(BUDGET, BUDGET)


def test_the_limit_is_below_what_the_machine_has(tmp_path):
    with pytest.raises(DoesNotFit, match=r"needs 3\.00 GiB of memory, the limit is 2\.00 GiB"):
        with memory_lease(3 * GIB, folder=tmp_path, memory=budget, limit=2 * GIB):
            pass
    with memory_lease(2 * GIB, folder=tmp_path, memory=budget, limit=2 * GIB):
        pass
    with pytest.raises(
        DoesNotFit, match=r"needs 17\.0 GiB of GPU memory, this machine has 16\.0 GiB"
    ):
        memory.check(17 * GIB, 16 * GIB, of="GPU memory")


def _contend(folder, need, running, most, done):
    with memory_lease(need, folder=folder, memory=budget, poll_seconds=0.02):
        stay(running, most, 0.15)
    with done.get_lock():
        done.value += 1


def test_contenders_never_exceed_the_budget_and_all_get_their_turn(tmp_path):
    # All three share the lock of `running`, so that `most` is exact.
    running, most, done = (SPAWN.Value("i", 0) for _ in range(3))
    arguments = (tmp_path, 4 * GIB, running, most, done)
    contenders = [SPAWN.Process(target=_contend, args=arguments) for _ in range(6)]
    for process in contenders:
        process.start()
    for process in contenders:
        process.join(60)
    assert done.value == 6
    assert (
        most.value == 2
    )  # 3 x 4 GiB are more than 10, also with what an idle interpreter has used
    assert not list(tmp_path.glob("*.lease"))


def _hold(folder, need, ready):
    with memory_lease(need, folder=folder, memory=budget):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    ready = SPAWN.Event()
    process = SPAWN.Process(target=_hold, args=(tmp_path, 8 * GIB, ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_killed_holder_frees_its_lease(tmp_path, holder):
    said = []
    killed = []

    def when_waiting(message):
        said.append(message)
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        killed.append(True)

    with memory_lease(8 * GIB, when_waiting, folder=tmp_path, memory=budget, poll_seconds=0.02):
        assert killed
    assert said[0].startswith(
        "waiting for memory: needs 8.0 GiB, 2.0 GiB are free beside 1 running cell"
    )
    assert len(said) == 1


def test_a_small_need_does_not_wait_for_a_big_holder(tmp_path, holder):
    with memory_lease(GIB, pytest.fail, folder=tmp_path, memory=budget):
        pass


def test_what_a_holder_has_used_is_not_counted_twice(tmp_path):
    """What is used shows as less available; only the rest of the lease is kept free."""
    block = bytearray(os.urandom(1) * (200 * 2**20))
    with memory_lease(300 * 2**20, folder=tmp_path, memory=budget):
        (unused,) = unused_bytes(tmp_path)
    assert unused < 100 * 2**20 < len(block)


def test_more_than_the_machine_is_refused(tmp_path):
    with pytest.raises(DoesNotFit, match=r"needs 10\.5 GiB of memory, this machine has 10\.0 GiB"):
        with memory_lease(BUDGET + GIB // 2, folder=tmp_path, memory=budget):
            pytest.fail("must not start")


def test_memory_held_outside_the_suite_is_waited_for_only_so_long(tmp_path):
    start = time.monotonic()
    with pytest.raises(DoesNotFit, match=r"only 1\.0 GiB became free"):
        with memory_lease(
            2 * GIB,
            folder=tmp_path,
            memory=lambda: Memory(BUDGET, GIB),
            poll_seconds=0.02,
            patience_seconds=0.2,
        ):
            pytest.fail("must not start")
    assert time.monotonic() - start >= 0.2


def test_an_error_in_the_body_gives_the_lease_back(tmp_path):
    with pytest.raises(RuntimeError):
        with memory_lease(GIB, folder=tmp_path, memory=budget):
            raise RuntimeError
    assert not list(tmp_path.glob("*.lease"))


def test_need_leaves_room():
    assert memory.need_bytes(GIB) == int(1.6 * GIB) + GIB // 2


def test_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LEANTUNE_LEASES", str(tmp_path / "here"))
    assert lease_folder() == tmp_path / "here"


def test_only_those_who_share_memory_share_leases(tmp_path, monkeypatch):
    monkeypatch.delenv("LEANTUNE_LEASES", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    here = lease_folder()
    assert here.is_relative_to(tmp_path)
    assert lease_folder() == here
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = lease_folder()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert len({here, first, lease_folder()}) == 3


# ------------------------------------------------------------------ control groups


def _group(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def _proc(tmp_path, line):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cgroup").write_text(line + "\n")
    return tmp_path / "proc"


MIB = 2**20


def test_limit_of_control_groups_version_2(tmp_path):
    root = tmp_path / "cg"
    _group(root / "a" / "b", memory__max="max", memory__current="1", memory__stat="inactive_file 0")
    stat = f"anon 5\ninactive_file {20 * MIB}\n"
    (root / "a" / "memory.max").write_text(f"{100 * MIB}\n")
    (root / "a" / "memory.current").write_text(str(60 * MIB))
    (root / "a" / "memory.stat").write_text(stat)
    found = memory.machine_memory(root, _proc(tmp_path, "0::/a/b"))
    assert found == Memory(100 * MIB, 60 * MIB)


def test_limit_of_control_groups_version_1_where_only_the_host_sees_the_path(tmp_path):
    root = tmp_path / "cg"
    _group(
        root / "memory",
        memory__limit_in_bytes=str(50 * MIB),
        memory__usage_in_bytes=str(30 * MIB),
        memory__stat=f"total_inactive_file {5 * MIB}",
    )
    found = memory.machine_memory(root, _proc(tmp_path, "4:memory:/docker/123"))
    assert found == Memory(50 * MIB, 25 * MIB)


def test_without_a_limit_it_is_the_machine(tmp_path):
    found = memory.machine_memory(tmp_path, _proc(tmp_path, "0::/"))
    assert found.total == memory.psutil.virtual_memory().total
    assert 0 < found.available <= found.total


# ------------------------------------------------------------------ other systems

HIDE = """
import sys
import psutil  # its build for Windows needs neither, its build for Linux needs both
class LikeWindows:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource"):
            raise ImportError(name)
for name in ("fcntl", "resource"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, LikeWindows())
from leantune.cli.parser import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.process
def test_a_prediction_needs_no_module_that_only_unix_has():
    words = ["predict", "--model", "bert-base", "--method", "lora", "--batch", "2", "--seq", "16"]
    done = subprocess.run(
        [sys.executable, "-c", HIDE, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "in the backward phase" in done.stdout
