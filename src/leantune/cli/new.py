"""`leantune new`: a method or task folder that validates and runs as it is, to be edited from
there."""

from __future__ import annotations

import re
from pathlib import Path

from leantune.errors import BadInput

METHOD_YAML = """name: {name}
summary: Say in one sentence what {name} saves and how.
slot: adaptation             # vocabulary | adaptation | optimizer
params:
  lr: 1.0e-3                 # learning rate of what you train in the body; the head keeps the task's
inferred: [lr]               # defaults that no paper states
"""
METHOD_PY = '''"""{title}: say which equation of which paper this is."""

from leantune.api import Context, Data, Method, freeze_body
from torch import nn


class {cls}(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        freeze_body(model)
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name or "norm" in name:  # what your method trains
                parameter.requires_grad_(True)
        return model, data
'''
TASK_YAML = """name: {name}
summary: Say in one sentence what the texts and labels of {name} are.
kind: classification         # classification | regression | causal_lm | masked_lm | span | generation
source:
  local: data                # a folder beside this file; or package:, or hub:
splits: {{train: 200, validation: 50, test: 100, seed: 0}}
training: {{steps: 25, batch: 16, length: 48}}
metric: {{module: classification, score: accuracy, higher_is_better: true}}
"""
TASK_PY = '''"""How the raw files of the task become examples."""

import csv
from pathlib import Path

from datasets import Dataset


def load(folder: Path) -> dict[str, Dataset]:
    """`text` and `label` of every example; one split `all` is divided by the harness, or give train and test."""
    with (folder / "examples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {"all": Dataset.from_dict({"text": [r["text"] for r in rows], "label": [r["label"] for r in rows]})}
'''


def create(kind: str, name: str, root: Path) -> Path:
    """Write the folder of a new method or task below `root`. Raises BadInput where it exists or the
    name is bad."""
    pattern = r"[a-z][a-z0-9_]*" if kind == "method" else r"[a-z][a-z0-9-]*"
    if not re.fullmatch(pattern, name):
        raise BadInput(f"'{name}' cannot name a {kind}: use {pattern}")
    folder = root / f"{kind}s" / name
    if folder.exists():
        raise BadInput(f"{folder} exists already; choose another name or edit it")
    words = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "cls": name.title().replace("_", ""),
    }
    files = (
        {"method.yaml": METHOD_YAML, "method.py": METHOD_PY}
        if kind == "method"
        else {"task.yaml": TASK_YAML, "task.py": TASK_PY}
    )
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(
            text.format(**words) if "{name}" in text or "{cls}" in text else text
        )
    return folder
