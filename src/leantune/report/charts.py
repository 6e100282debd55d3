"""The charts as Vega-Lite specifications (https://vega.github.io/vega-lite): the rows that they
draw, and a mapping that says how; one look for the page and for a paper.

The palette is that of Okabe and Ito, which people with any colour vision tell apart. Text and lines
take the ink: `currentColor` on the page, so that they follow its theme, black on paper.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leantune.files.record import BYTE_KINDS, Record
from leantune.report import sentences
from leantune.report.data import Content, Leaderboard, Line, shares_of_full, slug, with_number
from leantune.results.comparable import Row

VERSION = "6.4"  # of Vega-Lite; vl-convert holds several
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#808080")
DASHES = ([1, 0], [6, 3], [2, 2])
MIB, GIB = 2**20, 2**30
# Pixels of a chart of quality; the width is a guess, since the page decides it.
WIDTH, HEIGHT = 800, 340
FRONT = {"on the front": "circle", "off the front": "cross"}
TYPES = {"Q": "quantitative", "N": "nominal", "O": "ordinal"}


@dataclass(frozen=True)
class Chart:
    """`id` without its prefix `chart-`; `csv` is the file behind it, or None where that is the
    records themselves."""

    id: str
    title: str
    says: str
    spec: dict[str, Any]
    csv: str | None


def themed(spec: Mapping[str, Any], ink: str) -> dict[str, Any]:
    """The specification with the look of the page or of a paper."""
    lines = {f"{part}Color": ink for part in ("domain", "tick", "label", "title", "grid")}
    text = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    colours = {"labelColor": ink, "titleColor": ink}
    symbols = {"symbolOpacity": 1, "symbolBaseFillColor": ink, "symbolBaseStrokeColor": ink}
    config = {
        "background": "transparent" if ink == "currentColor" else "white",
        "font": "Liberation Sans, Arial, Helvetica, sans-serif",
        "view": {"stroke": None},
        "axis": {**lines, "gridOpacity": 0.15, "domainOpacity": 0.5, "tickOpacity": 0.5, **text},
        "legend": {
            **colours,
            **text,
            "orient": "bottom",
            "columns": 4,
            **symbols,
            "labelLimit": 220,
        },
        "header": {**colours, "labelFontSize": 13},
        "title": {"color": ink},
        "text": {"color": ink, "fontSize": 12},
        "range": {"category": list(PALETTE)},
    }
    schema = f"https://vega.github.io/schema/vega-lite/v{VERSION}.json"
    return {"$schema": schema, **spec, "config": config}


def of_board(board: Leaderboard, content: Content) -> list[Chart]:
    """Every chart that there is data for."""
    records = content.usable(board)
    found = [
        _quality_against(board, content, "memory"),
        _quality_against(board, content, "time"),
        _waterfall(board, content),
        _intervals(board, records),
        *_ranks(board, records),
        _curves(board, records),
    ]
    return [chart for chart in found if chart is not None]


def _unit(largest: float) -> tuple[float, str]:
    return (GIB, "GiB") if largest >= 4 * GIB else (MIB, "MiB")


def _field(short: str, **more: Any) -> dict[str, Any]:
    """A channel of a chart from `name:Q`, the column and its type."""
    name, _, kind = short.partition(":")
    return {"field": name, "type": TYPES[kind], **more}


def _by_method(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """A scale that gives each name a value, from the first again where there are more names."""
    return {"domain": names, "range": list(itertools.islice(itertools.cycle(values), len(names)))}


def _on_blue(dark: str) -> dict[str, Any]:
    return {"condition": {"test": dark, "value": "white"}, "value": "black"}


# ------------------------------------------------------------------ quality against memory and time


def _quality_against(board: Leaderboard, content: Content, what: str) -> Chart | None:
    """Quality against memory or time: a point for each method, its interval, and the line of the
    best within each budget."""
    in_memory = what == "memory"
    column = "peak_memory_bytes" if in_memory else "step_seconds_median"
    scored = with_number(board.scored, column)
    if not scored:
        return None
    largest = max(row.number(column) or 0 for row in scored)
    size, unit = _unit(largest) if in_memory else (0.001, "ms")
    pareto = board.of(content.tables["pareto"])
    on_front, off_front = FRONT
    front = {row["method"] for row in pareto if row["on_front"] == "true"}
    points: list[Row] = [
        {
            "method": row["method"],
            "x": (row.number(column) or 0) / size,
            "quality": row.number("quality_mean"),
            "low": row.number("quality_low"),
            "high": row.number("quality_high"),
            "tier": row["tier"] or "none",
            "front": on_front if row["method"] in front else off_front,
        }
        for row in scored
    ]
    steps = [
        {"x": (row.number("budget") or 0) / size, "quality": row.number("quality_mean")}
        for row in board.of(content.tables["budgets"])
        if row["budget_kind"] == column
    ]
    steps += [{**step, "x": largest / size} for step in steps[-1:]]  # the last goes on to the end
    return Chart(
        f"{what}-{board.slug}",
        f"Quality against {'peak memory' if in_memory else 'step time'}: {board.name}",
        sentences.memory(board) if in_memory else sentences.time(board),
        _points(
            points, steps, f"{'peak memory' if in_memory else 'median step time'} ({unit})", board
        ),
        "pareto",
    )


def _points(
    points: Sequence[Row], steps: Sequence[Row], title: str, board: Leaderboard
) -> dict[str, Any]:
    across, heights = _edges(points)
    _label(points, across, heights)
    scale = {"domain": heights, "nice": False} if heights[0] < heights[1] else {}
    tiers = sorted({point["tier"] for point in points}, key=lambda text: (len(text), text))
    shapes = {"domain": [*FRONT], "range": [*FRONT.values()]}
    told = {"method:N": "method", "quality:Q": board.metric, "low:Q": "low", "high:Q": "high"}
    told |= {"x:Q": title, "tier:N": "tier"}
    tips = [_field(short, title=words) for short, words in told.items()]
    x = {"scale": {"domain": [max(0, across[0]), across[1]], "nice": False}, "title": title}
    y = _field("quality:Q", scale={**scale, "zero": False}, title=board.metric)
    colour = _field("tier:N", scale=_by_method(tiers, PALETTE), sort=tiers, title="tier")
    thin = {"clip": True, "aria": False, "opacity": 0.45, "strokeWidth": 2}
    line = {"interpolate": "step-after", "aria": False, "color": "#808080", "opacity": 0.6}
    return {
        "width": "container",
        "height": HEIGHT,
        "data": {"values": points},
        "encoding": {"x": _field("x:Q", axis={"tickCount": 8}, **x)},
        "layer": [
            {
                "data": {"values": steps},
                "mark": {"type": "line", **line},
                "encoding": {"y": y},
            },
            {
                "data": {"values": [p for p in points if None not in (p["low"], p["high"])]},
                "mark": {"type": "rule", **thin},
                "encoding": {
                    "y": _field("low:Q", title=board.metric),
                    "y2": {"field": "high"},
                    "color": colour,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "opacity": 1, "size": 90},
                "encoding": {
                    "y": y,
                    "color": colour,
                    "shape": _field("front:N", scale=shapes, title=None),
                    "tooltip": tips,
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 7, "dy": -7, "limit": 170},
                "encoding": {
                    "y": _field("label:Q", title=board.metric),
                    "text": _field("method:N"),
                },
            },
        ],
    }


def _edges(points: Sequence[Row]) -> tuple[list[float], list[float]]:
    """The ends of both axes, with room for labels at the right. Intervals of methods that are not
    placed are so wide that they may run out of the chart."""
    left, right = (how(point["x"] for point in points) for how in (min, max))
    room = 0.06 * (right - left or right or 1)
    ends = [point[name] for point in points if point["tier"] != "none" for name in ("low", "high")]
    ends = [end for end in (*ends, *(point["quality"] for point in points)) if end is not None]
    low, high = min(ends), max(ends)
    heights = [low - 0.04 * (high - low), high + 0.06 * (high - low)]
    return [left - room, right + 4 * room], heights


def _label(points: Sequence[Row], across: Sequence[float], heights: Sequence[float]) -> None:
    """Give each point the height of its label: its own, or the nearest where no label before it
    stands in the way."""
    wide, high = WIDTH / (across[1] - across[0] or 1), HEIGHT / (heights[1] - heights[0] or 1)
    taken: list[tuple[float, float, float]] = []  # left and right edge and height, in pixels
    for point in sorted(points, key=lambda point: (-point["quality"], point["x"])):
        left, at = point["x"] * wide + 9, point["quality"] * high
        right = left + 7 * len(point["method"])
        near = [top for start, end, top in taken if start <= right and left <= end]
        tries = [at + shift for shift in (0, -13, 13, -26, 26, -39, 39)]
        free = [y for y in tries if all(abs(y - top) >= 12 for top in near)]
        taken.append((left, right, (free or tries)[0]))
        point["label"] = taken[-1][2] / high


# ------------------------------------------------------------------ where the memory goes


def _waterfall(board: Leaderboard, content: Content) -> Chart | None:
    """From the peak of `full` down to that of each method, a bar for each kind of bytes."""
    kinds = _kinds(board.of(content.tables["cells"]))
    if "full" not in kinds or len(kinds) < 2:
        return None
    full, others = kinds["full"], {m: found for m, found in kinds.items() if m != "full"}
    size, unit = _unit(max(sum(found.values()) for found in kinds.values()))
    rows: list[Row] = []
    for method, found in others.items():
        # The height before the first kind, after each, and so at last that of the method.
        steps = (found[kind] - full[kind] for kind in BYTE_KINDS)
        heights = list(itertools.accumulate(steps, initial=sum(full.values())))
        bars = zip(BYTE_KINDS, itertools.pairwise(heights), strict=True)
        ends = [("full", (0, heights[0])), *bars, ("method", (0, heights[-1]))]
        rows += [_bar(method, kind, start / size, end / size) for kind, (start, end) in ends]
    colours = {"domain": ["less", "more", "total"], "range": [PALETTE[2], PALETTE[3], PALETTE[0]]}
    order = ["full", *BYTE_KINDS, "method"]
    change = _field("change:Q", format="+,.1f", title=unit)
    spec = {
        "data": {"values": rows},
        "facet": _field("method:N", title=None),
        "columns": 4,
        "spec": {
            "mark": {"type": "bar", "size": 11},
            "encoding": {
                "x": _field("from:Q", title=f"bytes at the peak ({unit})"),
                "x2": {"field": "to"},
                "y": _field("kind:N", sort=order, title=None),
                "color": _field("sort:N", scale=colours, title=None),
                "tooltip": [_field("method:N"), _field("kind:N"), change],
            },
            "width": 185,
            "height": 150,
        },
    }
    title = f"From full fine-tuning to each method: {board.name}"
    return Chart(f"waterfall-{board.slug}", title, sentences.waterfall(kinds), spec, "cells")


def _kinds(cells: Sequence[Line]) -> dict[str, dict[str, float]]:
    """By method the bytes of each kind in the run with the highest peak."""
    known = with_number(cells, "weights_bytes")
    ok = [row for row in known if row["status"] == "ok" and not row["trial"]]
    # A mapping keeps the last row of a method, so of equal peaks the first must come last.
    rising = sorted(reversed(ok), key=lambda row: row.number("tensors_peak_bytes") or 0)
    highest = {row["method"]: row for row in rising}
    return {
        method: {kind: row.number(f"{kind}_bytes") or 0.0 for kind in BYTE_KINDS}
        for method, row in sorted(highest.items())
    }


def _bar(method: str, kind: str, start: float, end: float) -> Row:
    sort = "total" if kind in ("full", "method") else "more" if end > start else "less"
    ends = {"from": start, "to": end, "sort": sort, "change": end - start}
    return {"method": method, "kind": kind, **ends}


def _ranks(board: Leaderboard, records: Sequence[Record]) -> list[Chart]:
    """A heat map of the ranks that a method kept in each linear map, for the first seed of each
    method."""
    told = {r["cell"]["method"]: r["details"].get("ranks") for r in reversed(records)}
    found = {method: ranks for method, ranks in sorted(told.items()) if isinstance(ranks, dict)}
    return [
        Chart(
            f"ranks-{slug(method)}-{board.slug}",
            f"Ranks that {method} kept: {board.name}",
            sentences.ranks(method, ranks),
            _heat_map(ranks),
            None,
        )
        for method, ranks in found.items()
        if len({*ranks.values()}) > 1
    ]


def _heat_map(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Of ranks by module: the layer number across, the rest of the module's name down."""
    layers = {name: re.search(r"\.(\d+)\.(.+)$", name) for name in sorted(ranks)}
    rows = [
        {
            "layer": int(layer.group(1)) if layer else 0,
            "map": layer.group(2) if layer else name,
            "rank": ranks[name],
            "name": name,
        }
        for name, layer in layers.items()
    ]
    blue = _field("rank:Q", legend=None, scale={"scheme": "blues", "domainMin": 0})
    white = _on_blue(f"datum.rank > {max(ranks.values()) / 2:g}")
    return {
        "width": "container",
        "height": 26 * len({row["map"] for row in rows}),
        "data": {"values": rows},
        "encoding": {
            "x": _field("layer:O", axis={"labelAngle": 0}, title="layer"),
            "y": _field("map:N", axis={"labelLimit": 170}, title=None),
        },
        "layer": [
            {
                "mark": {"type": "rect"},
                "encoding": {"color": blue, "tooltip": [_field("name:N"), _field("rank:Q")]},
            },
            {"mark": {"type": "text"}, "encoding": {"color": white, "text": _field("rank:Q")}},
        ],
    }


