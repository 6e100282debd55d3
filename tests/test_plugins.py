"""Out of tree, as a stranger has it: LeanTune and the sample plugin installed from their wheels, no
checkout near."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leantune.spec import plugins

pytestmark = pytest.mark.process
ROOT = plugins.roots()[0]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with both distributions."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(ROOT / "docs" / "sample-plugin", folder / "sample")
    (folder / "methods").mkdir()  # of somebody else, where a checkout would have LeanTune's own
    alone = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*PIP, "wheel", *alone, str(ROOT), "-w", str(folder / "wheels")], check=True)
    (wheel,) = (folder / "wheels").glob("leantune-*.whl")
    subprocess.run(
        [*PIP, "install", *alone, "--target", str(folder / "library"), str(wheel)], check=True
    )
    subprocess.run(
        [*PIP, "install", *alone, "--target", str(folder / "library"), str(folder / "sample")],
        check=True,
    )
    return folder / "library"


def python(
    library: Path, folder: Path, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    settings = {k: v for k, v in os.environ.items() if k != "LEANTUNE_PLUGINS"}
    settings |= {"PYTHONPATH": str(library), **environment}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )


def leantune(
    library: Path, folder: Path, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return python(library, folder, "-m", "leantune", *words, **environment)


def test_an_installed_plugin_is_found_beside_ours(library: Path, tmp_path: Path) -> None:
    where = python(library, tmp_path, "-c", "import leantune; print(leantune.__file__)").stdout
    assert where.startswith(str(library))
    listed = leantune(library, tmp_path, "list")
    assert listed.returncode == 0, listed.stderr
    for name in ("scale_tuning", "vocab_pruning", "sentiment", "minilm-l6"):
        assert f" {name} " in listed.stdout
    assert leantune(library, tmp_path, "validate").stdout.count("scale_tuning") == 1


def test_new_never_writes_into_an_installed_package(library: Path, tmp_path: Path) -> None:
    refused = leantune(library, tmp_path, "new", "method", "mine")
    assert refused.returncode == 2
    assert "give --at DIR" in refused.stderr
    made = leantune(library, tmp_path, "new", "method", "mine", "--at", "my plugins")
    assert f"export LEANTUNE_PLUGINS='{tmp_path / 'my plugins'}'" in made.stdout
    assert leantune(library, tmp_path, "validate", "my plugins").returncode == 0
    assert " mine " not in leantune(library, tmp_path, "list").stdout
    assert " mine " in leantune(library, tmp_path, "list", LEANTUNE_PLUGINS="my plugins").stdout


def test_its_cell_runs_outside_a_checkout(library: Path, tmp_path: Path) -> None:
    words = [
        "task.steps=4",
        "task.train=32",
        "task.validation=8",
        "task.test=8",
        "task.evaluations=1",
        "task.length=16",
    ]
    sets = [word for setting in words for word in ("--set", setting)]
    done = leantune(
        library,
        tmp_path,
        "run",
        "--model",
        "minilm-l6",
        "--task",
        "sentiment",
        "--method",
        "vocab_pruning+scale_tuning",
        "--device",
        "cpu",
        "--out",
        "row.json",
        *sets,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["status"] == "ok"
    assert row["parameters"]["trainable"] == 6 * (
        4 * 384 + 1536 + 384
    )  # outputs of the linear maps
    assert row["memory"]["predicted"]["peak_bytes"] == row["memory"]["peak_bytes"]


def test_the_sample_plugins_own_tests_pass(library: Path) -> None:
    done = python(
        library, library.parent / "sample", "-m", "pytest", "-q", "-p", "no:cacheprovider"
    )
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout


def test_an_entry_point_that_names_no_package_is_told(library: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[leantune.plugins]\nmine = gone.methods\n")
    done = leantune(library, tmp_path, "list", PYTHONPATH=f"{library}{os.pathsep}{tmp_path}")
    assert done.returncode == 2
    assert "entry point 'mine' of leantune.plugins names 'gone.methods'" in done.stderr
