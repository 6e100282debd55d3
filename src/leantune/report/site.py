"""Puts the report together: data, charts and tables into the templates, the libraries' JavaScript
beside them.

Everything is in the files that are written; nothing is fetched. Names and errors of records are
text that somebody else wrote: the templates escape them, JSON is escaped for its script tag, and a
content security policy lets no script run but the three that are named by their hash.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair
import jinja2
import vl_convert
from markupsafe import Markup

from leantune.errors import BadInput
from leantune.files.record import value
from leantune.files.text import write_text
from leantune.prediction.paper_scale import BUDGETS_GIB
from leantune.report import answer, charts, sentences, views
from leantune.report.charts import Chart
from leantune.report.data import Group, Results, Row, read_results, slug
from leantune.spec import plugins
from leantune.spec.stacks import plugin_names

if TYPE_CHECKING:
    from leantune.spec.schema import MethodFile

HERE = Path(__file__).parent
VEGA_LITE = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def write_report(results: Path, out: Path) -> Path:
    """Write `index.html` and `methods/*.html` below `out` from a folder of results; returns the
    page.

    The same results give the same bytes. Raises BadInput where the folder holds no results or
    cannot be written.
    """
    read = read_results(results)
    links = Links(os.path.relpath(results, out).replace(os.sep, "/"))
    groups = [_group_view(group, read) for group in read.groups]
    overview = _overview_tables(read)
    scripts = {
        "vega": _vega(),
        "tables": _datatables(),
        "page": inline((HERE / "page.js").read_text(encoding="utf-8")),
    }
    specs = {name: _spec(name) for name in sorted(_methods(read))}
    summaries = {name: spec.summary if spec else "" for name, spec in specs.items()}
    page = (
        _environment()
        .get_template("index.html.j2")
        .render(
            overview=sentences.overview(read),
            choices=answer.choices(read, summaries),
            groups=groups,
            tables=overview,
            footprint=charts.footprint(read.tables["footprint"]),
            environment=_environment_facts(read),
            methods=[
                {"name": name, "slug": slug(name), "summary": summary}
                for name, summary in summaries.items()
            ],
            links=links,
            scripts=scripts,
            policy=_policy(scripts.values()),
            css=Markup(_table_css()),
            style=_style(),
            charts_themed=_page_spec,
            sentences=sentences,
            read=read,
        )
    )
    write_text(out / "index.html", page)
    for name in specs:
        write_text(out / "methods" / f"{slug(name)}.html", _method_page(name, read, links))
    return out / "index.html"


def write_figures(results: Path, out: Path) -> list[Path]:
    """Write every chart as PDF and SVG below `out`, black on white; returns the files, none where
    nothing can be drawn."""
    read = read_results(results)
    found = [chart for group in read.groups for chart in charts.of_group(group, read)]
    found += [chart for chart in [charts.footprint(read.tables["footprint"])] if chart is not None]
    files: list[Path] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for chart in found:
            spec = json.dumps(charts.themed(_fixed_width(chart.spec), "black"))
            svg = _counted_from_0(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
            files += [out / f"{chart.id}.svg", out / f"{chart.id}.pdf"]
            files[-2].write_text(svg, encoding="utf-8")
            files[-1].write_bytes(vl_convert.svg_to_pdf(svg))
    except OSError as error:
        raise BadInput(
            f"cannot write {error.filename}: {error.strerror}; choose another folder"
        ) from error
    return files


def _counted_from_0(svg: str) -> str:
    """Vega numbers gradients and clips on from the chart before; a figure must not depend on that."""
    pattern = r"\b(gradient_|clip)(\d+)\b"
    numbers = {name: n for n, name in enumerate(dict.fromkeys(re.findall(rf'id="{pattern}"', svg)))}
    return re.sub(pattern, lambda found: f"{found[1]}{numbers.get(found.groups(), found[2])}", svg)


def _fixed_width(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A chart that fills its container on the page is 500 points wide on paper. Around it is room
    for the labels of a reader whose font is wider than the one that the chart was laid out with."""
    width = {"width": 500} if spec.get("width") == "container" else {}
    return {**spec, **width, "padding": {"left": 40, "right": 60, "top": 10, "bottom": 10}}


# ------------------------------------------------------------------ the page


class Links:
    """Addresses relative to the page: of the CSV files behind a view."""

    def __init__(self, results: str) -> None:
        self.results = results

    def csv(self, name: str, above: str = "") -> str:
        return f"{above}{self.results}/tables/{name}.csv"


def _group_view(group: Group, read: Results) -> dict[str, Any]:
    says = next((row["says"] for row in group.of(read.tables["decisions"])), "")
    says = f"T{says[1:]}." if says.startswith(("this ", "the ")) else f"{says}." if says else ""
    rows = [*group.rows, *(Row({**row, "tier": ""}) for row in group.controls)]
    return {
        "name": group.name,
        "slug": group.slug,
        "key": group.key,
        "metric": group.metric,
        "better": "higher" if group.higher_is_better else "lower",
        "says": says,
        "table": views.table(
            f"leaderboard-{group.slug}",
            f"Leaderboard: {group.name}",
            views.LEADERBOARD[2:-1],
            rows,
            "leaderboard",
            "methods",
        ),
        "charts": charts.of_group(group, read),
        "failed": [row for row in group.of(read.tables["failures"])],
    }


