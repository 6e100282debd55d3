"""The pages on baselines and related systems say what is so."""

from __future__ import annotations

import csv
import re

import pytest

from leantune.prediction import one
from leantune.prediction.ask import Ask
from leantune.spec import plugins

ROOT = plugins.roots()[0]
DOCS = ROOT / "docs"
SYSTEMS = [
    "AdaLoRA",
    "CorDA",
    "VeLoRA",
    "LoRTA",
    "ID3",
    "UniPELT",
    "AdapterBias",
    "AdapterDrop",
    "SNELL",
    "SHERL",
    "PST",
    "MEFT",
    "Approx-BP",
    "MS-BP",
    "Mesa",
    "AdaLomo",
    "RSO",
    "Subset-Norm",
    "Subspace-Momentum",
    "H-Fac",
    "FWSVD",
    "joint rank-k",
    "Direction is what you need",
    "SpaLLM",
    "AlphaTuning",
    "HIGGS",
    "Athena",
]


def rows(page: str) -> list[list[str]]:
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ")
    ]


def test_every_related_system_has_a_row_and_its_methods_exist() -> None:
    table = rows("coverage.md")
    assert [s for s in SYSTEMS if not any(s in row[0] for row in table)] == []
    assert {len(row) for row in table} == {5}
    named = [
        (row[0], word)
        for row in table
        for word in re.findall(r"`([a-z][a-z0-9_]*)(?:@\w+)?`", row[4])
    ]
    known = {*plugins.discover("methods"), "adaptation", "attach", "on_progress"}
    assert [(system, word) for system, word in named if word not in known] == []
    assert {word for _, word in named} >= {
        "adalora",
        "velora",
        "adapterdrop",
        "adalomo",
        "lomo",
        "galore",
        "fwsvd",
        "qlora",
    }


@pytest.mark.process
def test_the_predicted_peaks_are_those_of_the_page() -> None:
    shown = {row[0].strip("`"): row[4] for row in rows("baselines.md") if len(row) == 5}
    found = {
        method: one.predict(Ask("bert-base", method, batch=8, length=128))["peak_bytes"]
        for method in ("dora", "lomo", "qlora")
    }
    assert {method: shown[method] for method in found} == {
        method: f"{peak / 2**20:,.1f}" for method, peak in found.items()
    }


def test_what_they_reached_is_what_is_published() -> None:
    with (ROOT / "results" / "baselines" / "tables" / "leaderboard.csv").open(newline="") as file:
        published = {
            row["method"]: row for row in csv.DictReader(file) if row["task"] == "sentiment"
        }
    found = {row[1].strip("`"): row for row in rows("baselines.md") if re.fullmatch(r"\d+", row[0])}
    assert set(found) == {
        name for name, row in published.items() if row["key"].startswith("cpu-bf16")
    }
    for name, row in found.items():
        said = published[name]
        quality, low, high = (
            f"{float(said[f'quality_{which}']):.3f}" for which in ("mean", "low", "high")
        )
        peak, trained = int(said["peak_memory_bytes"]) / 2**20, int(said["trainable_parameters"])
        assert row == [
            said["tier"],
            f"`{name}`",
            f"{quality} [{low}, {high}]",
            f"{peak:.1f}",
            f"{trained:,}",
        ]
