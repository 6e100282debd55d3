"""The charts as Vega-Lite specifications, made with altair; one look for the page and for a paper.

The palette is that of Okabe and Ito, which people with any colour vision tell apart. Text and lines
take the ink: `currentColor` on the page, so that they follow its theme, black on paper.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from leantune.files.record import BYTE_KINDS
from leantune.report import sentences
from leantune.report.data import Group, Results, Row, slug
from leantune.results.comparable import Record
from leantune.results.comparable import Row as Values

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#808080")
DASHES = ([1, 0], [6, 3], [2, 2])
MIB, GIB = 2**20, 2**30
WIDTH, HEIGHT = (
    800,
    340,
)  # pixels of a chart of quality; the width is a guess, since the page decides it


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
    quiet = {
        "domainColor": ink,
        "tickColor": ink,
        "labelColor": ink,
        "titleColor": ink,
        "gridColor": ink,
    }
    config = {
        "background": "transparent" if ink == "currentColor" else "white",
        "font": "Liberation Sans, Arial, Helvetica, sans-serif",
        "view": {"stroke": None},
        "axis": {
            **quiet,
            "gridOpacity": 0.15,
            "domainOpacity": 0.5,
            "tickOpacity": 0.5,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
        },
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "orient": "bottom",
            "columns": 4,
            "symbolOpacity": 1,
            "symbolBaseFillColor": ink,
            "symbolBaseStrokeColor": ink,
            "labelLimit": 220,
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 13},
        "title": {"color": ink},
        "text": {"color": ink, "fontSize": 12},
        "range": {"category": list(PALETTE)},
    }
    return {**spec, "config": config}


def _unit(largest: float) -> tuple[float, str]:
    return (GIB, "GiB") if largest >= 4 * GIB else (MIB, "MiB")


def _data(rows: Sequence[Values]) -> alt.InlineData:
    return alt.InlineData(values=list(rows))


def of_group(group: Group, results: Results) -> list[Chart]:
    """Every chart that the group has the data for."""
    records = results.usable(group)
    kinds = _kinds(group.of(results.tables["cells"]))
    found = [
        _front(group, results, "memory"),
        _front(group, results, "time"),
        _waterfall(group, kinds) if "full" in kinds and len(kinds) > 1 else None,
        _intervals(
            group,
            [r for r in records if len((r["memory"]["tensors"] or {}).get("intervals") or ()) > 1],
        ),
        *_ranks(group, records),
        _curves(group, [r for r in records if r["quality"]["curve"]]),
    ]
    return [chart for chart in found if chart is not None]


# ------------------------------------------------------------------ quality against memory and time


def _front(group: Group, results: Results, what: str) -> Chart | None:
    column = "peak_memory_bytes" if what == "memory" else "step_seconds_median"
    on_front = {
        row["method"] for row in group.of(results.tables["pareto"]) if row["on_front"] == "true"
    }
    scored = [row for row in group.scored if row.number(column) is not None]
    if not scored:
        return None
    size, unit = (
        _unit(max(row.number(column) or 0 for row in scored)) if what == "memory" else (0.001, "ms")
    )
    title = f"{'peak memory' if what == 'memory' else 'median step time'} ({unit})"
    points: list[Values] = [
        {
            **{
                "method": row["method"],
                "x": (row.number(column) or 0) / size,
                "quality": row.number("quality_mean"),
            },
            **{
                "low": row.number("quality_low"),
                "high": row.number("quality_high"),
                "tier": row["tier"] or "none",
            },
            "front": "on the front" if row["method"] in on_front else "off the front",
        }
        for row in scored
    ]
    steps = [
        {"x": (row.number("budget") or 0) / size, "quality": row.number("quality_mean")}
        for row in group.of(results.tables["budgets"])
        if row["budget_kind"] == column
    ]
    left, right = min(p["x"] for p in points), max(p["x"] for p in points)
    if steps:
        steps.append({"x": right, "quality": steps[-1]["quality"]})
    room = 0.06 * (right - left or right or 1)
    ends = [
        e
        for p in points
        for e in ((p["low"], p["high"]) if p["tier"] != "none" else ())
        if e is not None
    ]
    ends += [p["quality"] for p in points]
    heights = min(ends) - 0.04 * (max(ends) - min(ends)), max(ends) + 0.06 * (max(ends) - min(ends))
    _label(points, (left - room, right + 4 * room), heights)
    x = (
        alt.X("x:Q")
        .title(title)
        .scale(domain=[max(0, left - room), right + 4 * room], nice=False)
        .axis(tickCount=8)
    )
    scale = (
        alt.Scale(domain=list(heights), nice=False, zero=False)
        if heights[0] < heights[1]
        else alt.Scale(zero=False)
    )
    y = alt.Y("quality:Q").title(group.metric).scale(scale)
    tiers = sorted({p["tier"] for p in points}, key=lambda text: (len(text), text))
    colour = (
        alt.Color("tier:N")
        .title("tier")
        .sort(tiers)
        .scale(domain=tiers, range=_cycled(PALETTE, len(tiers)))
    )
    shape = (
        alt.Shape("front:N")
        .title(None)
        .scale(domain=["on the front", "off the front"], range=["circle", "cross"])
    )
    tips = [
        alt.Tooltip(f"{n}:{t}", title=title)
        for n, t, title in (
            ("method", "N", "method"),
            ("quality", "Q", group.metric),
            ("low", "Q", "low"),
            ("high", "Q", "high"),
            ("x", "Q", title),
            ("tier", "N", "tier"),
        )
    ]
    base = alt.Chart(_data(points)).encode(x=x)
    bars = [p for p in points if p["low"] is not None and p["high"] is not None]
    layers: list[Any] = [
        alt.Chart(_data(steps))
        .mark_line(interpolate="step-after", opacity=0.6, color="#808080", aria=False)
        .encode(x=x, y=y),
        alt.Chart(_data(bars))
        .mark_rule(opacity=0.45, strokeWidth=2, clip=True, aria=False)
        .encode(x=x, y=alt.Y("low:Q").title(group.metric), y2="high:Q", color=colour),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            y=y, color=colour, shape=shape, tooltip=tips
        ),
        base.mark_text(align="left", dx=7, dy=-7, limit=170).encode(
            y=alt.Y("label:Q").title(group.metric), text="method:N"
        ),
    ]
    spec = alt.layer(*layers).properties(width="container", height=HEIGHT).to_dict()
    says = sentences.memory(group) if what == "memory" else sentences.time(group)
    return Chart(
        f"{what}-{group.slug}",
        f"Quality against {'peak memory' if what == 'memory' else 'step time'}: {group.name}",
        says,
        spec,
        "pareto",
    )


def _label(points: list[Values], across: tuple[float, float], heights: tuple[float, float]) -> None:
    """Give each point the height of its label: its own, or the nearest where no label before it
    stands in the way."""
    wide, high = WIDTH / (across[1] - across[0] or 1), HEIGHT / (heights[1] - heights[0] or 1)
    taken: list[tuple[float, float, float]] = []  # left and right edge and height, in pixels
    for point in sorted(points, key=lambda p: (-p["quality"], p["x"])):
        left, at = point["x"] * wide + 9, point["quality"] * high
        right = left + 7 * len(point["method"])
        tries = (at + shift for shift in (0, -13, 13, -26, 26, -39, 39, 0))
        free = next(
            (
                y
                for y in tries
                if all(right < l or r < left or abs(y - t) >= 12 for l, r, t in taken)
            ),
            at,
        )
        taken.append((left, right, free))
        point["label"] = free / high


def _cycled(values: Sequence[Any], count: int) -> list[Any]:
    return [values[i % len(values)] for i in range(count)]


# ------------------------------------------------------------------ where the memory goes


def _kinds(cells: Sequence[Row]) -> dict[str, dict[str, float]]:
    """By method the bytes of each kind in the run with the highest peak."""
    found: dict[str, Row] = {}
    for row in cells:
        ok = row["status"] == "ok" and not row["trial"] and row.number("weights_bytes") is not None
        best = found.get(row["method"])
        if ok and (
            best is None
            or (row.number("tensors_peak_bytes") or 0) > (best.number("tensors_peak_bytes") or 0)
        ):
            found[row["method"]] = row
    return {
        m: {k: row.number(f"{k}_bytes") or 0.0 for k in BYTE_KINDS}
        for m, row in sorted(found.items())
    }


def _waterfall(group: Group, kinds: Mapping[str, Mapping[str, float]]) -> Chart:
    """From the peak of `full` down to that of each method, a bar for each kind of bytes."""
    full = kinds["full"]
    size, unit = _unit(max(sum(found.values()) for found in kinds.values()))
    rows: list[Values] = []
    for method, found in kinds.items():
        if method == "full":
            continue
        at = sum(full.values())
        rows.append(_bar(method, "full", 0, at, size))
        for kind in BYTE_KINDS:
            after = at + found[kind] - full[kind]
            rows.append(_bar(method, kind, at, after, size))
            at = after
        rows.append(_bar(method, "method", 0, at, size))
    order = ["full", *BYTE_KINDS, "method"]
    domain, colours = ["less", "more", "total"], [PALETTE[2], PALETTE[3], PALETTE[0]]
    chart = (
        alt.Chart(_data(rows))
        .mark_bar(size=11)
        .encode(
            x=alt.X("from:Q").title(f"bytes at the peak ({unit})"),
            x2="to:Q",
            y=alt.Y("kind:N").sort(order).title(None),
            color=alt.Color("sort:N").title(None).scale(domain=domain, range=colours),
            tooltip=[
                alt.Tooltip("method:N"),
                alt.Tooltip("kind:N"),
                alt.Tooltip("change:Q", format="+,.1f", title=unit),
            ],
        )
        .properties(width=185, height=150)
        .facet(alt.Facet("method:N").title(None), columns=4)
    )
    return Chart(
        f"waterfall-{group.slug}",
        f"From full fine-tuning to each method: {group.name}",
        sentences.waterfall(kinds),
        chart.to_dict(),
        "cells",
    )


def _bar(method: str, kind: str, start: float, end: float, size: float) -> Values:
    sort = "total" if kind in ("full", "method") else "more" if end > start else "less"
    return {
        "method": method,
        "kind": kind,
        "from": start / size,
        "to": end / size,
        "sort": sort,
        "change": (end - start) / size,
    }


def _intervals(group: Group, records: Sequence[Record]) -> Chart | None:
    if not records:
        return None
    size, unit = _unit(
        max(p["peak_bytes"] for r in records for p in r["memory"]["tensors"]["intervals"])
    )
    rows = []
    for record in records:
        own = {"method": record["cell"]["method"], "seed": record["cell"]["seed"]}
        parts = record["memory"]["tensors"]["intervals"]
        rows += [{**own, "step": p["step"], "peak": p["peak_bytes"] / size} for p in parts]
        rows.append({**own, "step": record["key"]["steps"], "peak": parts[-1]["peak_bytes"] / size})
    colour, dash = _lines({row["method"] for row in rows})
    spec = (
        alt.Chart(_data(rows))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=alt.X("step:Q").axis(tickCount=8),
            y=alt.Y("peak:Q").title(f"peak of a step ({unit})").scale(zero=True),
            color=colour,
            strokeDash=dash,
            detail="seed:N",
            tooltip=[
                "method:N",
                "seed:N",
                "step:Q",
                alt.Tooltip("peak:Q", format=",.1f", title=unit),
            ],
        )
        .properties(width="container", height=220)
        .to_dict()
    )
    return Chart(
        f"intervals-{group.slug}",
        f"Memory while the run goes on: {group.name}",
        sentences.intervals(records),
        spec,
        None,
    )


def _ranks(group: Group, records: Sequence[Record]) -> list[Chart]:
    """A heat map of the ranks that a method kept in each linear map, for the first seed of each
    method."""
    found: dict[str, Chart] = {}
    for record in records:
        method, ranks = record["cell"]["method"], record["details"].get("ranks")
        if not isinstance(ranks, dict) or len(set(ranks.values())) < 2 or method in found:
            continue
        rows = [
            {**_place(name), "rank": rank, "name": name} for name, rank in sorted(ranks.items())
        ]
        middle = max(ranks.values()) / 2
        base = alt.Chart(_data(rows)).encode(
            x=alt.X("layer:O").title("layer").axis(labelAngle=0),
            y=alt.Y("map:N").title(None).axis(labelLimit=170),
        )
        spec = (
            (
                base.mark_rect().encode(
                    color=alt.Color("rank:Q").scale(scheme="blues", domainMin=0).legend(None),
                    tooltip=["name:N", "rank:Q"],
                )
                + base.mark_text().encode(text="rank:Q", color=_on_blue(f"datum.rank > {middle:g}"))
            )
            .properties(width="container", height=26 * len({row["map"] for row in rows}))
            .to_dict()
        )
        found[method] = Chart(
            f"ranks-{slug(method)}-{group.slug}",
            f"Ranks that {method} kept: {group.name}",
            sentences.ranks(method, ranks),
            spec,
            None,
        )
    return list(found.values())


def _place(name: str) -> Values:
    """The layer number and the rest of a module's name."""
    match = re.search(r"\.(\d+)\.(.+)$", name)
    return {"layer": int(match[1]), "map": match[2]} if match else {"layer": 0, "map": name}


