"""The suite on a real Slurm: munged, slurmctld and slurmd on this machine as a cluster of one node.

`make slurm-test` installs Slurm and runs this; without root or apt it says that it did not.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from leantune.files.parse import read_yaml
from leantune.files.record import read_record
from leantune.spec import plugins
from leantune.spec.config import expand, load_config

ROOT = plugins.roots()[0]
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]
SLURM_CONF = """\
ClusterName=leantune
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdTimeout=10
KillWait=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=cells Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SMOKE = ROOT / "config" / "smoke.yaml"


def wait_for(what: str, condition: Callable[[], object], seconds: float = 90) -> object:
    """What the condition gives once it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.3)
    raise AssertionError(f"waited {seconds} s for {what}")


class Slurm:
    """A cluster of one node whose files all lie in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"], "/usr/sbin"])
        self.environment["PATH"] = f"{folder}{os.pathsep}{path}"
        # Inside a job the executor starts srun without SLURM_CONF; a real cluster has its file in
        # /etc.
        srun = folder / "srun"
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
        )
        srun.chmod(0o755)
        # Nor has it accounting. While the controller is slow to answer, the executor would turn to
        # sacct for good.
        which = folder / "which"
        which.write_text(f'#!/bin/sh\n[ "$1" != sacct ] && exec {shutil.which("which")} "$@"\n')
        which.chmod(0o755)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool"):
            (folder / name).mkdir()
        with contextlib.ExitStack() as sockets:
            bound = [sockets.enter_context(socket.socket()) for _ in range(2)]
            for one in bound:
                one.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1] for one in bound]
        host, memory = (
            socket.gethostname().partition(".")[0],
            psutil.virtual_memory().total // 2**20,
        )
        words = {
            "host": host,
            "ports": ports,
            "folder": folder,
            "cpus": os.cpu_count(),
            "memory": int(memory * 0.8),
        }
        (folder / "slurm.conf").write_text(SLURM_CONF.format(**words))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def start(self) -> None:
        at = self.folder
        files = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munge.pid",
            "log-file": "munge.log",
        }
        words = [
            f"--{name}={at / file}" for name, file in {**files, "seed-file": "munge.seed"}.items()
        ]
        self._start("munged", "--foreground", "--force", *words)
        wait_for("munged", (at / "munge.socket").exists)
        self._start("slurmctld", "-D", "-i")
        self.start_node()

    def start_node(self) -> None:
        self._start("slurmd", "-D")
        wait_for(
            "the node",
            lambda: self.output("sinfo", "-h", "-o", "%t").strip() in ("idle", "mix", "alloc"),
        )

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [name, *words], env=self.environment, stdout=log, stderr=log
            )

    def kill_node(self) -> None:
        """What a power cut does: the daemon, its steps and their processes are gone at once."""
        daemon = psutil.Process(self.daemons["slurmd"].pid)
        steps = [p for p in psutil.process_iter(["name"]) if self._is_step(p)]
        family = [
            daemon,
            *(one for step in steps for one in [step, *step.children(recursive=True)]),
        ]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.daemons["slurmd"].wait()

    def _is_step(self, process: psutil.Process) -> bool:
        """Whether it is a step of this cluster, not of another one on this machine: its socket lies
        in our folder."""
        if not process.info["name"].startswith("slurmstepd"):
            return False
        with contextlib.suppress(psutil.Error):
            return any(
                str(one.laddr).startswith(f"{self.folder}/")
                for one in process.net_connections("unix")
            )
        return False

    def output(self, *words: str) -> str:
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=False
        ).stdout

    def running(self) -> list[str]:
        return self.output("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()

    def stop(self) -> None:
        self.output("scancel", "--user", "root")
        for name in ("slurmd", "slurmctld", "munged"):
            if name in self.daemons:
                self.daemons[name].terminate()
                try:
                    self.daemons[name].wait(20)
                except subprocess.TimeoutExpired:
                    self.daemons[name].kill()
                    self.daemons[name].wait()


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    path = os.environ["PATH"] + os.pathsep + "/usr/sbin"
    lacking = [name for name in DAEMONS if shutil.which(name, path=path) is None]
    if os.geteuid() != 0 or lacking:
        pytest.fail(
            f"needs root and Slurm ({', '.join(lacking) or 'not root'}); "
            "`make slurm-test` installs it"
        )
    folder = tmp_path / "slurm"
    folder.mkdir()
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Run:
    """A working folder with the smoke grid, sent to the cluster with profiles/slurm."""

    def __init__(self, folder: Path, slurm: Slurm) -> None:
        self.folder, self.slurm = folder, slurm
        (folder / "config").mkdir(parents=True)
        config = {**read_yaml(SMOKE), "output": "out", "device": "cpu"}
        (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config))
        self.cells = {(cell.task.name, cell.method) for cell in expand(load_config(config))}

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        words += ["--profile", str(ROOT / "profiles" / "slurm"), "--slurm-status-command", "squeue"]
        words += ["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5", *more]
        with (self.folder / "snakemake.log").open("ab") as log:
            return subprocess.Popen(
                words, cwd=self.folder, env=self.slurm.environment, stdout=log, stderr=log
            )

    def records(self) -> dict[tuple[str, str], int]:
        """The records that are there, by task and method, and when each was written."""
        found = [
            (read_record(path), path.stat().st_mtime_ns)
            for path in self.folder.rglob("records/**/*.json")
        ]
        assert {record["status"] for record, _ in found} <= {"ok"}
        written = {
            (record["cell"]["task"], record["cell"]["method"]): when for record, when in found
        }
        assert len(written) == len(found)
        return written

    @property
    def log(self) -> str:
        return (self.folder / "snakemake.log").read_text()

    def sent(self) -> int:
        """How many jobs went to Slurm, by Snakemake's own account."""
        logs = (self.folder / ".snakemake" / "log").glob("*.log")
        return sum(log.read_text().count("has been submitted") for log in logs)


def test_a_grid_comes_through_a_cancelled_job_and_a_dead_node_with_every_record_once(
    slurm: Slurm, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", slurm)
    first = run.start("--retries", "0")  # what is lost stays lost, until the rerun
    try:
        (cancelled, *_) = wait_for("a running job", slurm.running)
        slurm.output("scancel", cancelled)
        wait_for("another job", lambda: [job for job in slurm.running() if job != cancelled])
        slurm.kill_node()
        wait_for(
            "the node's death to be seen",
            lambda: "down" in slurm.output("sinfo", "-h", "-o", "%t"),
            120,
        )
        slurm.start_node()
        for job in slurm.output("squeue", "-h", "-t", "PENDING", "-o", "%i").split():
            slurm.output(
                "scontrol", "update", f"JobId={job}", "StartTime=now"
            )  # else Slurm waits two minutes
        assert first.wait(500) != 0, run.log
        before = run.records()
        assert len(before) < len(run.cells), run.log

        assert run.start().wait(500) == 0, run.log
        after = run.records()
        assert set(after) == run.cells
        assert before.items() <= after.items()  # what was there is not made again
        sent = run.sent()
        assert sent >= len(run.cells) + 1
        assert run.start("--until", "cell").wait(90) == 0
        assert run.sent() == sent
        assert run.records() == after
    finally:
        first.kill()