def _overview_tables(read: Results) -> dict[str, views.Table]:
    tables = read.tables
    asked = [
        r for r in tables["footprint"] if any(r[f"largest_batch_{gib}gib"] for gib in BUDGETS_GIB)
    ]
    return {
        name: views.table(name, caption, columns, rows, csv, "methods")
        for name, caption, columns, rows, csv in (
            ("cells", "Every run", views.CELLS, tables["cells"], "cells"),
            (
                "footprint",
                "Predicted memory at paper scale",
                views.FOOTPRINT,
                tables["footprint"],
                "footprint",
            ),
            ("batches", "The largest batch that fits", views.BATCHES, asked, "footprint"),
            ("claims", "Claims of the papers", views.CLAIMS, tables["claims"], "claims"),
            (
                "failures",
                "Runs without a usable result",
                views.FAILURES,
                tables["failures"],
                "failures",
            ),
            (
                "calibration",
                "Checks of the meter",
                views.CALIBRATION,
                tables["calibration"],
                "calibration",
            ),
        )
    }


def _environment_facts(read: Results) -> list[tuple[str, str]]:
    """What the records ran on: each fact with the values that occur and in how many records."""
    facts: list[tuple[str, str]] = []
    paths = {
        "machine": "provenance.hardware.name",
        "system": "provenance.hardware.system",
        "cores": "provenance.hardware.cores",
        "device": "key.device",
        "python": "provenance.python",
        "commit": "provenance.commit",
        "uncommitted changes": "provenance.dirty",
        "measurement version": "key.measurement",
    }
    names = sorted({name for r in read.records for name in value(r, "provenance.packages") or {}})
    for title, path in [*paths.items(), *((name, f"provenance.packages.{name}") for name in names)]:
        found = [value(record, path) for record in read.records]
        counts = {str(v): found.count(v) for v in found if v is not None}
        if counts:
            facts.append(
                (
                    title,
                    "; ".join(
                        f"{v} ({n})" for v, n in sorted(counts.items(), key=lambda i: (-i[1], i[0]))
                    ),
                )
            )
    return facts


# ------------------------------------------------------------------ the pages of methods


def _methods(read: Results) -> set[str]:
    """The methods that the tables speak of, each part of a stack on its own."""
    tables = ("leaderboard", "cells", "footprint", "claims")
    return {
        part
        for name in tables
        for row in read.tables[name]
        for part in plugin_names(row["method"])
        if part
    }


def _spec(method: str) -> MethodFile | None:
    known = method in plugins.discover("methods")
    return plugins.get("methods", method).spec if known else None


def _method_page(method: str, read: Results, links: Links) -> str:
    def about(name: str) -> list[Row]:
        return [row for row in read.tables[name] if method in plugin_names(row["method"])]

    spec = _spec(method)
    arxiv = (spec and spec.paper.arxiv) or ""
    runs = sorted(
        about("cells"),
        key=lambda r: (r["model"], r["task"], r["key"], r["method"], r["seed"], r["trial"]),
    )
    tables = [
        views.table("runs", f"Runs with {method}", views.RUNS, runs, "cells", None),
        views.table(
            "footprint",
            f"Predicted memory with {method}",
            views.FOOTPRINT,
            about("footprint"),
            "footprint",
            None,
        ),
        views.table(
            "claims",
            f"Claims of {method}",
            (*views.CLAIMS[1:], views.COMMAND),
            [r for r in read.tables["claims"] if r["method"] == method],
            "claims",
            None,
        ),
    ]
    return (
        _environment()
        .get_template("method.html.j2")
        .render(
            name=method,
            spec=spec,
            arxiv=arxiv if re.fullmatch(r"\d{4}\.\d{4,5}", arxiv) else None,
            tables=tables,
            links=links,
            style=_style(),
            policy=_policy([]),
        )
    )


# ------------------------------------------------------------------ templates, scripts and styles


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


def _style() -> Markup:
    return Markup((HERE / "style.css").read_text(encoding="utf-8"))


def _page_spec(chart: Chart) -> dict[str, Any]:
    return {
        **charts.themed(chart.spec, "currentColor"),
        "description": f"{chart.title}. {chart.says}",
    }


def inline(script: str) -> Markup:
    """A script that may stand between script tags: nothing in it ends them or opens a comment."""
    return Markup(script.replace("<!--", "<\\!--").replace("</script", "<\\/script"))


@cache
def _vega() -> Markup:
    bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]  # the stub wants a snippet
    return inline(bundle)


@cache
def _datatables() -> Markup:
    """DataTables with its buttons, as bundled for `itables`; its default export becomes
    `window.DataTable`."""
    bundle = _itables("dt_bundle.js")
    script, count = re.subn(
        r"export\{[^}]*?\b([\w$]+) as default\b[^}]*\};?", r"window.DataTable=\1;", bundle
    )
    if count != 1:
        raise BadInput(
            "the installed itables bundles DataTables in a way not known here; install the version of the lock"
        )
    return inline(script)


def _table_css() -> str:
    return _itables("dt_bundle.css").replace("</style", "<\\/style")


def _itables(name: str) -> str:
    return (importlib.resources.files("itables") / "html" / name).read_text(encoding="utf-8")


def _policy(scripts: Any) -> str:
    """A content security policy: these scripts and no other, and nothing from the network."""
    hashes = [
        base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
        for script in scripts
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    script = (
        f"script-src {allowed} 'unsafe-eval'" if allowed else "script-src 'none'"
    )  # Vega compiles expressions
    return f"default-src 'none'; {script}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
