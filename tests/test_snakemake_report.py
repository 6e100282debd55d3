"""`snakemake --report`: the tables and figures with their categories, labels and captions, without
network."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from test_dag import ROOT, Project, footprint_of

pytestmark = pytest.mark.process
DEAD = "http://127.0.0.1:9"  # nothing answers there
CATEGORIES = {
    "leaderboard": "Results",
    "decisions": "Results",
    "overall": "Results",
    "pareto": "Results",
    "budgets": "Results",
    "cells": "Records",
    "failures": "Checks",
    "calibration": "Checks",
    "footprint": "Predictions",
    "claims": "Claims",
}


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The report of a folder that holds the published tables, as a run would have left them."""
    project = Project(tmp_path_factory.mktemp("report"))
    block = {"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": ["alpha"]}
    project.configure(block, footprint=footprint_of("alpha"), claims=True)
    shutil.copytree(ROOT / "results" / "tables", project.folder / "out" / "tables")
    figures = project.folder / "out" / "figures"
    figures.mkdir()
    (figures / "chart-curves.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    words = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--report",
        "report.html",
    ]
    environment = {
        **os.environ,
        "LEANTUNE_PLUGINS": str(project.plugins),
        "HTTP_PROXY": DEAD,
        "HTTPS_PROXY": DEAD,
    }
    done = subprocess.run(
        words, cwd=project.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (project.folder / "report.html").read_text()


def embedded(html: str, name: str) -> dict:
    """One of the objects that the report's page is drawn from."""
    start = html.index("{", html.index(f'<script id="{name}">'))
    return json.JSONDecoder().raw_decode(html[start:])[0]


def test_every_table_is_in_its_category_with_its_label(html):
    results = embedded(html, "results").values()
    found = {one["labels"]["table"] for one in results if "table" in one["labels"]}
    assert found == set(CATEGORIES)
    categories = embedded(html, "categories")
    for table, category in CATEGORIES.items():
        names = {file for part in categories[category].values() for file in part}
        assert any(file.endswith(f"{table}.csv") for file in names), table


def test_every_figure_is_among_the_figures(html):
    (figures,) = embedded(html, "categories")["Figures"].values()
    assert [file.rpartition("/")[2] for file in figures] == ["chart-curves.svg"]


def test_every_table_has_its_own_caption(html):
    captions = {
        next(iter(one["labels"].values())): re.sub("<[^>]+>", "", one["caption"])
        for one in embedded(html, "results").values()
    }
    for table, caption in captions.items():
        name = "figures" if table == "chart-curves" else table
        written = (ROOT / "docs" / "captions" / f"{name}.rst").read_text()
        words = re.findall(r"\w+", written)[:8]
        assert re.findall(r"\w+", caption)[:8] == words
    assert len(set(captions.values())) == len(CATEGORIES) + 1


def test_the_introduction_is_there_and_nothing_is_fetched(html):
    assert "Read <em>decisions</em> first" in html
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?://", html)
