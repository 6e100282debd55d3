"""The scores of each task kind, as local `evaluate.Metric` modules: no network, nothing in the user's home."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence

from leantune.errors import BadInput

MODULES = ("classification", "binary_classification", "regression", "language_modelling")


def compute(module: str, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float | None]:
    """The scores of a metric module by name; None where a score is not defined (see the modules).

    Raises BadInput for an unknown module, no examples, or lists of different lengths.
    """
    if module not in MODULES:
        raise BadInput(f"unknown metric module '{module}'; known: {', '.join(MODULES)}")
    if not predictions or len(predictions) != len(references):
        raise BadInput(
            f"{module} needs as many predictions as references and at least one; "
            f"got {len(predictions)} and {len(references)}"
        )
    metric = importlib.import_module(f"leantune.metrics.{module}").Metric  # here, since evaluate takes seconds
    with tempfile.TemporaryDirectory() as folder:
        loaded = metric(cache_dir=folder, keep_in_memory=True)
        return loaded.compute(predictions=list(predictions), references=list(references))
