"""Stand-ins for the tasks of config/paper.yaml that the checkout does not have: their sizes, and no data."""

from __future__ import annotations

from pathlib import Path

import yaml

from leantune import registry

# name: kind, examples of train, validation and test, batch, length
TASKS = {
    "glue-sst2": ("classification", 66349, 1000, 872, 32, 128),
    "glue-cola": ("classification", 7696, 855, 1043, 32, 128),
    "glue-mrpc": ("classification", 3302, 366, 408, 32, 128),
    "glue-stsb": ("regression", 5175, 574, 1500, 32, 128),
    "glue-qqp": ("classification", 362846, 1000, 40430, 32, 128),
    "glue-mnli": ("classification", 391702, 1000, 9815, 32, 128),
    "glue-qnli": ("classification", 103743, 1000, 5463, 32, 128),
    "glue-rte": ("classification", 2241, 249, 277, 32, 128),
    "xnli": ("classification", 392702, 2490, 5010, 32, 128),
    "squad": ("classification", 85500, 2000, 10570, 32, 384),
    "e2e": ("causal_lm", 42061, 547, 630, 8, 192),
    "wikitext2": ("causal_lm", 3500, 100, 400, 8, 512),
}


def write(folder: Path) -> str:
    """Write those that are missing below `folder`; returns the value of LEANTUNE_PLUGINS."""
    for name, (kind, train, validation, test, batch, length) in TASKS.items():
        if name in registry.discover("tasks"):
            continue
        task = {
            "name": name, "summary": "A stand-in with the size of the real one.", "kind": kind,
            "source": {"local": "nowhere"},
            "splits": {"train": train, "validation": validation, "test": test},
            "training": {"steps": 1, "batch": batch, "length": length, "dtype": "bf16"},
            "metric": {"module": "classification", "score": "accuracy", "higher_is_better": True},
        }  # fmt: skip
        (folder / "tasks" / name).mkdir(parents=True)
        (folder / "tasks" / name / "task.yaml").write_text(yaml.safe_dump(task))
    folder.mkdir(exist_ok=True)
    return str(folder)
