"""The lock, the conda environment and pyproject.toml agree, so every way of setting up gives the
same suite."""

import importlib.metadata
import os
import re
import stat
import subprocess
import tomllib

import pytest
import yaml
from oracle_env import interpreter
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from leantune.spec import plugins

ROOT = plugins.roots()[0]
LOCK = (ROOT / "envs" / "lock.txt").read_text().splitlines()
PINS = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LOCK}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


ORACLE = (ROOT / "envs" / "oracle.txt").read_text().splitlines()


OLDEST = (ROOT / "envs" / "oldest.txt").read_text().splitlines()


@pytest.mark.parametrize("lock", [LOCK, ORACLE, OLDEST], ids=["lock", "oracle", "oldest"])
def test_every_line_of_the_lock_is_one_exact_public_version(lock):
    assert len({canonicalize_name(line.partition("==")[0]) for line in lock}) == len(lock)
    for line in lock:
        # No build tag either: the same lock takes torch's CPU and CUDA wheels.
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line


def test_the_environments_beside_the_lock_differ_in_what_they_are_for():
    assert LOCK[0] == ORACLE[0] == "torch==2.13.0"  # there only the models' code is another
    bounds = {one.name: one.specifier for one in _wanted()}
    for line, name in zip(OLDEST, ("torch", "transformers"), strict=False):
        (lowest,) = (bound.version for bound in bounds[name] if bound.operator == ">=")
        assert line.startswith(f"{name}=={lowest}.")


def test_the_references_environment_has_the_references():
    pins = dict(line.split("==") for line in ORACLE)
    assert pins["transformers"].startswith("4.57.")
    assert pins["adapters"] == "1.3.0"
    assert pins["transformer-smaller-training-vocab"] == "0.4.2"
    assert pins["came-pytorch"] == "0.1.2"


def test_a_missing_references_environment_is_named(tmp_path):
    with pytest.raises(
        pytest.fail.Exception, match=r"\.venv-oracle.* is missing; `make oracle-test` creates"
    ):
        interpreter(tmp_path)


def _wanted():
    project = PROJECT["project"]
    extras = {**project["optional-dependencies"]}
    extras.pop("peers")  # of one benchmark, in an environment of its own
    (every,) = (Requirement(one) for one in extras.pop("all"))
    assert every.extras == {*extras} - {"dev"}
    lists = (project["dependencies"], *extras.values(), PROJECT["build-system"]["requires"])
    return [Requirement(one) for requirements in lists for one in requirements]


def test_the_lock_satisfies_pyproject():
    wanted = _wanted()
    assert len(wanted) > 30
    locked = [(PINS.get(canonicalize_name(one.name)), one) for one in wanted]
    assert [str(one) for pin, one in locked if pin is None or pin not in one.specifier] == []


def _needs(name):
    """Names that an installed package needs here, optional extras left out."""
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name), requirement


def test_the_lock_agrees_with_itself():
    """What a locked package needs on this machine is locked too, at a version that it accepts."""
    for name in PINS:
        for other, requirement in _needs(name):
            # CUDA builds of torch bring their own libraries, which machines without a GPU never
            # see.
            if other.startswith(("nvidia", "triton", "cuda")):
                continue
            assert other in PINS, f"{name} needs {other}"
            assert PINS[other] in requirement.specifier, f"{name} needs {requirement}"


def test_this_environment_is_the_locked_one():
    found = {name: importlib.metadata.version(name).partition("+")[0] for name in PINS}
    assert found == PINS


def test_the_conda_environment_has_the_same_pins():
    environment = yaml.safe_load((ROOT / "envs" / "leantune.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == LOCK
    (python,) = [
        e for e in environment["dependencies"] if isinstance(e, str) and e.startswith("python=")
    ]
    assert python.removeprefix("python=") in PROJECT["project"]["requires-python"]


@pytest.mark.process
def test_make_says_what_is_wrong_with_an_old_python(tmp_path):
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(old.stat().st_mode | stat.S_IEXEC)
    (tmp_path / "envs").mkdir()
    for name in ("Makefile", "pyproject.toml", "envs/lock.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(
        ["make", "bench", f"PYTHON={old}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.process
def test_make_sets_up_only_when_the_lock_changed(tmp_path):
    (tmp_path / "envs").mkdir()
    for name in ("Makefile", "pyproject.toml", "envs/lock.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()

    def commands():
        return subprocess.run(
            ["make", "-n", "test"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert "pip install" not in commands()
    later = (tmp_path / ".venv" / ".ready").stat().st_mtime + 10
    os.utime(tmp_path / "envs" / "lock.txt", (later, later))
    assert "pip install" in commands()
