"""Leases that outlive nobody: several users, holders that are killed, devices that others use.

No GPU is needed: the devices are a list that the test gives, or a script called `nvidia-smi`.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing as mp
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tests.contenders import stay
from tests.fault_cells import Cells

from leantune.errors import BadInput
from leantune.machine import gpus
from leantune.machine.gpu_lease import gpu_lease
from leantune.machine.gpus import MIB, Gpu
from leantune.machine.memory import GIB, Memory
from leantune.machine.memory_lease import lease_folder, memory_lease

pytestmark = [pytest.mark.faults, pytest.mark.process]
FORK = mp.get_context("fork")


@pytest.fixture
def shared():
    """A lease folder that other users can reach; pytest's own folders are private."""
    top = Path(tempfile.mkdtemp(prefix="leantune-test-"))
    top.chmod(0o755 | 0o1022)
    former = os.environ.get("LEANTUNE_LEASES")
    os.environ["LEANTUNE_LEASES"] = str(top / "leases")
    yield top / "leases"
    os.environ.pop("LEANTUNE_LEASES")
    if former is not None:
        os.environ["LEANTUNE_LEASES"] = former
    shutil.rmtree(top)


def budget():
    return Memory(10 * GIB, 10 * GIB)


# ------------------------------------------------------------------ several users


def _hold_memory(user, need, ready, release):
    os.umask(0o077)
    os.setgid(user)
    os.setuid(user)
    with memory_lease(need, memory=budget, poll_seconds=0.02):
        ready.set()
        release.wait(30)


def _start(user, need=8 * GIB):
    ready, release = FORK.Event(), FORK.Event()
    process = FORK.Process(target=_hold_memory, args=(user, need, ready, release))
    process.start()
    return process, ready, release


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become two users")
def test_users_share_one_machine_s_memory_whatever_their_umask(shared):
    first, holds, release = _start(65533)
    assert holds.wait(20)
    assert shared.stat().st_mode & 0o7777 == 0o1777
    second, holds_too, release_too = _start(65534)
    assert not holds_too.wait(0.5)  # 8 and 8 are more than 10
    release.set()
    assert holds_too.wait(20)
    release_too.set()
    for process in (first, second):
        process.join(20)
        assert process.exitcode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become two users")
def test_the_lease_of_another_user_s_killed_process_is_void(shared):
    first, holds, _ = _start(65533)
    assert holds.wait(20)
    first.kill()
    first.join()
    assert list(shared.glob("*.lease"))  # nobody was there to remove it, and the next user may not
    second, holds_too, release_too = _start(65534)
    assert holds_too.wait(20)
    release_too.set()
    second.join(20)
    assert second.exitcode == 0


def test_nonsense_in_the_shared_folder_holds_nothing_back(shared):
    folder = lease_folder()
    for i, text in enumerate(
        ["", "{", "[]", json.dumps({"need": "much", "pid": 1}), json.dumps({"need": 2**60})]
    ):
        (folder / f"{i}.lease").write_text(text)
    (folder / "loop.lease").symlink_to("/dev/zero")
    held = [(folder / f"{i}.lease").open() for i in range(5)]
    for file in held:
        fcntl.flock(file, fcntl.LOCK_EX)
    with memory_lease(8 * GIB, pytest.fail, memory=budget):
        pass


def test_a_link_in_the_place_of_a_lock_is_refused_and_not_followed(shared):
    folder = lease_folder()
    (folder / "lock").symlink_to(folder / "elsewhere")
    with pytest.raises(BadInput, match="lock cannot be opened"):
        with memory_lease(GIB, memory=budget):
            pytest.fail("must not start")
    assert not (folder / "elsewhere").exists()


# ------------------------------------------------------------------ GPUs


def stub(*used, users=()):
    return [
        Gpu(i, f"GPU-{i}", "Stub", mib * MIB, 16 * GIB, tuple(users)) for i, mib in enumerate(used)
    ]


def _train(folder, on, most, done):
    with gpu_lease(folder=folder, devices=lambda: stub(0, 0), poll_seconds=0.02) as leased:
        stay(on[leased.gpu.index], most, 0.1)
    with done.get_lock():
        done.value += 1


def test_a_device_has_one_cell_at_a_time_and_all_get_their_turn(tmp_path):
    on, most, done = [FORK.Value("i", 0) for _ in range(2)], FORK.Value("i", 0), FORK.Value("i", 0)
    contenders = [FORK.Process(target=_train, args=(tmp_path, on, most, done)) for _ in range(5)]
    for process in contenders:
        process.start()
    for process in contenders:
        process.join(30)
    assert (most.value, done.value) == (1, 5)


