"""The scripts of docs/apply.md run as they are, without a network, learn, and leave a model that
loads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import leantune
from leantune.prediction import one
from leantune.prediction.ask import Ask
from leantune.spec import plugins

pytestmark = pytest.mark.process
ROOT = plugins.roots()[0]
DEAD = "http://127.0.0.1:9"  # nothing answers there
STACKS = {
    "plain_loop": "vocab_pruning+svfit+came",
    "trainer": "safe",
    "accelerate_loop": "vocab_pruning+lora",
}


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, text
    return [float(number.replace(",", "")) for number in found.groups()]


@pytest.mark.parametrize("name", STACKS)
def test_it_learns_counts_what_leantune_counts_and_exports(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD}
    words = [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(tmp_path)]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (before,), (after,) = (
        numbers(rf"{when} +accuracy (\S+)", done.stdout) for when in ("before", "after")
    )
    assert after > before + 0.03
    settings = {"lora.rank": 16} if "lora" in STACKS[name] else {}
    if "vocab_pruning" in STACKS[name]:
        (kept,) = numbers(r"kept +(\S+) of 30,522 tokens", done.stdout)
        settings["vocab_pruning.vocabulary"] = int(kept)
    found = one.predict(
        Ask(
            "minilm-l6", STACKS[name], batch=16, length=48, settings=settings, head="classification"
        )
    )
    assert numbers(r"trained +(\S+) parameters", done.stdout) == [
        found["parameters"]["trainable"] + found["parameters"]["head"]
    ]
    model = leantune.load(str(tmp_path))
    with torch.no_grad():
        assert model(torch.tensor([[101, 30521, 102]])).logits.shape == (
            1,
            2,
        )  # a token that no text has


def test_every_script_is_shown_and_run() -> None:
    page = (ROOT / "docs" / "apply.md").read_text(encoding="utf-8")
    scripts = {file.stem for file in (ROOT / "examples").glob("*.py")}
    assert (
        scripts == {*STACKS, "sentiment"} == set(re.findall(r'--8<-- "examples/(\w+)\.py"', page))
    )
