"""References that need other versions of libraries run in `.venv-oracle` and answer with arrays."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]


def interpreter(root: Path = ROOT) -> Path:
    """The python of the separate environment; a failure that says how to get it where there is
    none."""
    python = root / ".venv-oracle" / "bin" / "python"
    if not python.exists():
        pytest.fail(
            f"{python} is missing; `make oracle-test` creates that environment "
            "from envs/oracle.txt "
            "and then runs these tests",
            pytrace=False,
        )
    return python


def ask(
    script: str, folder: Path, tensors: dict[str, Tensor] | None = None, **question: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What tests/oracle/<script>.py answers, as arrays and as plain data; other files it needs lie
    in `folder`."""
    save_file(
        {k: v.contiguous() for k, v in (tensors or {}).items()}, folder / "question.safetensors"
    )
    (folder / "question.json").write_text(json.dumps(question))
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [interpreter(), ROOT / "tests" / "oracle" / f"{script}.py", folder],
        env={**kept, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(
            f"{script}.py ended with {done.returncode}:\n{done.stderr[-4000:]}", pytrace=False
        )
    return load_file(folder / "answer.safetensors"), json.loads(
        (folder / "answer.json").read_text()
    )