def _hold_device(folder, ready):
    with gpu_lease(folder=folder, devices=lambda: stub(0)):
        ready.set()
        time.sleep(60)


def test_a_killed_holder_gives_its_device_back(tmp_path):
    ready = FORK.Event()
    holder = FORK.Process(target=_hold_device, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(20)
    said = []

    def when_waiting(message):
        said.append(message)
        holder.kill()
        holder.join()

    with gpu_lease(
        when_waiting, folder=tmp_path, devices=lambda: stub(0), poll_seconds=0.02
    ) as leased:
        assert leased.gpu.uuid == "GPU-0"
    assert said == [f"waiting for a GPU, as cells hold GPU 0 (process {holder.pid})"]


def test_a_device_is_not_free_before_the_worker_of_a_killed_supervisor_has_ended(tmp_path):
    code = (
        "import os, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from leantune.machine.gpu_lease import gpu_lease\n"
        "from leantune.machine.gpus import Gpu\n"
        "gpu = Gpu(0, 'GPU-0', 'Stub', 0, 1)\n"
        "with gpu_lease(folder=Path(sys.argv[1]), devices=lambda: [gpu]) as leased:\n"
        "    worker = subprocess.Popen(['sleep', '60'], pass_fds=(leased.lock,))\n"
        "    print(worker.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    worker = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()
    waited = []

    def when_waiting(message):
        waited.append(message)
        os.kill(worker, signal.SIGKILL)

    with gpu_lease(when_waiting, folder=tmp_path, devices=lambda: stub(0), poll_seconds=0.02):
        assert waited


def test_a_device_that_others_use_is_refused_and_its_holder_named(tmp_path):
    def refused(devices):
        with pytest.raises(BadInput) as caught:
            with gpu_lease(
                folder=tmp_path, devices=lambda: devices, poll_seconds=0.02, patience_seconds=0.1
            ):
                pytest.fail("must not start")
        return str(caught.value)

    foreign = subprocess.Popen(["sleep", "60"])
    try:
        said = refused(stub(3000, users=[foreign.pid]))
        assert f"GPU 0 (Stub): it is used by sleep (process {foreign.pid} of " in said
    finally:
        foreign.kill()
        foreign.wait()
    assert (
        "3000 MiB of its memory are in use by a process that nvidia-smi does not show"
        in refused(stub(3000))
    )
    assert "there is none" in refused([])
    with gpu_lease(
        folder=tmp_path, devices=lambda: stub(3000, 1)
    ) as leased:  # the other one is free
        assert leased.gpu.index == 1


NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --query-gpu=name) echo "Stub 80GB"; echo "Stub 80GB" ;;
  --query-gpu=*) echo "0, GPU-aaaa, Stub 80GB, 3, 81559"
                 echo "1, GPU-bbbb, Stub 80GB, 41000, 81559" ;;
  --query-compute-apps=*) echo "GPU-bbbb, 1" ;;
esac
"""


@pytest.fixture
def smi(tmp_path):
    file = tmp_path / "bin" / "nvidia-smi"
    file.parent.mkdir()
    file.write_text(NVIDIA_SMI)
    file.chmod(0o755)
    return file


def test_what_nvidia_smi_says_is_read(smi, monkeypatch):
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second = gpus.visible()
    assert first == Gpu(0, "GPU-aaaa", "Stub 80GB", 3 * MIB, 81559 * MIB)
    assert second.users == (1,)
    assert "process 1 of root" in second.holder()
    for word in ("1", "GPU-bb"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", word)
        assert [gpu.index for gpu in gpus.visible()] == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.visible() == []
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    with pytest.raises(BadInput, match="has failed"):
        gpus.visible()
    smi.write_text("#!/bin/sh\necho 'a b'\n")
    with pytest.raises(BadInput, match="not understood"):
        gpus.visible()


def test_the_worker_sees_the_leased_device_alone_and_holds_its_lease_too(tmp_path, smi, host):
    (tmp_path / "run").mkdir()
    cells = Cells(tmp_path / "run", host)
    cells.environment.update(
        {"PATH": f"{smi.parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "1,0"}
    )
    with cells.broken():
        words = cells.words(at="data", fault="'tell gpu'", device="cuda")
        started = cells.start([*words, "--out", cells.output / "records" / "gpu" / "0.json"])
        said = started.communicate(timeout=200)
        told = cells.fault.read_text()
    assert started.returncode == 0, said
    assert told == "GPU-aaaa True"  # the other one is in use
    with (tmp_path / "run" / "leases" / "GPU-aaaa.gpu").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