def _on_blue(dark: str) -> Any:
    return alt.condition(dark, alt.value("white"), alt.value("black"))


# ------------------------------------------------------------------ learning curves


def _lines(methods: set[str]) -> tuple[Any, Any]:
    """Colour and dash of the lines of these methods: more methods than colours go on dashed."""
    names = sorted(methods)
    dashes = [DASHES[i // len(PALETTE) % len(DASHES)] for i in range(len(names))]
    colour = (
        alt.Color("method:N").title(None).scale(domain=names, range=_cycled(PALETTE, len(names)))
    )
    colour = colour.legend(symbolType="stroke", symbolSize=250)
    return colour, alt.StrokeDash("method:N").title(None).scale(domain=names, range=dashes)


def _curves(group: Group, records: Sequence[Record]) -> Chart | None:
    if not records:
        return None
    rows = [
        {
            "method": r["cell"]["method"],
            "seed": r["cell"]["seed"],
            "step": p["step"],
            "value": p["value"],
        }
        for r in records
        for p in r["quality"]["curve"]
    ]
    colour, dash = _lines({row["method"] for row in rows})
    spec = (
        alt.Chart(_data(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q").axis(tickCount=8),
            y=alt.Y("value:Q").title(f"{group.metric}, validation").scale(zero=False),
            color=colour,
            strokeDash=dash,
            detail="seed:N",
            tooltip=[
                "method:N",
                "seed:N",
                "step:Q",
                alt.Tooltip("value:Q", format=".3f", title=group.metric),
            ],
        )
        .properties(width="container", height=280)
        .to_dict()
    )
    return Chart(
        f"curves-{group.slug}",
        f"Learning curves: {group.name}",
        sentences.curves(group, records),
        spec,
        None,
    )


# ------------------------------------------------------------------ paper scale


def footprint(rows: Sequence[Row]) -> Chart | None:
    """Model by method: the predicted peak, coloured by its share of full fine-tuning's at the same
    shape."""
    known = [row for row in rows if row.number("peak_bytes") is not None]
    if not known:
        return None
    values: list[Values] = []
    for row in known:
        peak = row.number("peak_bytes") or 0
        full = next(
            (
                r.number("peak_bytes")
                for r in known
                if r["method"] == "full" and sentences.same_shape(r, row)
            ),
            None,
        )
        values.append(
            {
                "model": f"{row['model']}, {row['batch']} x {row['seq']}, {row['dtype']}",
                "method": row["method"],
                "peak": peak / GIB,
                "share": None if full is None else peak / full,
                "kind": row["kind"],
            }
        )
    methods = list(dict.fromkeys(row["method"] for row in known))
    base = alt.Chart(_data(values)).encode(
        x=alt.X("model:N").title(None).axis(orient="top", labelAngle=-30, labelLimit=260),
        y=alt.Y("method:N").sort(methods).title(None).axis(labelLimit=240),
    )
    spec = (
        (
            base.mark_rect().encode(
                color=alt.Color("share:Q")
                .title("peak over that of full")
                .scale(scheme="blues", domain=[0, 1], clamp=True)
                .legend(format=".0%", gradientLength=180),
                tooltip=[
                    "model:N",
                    "method:N",
                    "kind:N",
                    alt.Tooltip("peak:Q", format=".2f", title="peak (GiB)"),
                    alt.Tooltip("share:Q", format=".2f", title="over full"),
                ],
            )
            + base.transform_filter("datum.share !== null")
            .mark_text()
            .encode(text=alt.Text("peak:Q", format=".2f"), color=_on_blue("datum.share > 0.55"))
            # Without colour, so in the text's own: full was not predicted at this shape and for
            # this kind of task.
            + base.transform_filter("datum.share === null")
            .mark_text()
            .encode(text=alt.Text("peak:Q", format=".2f"))
        )
        .properties(width={"step": 84}, height={"step": 30})
        .to_dict()
    )
    return Chart(
        "footprint",
        "Predicted peak memory in GiB, model by method",
        sentences.footprint(known),
        spec,
        "footprint",
    )