# ------------------------------------------------------------------ lines over steps


def _intervals(board: Leaderboard, records: Sequence[Record]) -> Chart | None:
    """The peak of a step while the run goes on, of the methods that change it."""
    tensors = [(record, record["memory"]["tensors"] or {}) for record in records]
    changing = [(r, parts) for r, t in tensors if len(parts := t.get("intervals") or []) > 1]
    if not changing:
        return None
    size, unit = _unit(max(part["peak_bytes"] for _, parts in changing for part in parts))
    rows = [
        {**_run(record), "step": part["step"], "peak": part["peak_bytes"] / size}
        for record, parts in changing
        for part in (*parts, {**parts[-1], "step": record["key"]["steps"]})  # on to the end
    ]
    y = _field("peak:Q", scale={"zero": True}, title=f"peak of a step ({unit})")
    tip = _field("peak:Q", format=",.1f", title=unit)
    spec = _lines(rows, y, tip, 220, {"interpolate": "step-after", "strokeWidth": 2})
    says = sentences.intervals([record for record, _ in changing])
    title = f"Memory while the run goes on: {board.name}"
    return Chart(f"intervals-{board.slug}", title, says, spec, None)


def _curves(board: Leaderboard, records: Sequence[Record]) -> Chart | None:
    learned = [record for record in records if record["quality"]["curve"]]
    if not learned:
        return None
    rows = [
        {**_run(record), "step": point["step"], "value": point["value"]}
        for record in learned
        for point in record["quality"]["curve"]
    ]
    y = _field("value:Q", scale={"zero": False}, title=f"{board.metric}, validation")
    tip = _field("value:Q", format=".3f", title=board.metric)
    spec, says = _lines(rows, y, tip, 280, {"point": True}), sentences.curves(board, learned)
    return Chart(f"curves-{board.slug}", f"Learning curves: {board.name}", says, spec, None)


