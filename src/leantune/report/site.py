"""Puts the report together: data, charts and tables into the templates, the libraries' JavaScript
beside them.

Everything is in the files that are written; nothing is fetched. Names and errors of records are
text that somebody else wrote: the templates escape them, JSON is escaped for its script tag, and a
content security policy lets no script run but the three that are named by their hash.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from leantune.files.record import value
from leantune.files.text import write_text
from leantune.report import answer, charts, sentences, views
from leantune.report.data import Content, Leaderboard, Line, read_content, slug
from leantune.report.scripts import HERE, policy, scripts, styles
from leantune.spec import plugins
from leantune.spec.stacks import plugin_names

if TYPE_CHECKING:
    from leantune.spec.schema import MethodFile

FACTS = {
    "machine": "provenance.hardware.name",
    "system": "provenance.hardware.system",
    "cores": "provenance.hardware.cores",
    "device": "key.device",
    "python": "provenance.python",
    "commit": "provenance.commit",
    "uncommitted changes": "provenance.dirty",
    "measurement version": "key.measurement",
}


def write_report(results: Path, out: Path) -> Path:
    """Write `index.html` and `methods/*.html` below `out` from a folder of results; returns the
    page.

    The same results give the same bytes. Raises BadInput where the folder holds no results or
    cannot be written.
    """
    content = read_content(results)
    csv = f"{os.path.relpath(results, out).replace(os.sep, '/')}/tables"
    specs = {name: _spec(name) for name in sorted(_methods(content))}
    summaries = {name: spec.summary if spec else "" for name, spec in specs.items()}
    code, (css, style) = scripts(), styles()
    page = _environment().get_template("index.html.j2")
    text = page.render(
        overview=sentences.overview(content),
        choices=answer.choices(content, summaries),
        boards=[(board, _parts(board, content)) for board in content.leaderboards],
        tables=_tables(content),
        footprint=charts.footprint(content.tables["footprint"]),
        environment=_environment_facts(content),
        **{"content": content, "sentences": sentences, "themed": _themed, "csv": csv},
        **{"scripts": code, "policy": policy(code.values()), "css": css, "style": style},
    )
    write_text(out / "index.html", text)
    for name, spec in specs.items():
        text = _method_page(name, spec, content, csv=f"../{csv}", style=style)
        write_text(out / "methods" / f"{slug(name)}.html", text)
    return out / "index.html"


@cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    return found


def _themed(chart: charts.Chart) -> dict[str, Any]:
    words = {"description": f"{chart.title}. {chart.says}"}
    return {**charts.themed(chart.spec, "currentColor"), **words}


def _parts(board: Leaderboard, content: Content) -> dict[str, Any]:
    """What the page shows of a leaderboard."""
    says = next((row["says"] for row in board.of(content.tables["decisions"])), "")
    says = f"T{says[1:]}" if says.startswith(("this ", "the ")) else says  # not a method's name
    rows = [*board.rows, *(Line({**row, "tier": ""}) for row in board.controls)]
    caption, name = f"Leaderboard: {board.name}", f"leaderboard-{board.slug}"
    return {
        "says": f"{says}." if says else "",
        "table": views.table("leaderboard", caption, rows, name=name, methods="methods"),
        "charts": charts.of_board(board, content),
        "failed": board.of(content.tables["failures"]),
    }


def _tables(content: Content) -> dict[str, dict[str, Any]]:
    """The tables of the page, by their view."""
    captions = {
        "cells": "Every run",
        "footprint": "Predicted memory at paper scale",
        "batches": "The largest batch that fits",
        "claims": "Claims of the papers",
        "failures": "Runs without a usable result",
        "calibration": "Checks of the meter",
    }
    rows = {view: content.tables[views.VIEWS[view][0]] for view in captions}
    asked = [name for name in views.VIEWS["batches"][1].split() if name.startswith("largest")]
    rows["batches"] = [row for row in rows["batches"] if any(row[name] for name in asked)]
    return {
        view: views.table(view, caption, rows[view], methods="methods")
        for view, caption in captions.items()
    }


def _environment_facts(content: Content) -> list[tuple[str, str]]:
    """What the records ran on: each fact with the values that occur and in how many records."""
    packages = {name for r in content.records for name in value(r, "provenance.packages") or {}}
    paths = FACTS | {name: f"provenance.packages.{name}" for name in sorted(packages)}
    facts = []
    for title, path in paths.items():
        found = [told for r in content.records if (told := value(r, path)) is not None]
        counts = {str(told): found.count(told) for told in found}
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        facts.append((title, "; ".join(f"{told} ({count})" for told, count in ordered)))
    return [(title, told) for title, told in facts if told]


# ------------------------------------------------------------------ the pages of methods


def _methods(content: Content) -> set[str]:
    """The methods that the tables speak of, each part of a stack on its own."""
    tables = ("leaderboard", "cells", "footprint", "claims")
    stacks = {row["method"] for name in tables for row in content.tables[name]}
    return {part for stack in stacks for part in plugin_names(stack) if part}


def _spec(method: str) -> MethodFile | None:
    known = method in plugins.discover("methods")
    return plugins.get("methods", method).spec if known else None


def _method_page(method: str, spec: MethodFile | None, content: Content, **more: Any) -> str:
    about = {
        name: [row for row in content.tables[name] if method in plugin_names(row["method"])]
        for name in ("cells", "footprint", "claims")
    }
    order = ("model", "task", "key", "method", "seed", "trial")
    runs = sorted(about["cells"], key=lambda row: [row[name] for name in order])
    claims = [row for row in about["claims"] if row["method"] == method]
    tables = [
        views.table("runs", f"Runs with {method}", runs),
        views.table("footprint", f"Predicted memory with {method}", about["footprint"]),
        views.table("claims of a method", f"Claims of {method}", claims, name="claims"),
    ]
    arxiv = (spec and spec.paper.arxiv) or ""
    known = arxiv if re.fullmatch(r"\d{4}\.\d{4,5}", arxiv) else None
    page = _environment().get_template("method.html.j2")
    told = {"name": method, "spec": spec, "arxiv": known, "policy": policy([])}
    return page.render(**told, tables=tables, **more)
