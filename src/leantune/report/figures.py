"""The charts as files for a paper: PDF and SVG, black on white."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert

from leantune.errors import BadInput
from leantune.report import charts
from leantune.report.data import read_content


def write_figures(results: Path, out: Path) -> list[Path]:
    """Write every chart as PDF and SVG below `out`, black on white; returns the files, none where
    nothing can be drawn."""
    content = read_content(results)
    boards = content.leaderboards
    found = [chart for board in boards for chart in charts.of_board(board, content)]
    found += filter(None, [charts.footprint(content.tables["footprint"])])
    files: list[Path] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for chart in found:
            spec = json.dumps(charts.themed(_fixed_width(chart.spec), "black"))
            svg = _counted_from_0(vl_convert.vegalite_to_svg(spec, vl_version=charts.VERSION))
            files += [out / f"{chart.id}.svg", out / f"{chart.id}.pdf"]
            files[-2].write_text(svg, encoding="utf-8")
            files[-1].write_bytes(vl_convert.svg_to_pdf(svg))
    except OSError as error:
        raise BadInput(
            f"cannot write {error.filename}: {error.strerror}; choose another folder"
        ) from error
    return files


def _counted_from_0(svg: str) -> str:
    """Vega numbers gradients and clips on from the chart before; a figure must not depend on
    that."""
    pattern = r"\b(gradient_|clip)(\d+)\b"
    numbers = {name: n for n, name in enumerate(dict.fromkeys(re.findall(rf'id="{pattern}"', svg)))}
    return re.sub(pattern, lambda found: f"{found[1]}{numbers.get(found.groups(), found[2])}", svg)


def _fixed_width(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A chart that fills its container on the page is 500 points wide on paper. Around it is room
    for the labels of a reader whose font is wider than the one that the chart was laid out with."""
    width = {"width": 500} if spec.get("width") == "container" else {}
    return {**spec, **width, "padding": {"left": 40, "right": 60, "top": 10, "bottom": 10}}