def _run(record: Record) -> Row:
    return {"method": record["cell"]["method"], "seed": record["cell"]["seed"]}


def _lines(
    rows: Sequence[Row], y: Row, tip: Row, height: int, mark: Mapping[str, Any]
) -> dict[str, Any]:
    """A line for each method and seed: more methods than colours go on dashed."""
    names = sorted({row["method"] for row in rows})
    dashes = [dash for dash in DASHES for _ in PALETTE]
    legend = {"symbolSize": 250, "symbolType": "stroke"}
    return {
        "width": "container",
        "height": height,
        "data": {"values": rows},
        "mark": {"type": "line", **mark},
        "encoding": {
            "x": _field("step:Q", axis={"tickCount": 8}),
            "y": y,
            "color": _field(
                "method:N", legend=legend, scale=_by_method(names, PALETTE), title=None
            ),
            "strokeDash": _field("method:N", scale=_by_method(names, dashes), title=None),
            "detail": _field("seed:N"),
            "tooltip": [*map(_field, ("method:N", "seed:N", "step:Q")), tip],
        },
    }


# ------------------------------------------------------------------ paper scale


def footprint(rows: Sequence[Line]) -> Chart | None:
    """Model by method: the predicted peak, coloured by its share of full fine-tuning's at the same
    shape."""
    values = [
        {
            "model": f"{row['model']}, {row['batch']} x {row['seq']}, {row['dtype']}",
            "method": row["method"],
            "peak": peak / GIB,
            "share": share,
            "kind": row["kind"],
        }
        for row, peak, share in shares_of_full(rows)
    ]
    if not values:
        return None
    models = {"labelAngle": -30, "labelLimit": 260, "orient": "top"}
    methods = [*dict.fromkeys(value["method"] for value in values)]
    share = {"clamp": True, "domain": [0, 1], "scheme": "blues"}
    legend = {"format": ".0%", "gradientLength": 180}
    text = _field("peak:Q", format=".2f")
    spec = {
        "width": {"step": 84},
        "height": {"step": 30},
        "data": {"values": values},
        "encoding": {
            "x": _field("model:N", axis=models, title=None),
            "y": _field("method:N", axis={"labelLimit": 240}, sort=methods, title=None),
        },
        "layer": [
            {
                "mark": {"type": "rect"},
                "encoding": {
                    "color": _field(
                        "share:Q", legend=legend, scale=share, title="peak over that of full"
                    ),
                    "tooltip": [
                        *map(_field, ("model:N", "method:N", "kind:N")),
                        _field("peak:Q", format=".2f", title="peak (GiB)"),
                        _field("share:Q", format=".2f", title="over full"),
                    ],
                },
            },
            {
                "mark": {"type": "text"},
                "encoding": {"color": _on_blue("datum.share > 0.55"), "text": text},
                "transform": [{"filter": "datum.share !== null"}],
            },
            # Without colour, so in the text's own: full was not predicted at this shape and for
            # this kind of task.
            {
                "mark": {"type": "text"},
                "encoding": {"text": text},
                "transform": [{"filter": "datum.share === null"}],
            },
        ],
    }
    title = "Predicted peak memory in GiB, model by method"
    return Chart("footprint", title, sentences.footprint(rows), spec, "footprint")
