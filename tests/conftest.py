"""Shared fixtures: one torch thread, real MiniLM, tiny models; and what the marker `process` means.

`make fast` leaves out the tests that start processes or predict at paper scale. So that the marker
cannot be forgotten, a test without it fails where it starts a process or takes long.
"""

import atexit
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" not in os.environ:  # these inherit it
    # Cells of tests are small and must not wait for those of a benchmark beside them, nor these
    # for the tests.
    os.environ["LEANTUNE_LEASES"] = tempfile.mkdtemp(prefix="leantune-test-leases-")
    atexit.register(shutil.rmtree, os.environ["LEANTUNE_LEASES"], ignore_errors=True)

import pytest
import torch
from hub_server import Hub, ask

torch.set_num_threads(1)

MOST_SECONDS = 60  # ten times what the longest takes here, as processors differ
LEFT_OUT = ("process", "slow", "oracle_env", "gpu", "browser", "slurm")  # by `make fast`
# What libraries and the record's provenance ask in passing; milliseconds each.
SMALL_PROGRAMS = {"git", "ldconfig", "lscpu", "nvidia-smi", "uname"}
_noticed: list[str] = []
_popen = subprocess.Popen.__init__


def _noted(self, args, *rest, **more):
    words = shlex.split(args) if isinstance(args, str) else [os.fspath(word) for word in args]
    if Path(os.fsdecode(words[0])).name not in SMALL_PROGRAMS:
        _noticed.append(f"starts {' '.join(map(os.fsdecode, words))}")
    _popen(self, args, *rest, **more)


subprocess.Popen.__init__ = _noted
os.register_at_fork(before=lambda: _noticed.append("forks"))


def _is_fast(item):
    """Around a test's set-up and its call; the error stands where the test would."""
    _noticed[:] = ["starts the host"] if "host" in item.fixturenames else []
    began = time.process_time()
    outcome = yield
    if (used := time.process_time() - began) > MOST_SECONDS:
        _noticed.append(f"takes {used:.0f} s of a processor")
    if _noticed and not any(map(item.get_closest_marker, LEFT_OUT)):
        pytest.fail(f"{_noticed[0]}, so it needs the marker `process`", pytrace=False)
    return outcome


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_is_fast)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_is_fast)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """What starts processes takes longest, so it comes first: the short ones fill the rest."""
    items.sort(key=lambda item: item.get_closest_marker("process") is None)


@pytest.fixture(autouse=True)
def own_lock(tmp_path, monkeypatch):
    """What a test reads from a hub or a mirror is locked in the test's own folder."""
    monkeypatch.setenv("LEANTUNE_SOURCES_LOCK", str(tmp_path / "sources.lock"))


@pytest.fixture
def minilm():
    """A fresh real MiniLM for two-class sequence classification, its head marked, in eval mode."""
    from leantune.api import mark_head
    from leantune.models.load import load_model
    from leantune.spec import plugins

    model = load_model(plugins.get("models", "minilm-l6").raw, "classification", 2, 0)
    mark_head(model, "classification")
    return model.eval()


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """Runs `leantune` commands without a new interpreter for each."""
    from tests.host import Host

    made = Host(tmp_path_factory.mktemp("host"))
    yield made
    made.close()


@pytest.fixture
def server(monkeypatch):
    """A hub of the test's own, which the hub library is pointed to."""
    made = Hub()
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    ask(monkeypatch, made.url)
    yield made
    made.shutdown()
    made.server_close()
