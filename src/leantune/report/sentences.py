"""One sentence for each view, computed from the rows that the view shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from leantune.files.record import BYTE_KINDS, value
from leantune.files.text import bytes_text
from leantune.report.data import Group, Results, Row
from leantune.results.comparable import Record


def listed(names: Sequence[str]) -> str:
    """a, b and c"""
    return (
        names[0]
        if len(names) == 1
        else f"{', '.join(names[:-1])} and {names[-1]}"
        if names
        else "none"
    )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s'[: count != 1]}"


def _counted(counts: Mapping[str, int]) -> str:
    return listed(
        [
            f"{count} {name}"
            for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
    )


def _few(names: Sequence[str], most: int = 4) -> str:
    return (
        listed(names)
        if len(names) <= most
        else f"{', '.join(names[:most])} and {len(names) - most} more"
    )


def overview(results: Results) -> str:
    """What the page is made from."""
    groups = results.groups
    if not groups:
        return "There is no result to rank yet."
    models, tasks = {g.model for g in groups}, {g.task for g in groups}
    methods = {row["method"] for g in groups for row in g.rows}
    return (
        f"{_plural(len(results.records), 'record')}: {_plural(len(methods), 'method')} on "
        f"{_plural(len(models), 'model')} and {_plural(len(tasks), 'task')}."
    )


def tied(group: Group) -> list[Row]:
    """The scored rows that cannot be told apart from the best, the one with the least memory first."""
    same = [row for row in group.scored if row["tier"] == "1"]
    return sorted(
        same, key=lambda row: (row.number("peak_memory_bytes") or float("inf"), row["method"])
    )


def _against_full(row: Row) -> str:
    ratio = row.number("peak_vs_full")
    return "" if ratio is None or row["method"] == "full" else f", {ratio:.2f} times that of full"


def memory(group: Group) -> str:
    same = tied(group)
    known = [row for row in group.scored if row.number("peak_memory_bytes") is not None]
    if not known:
        return f"No scored method of {group.name} has a measured peak."
    least = min(known, key=lambda row: (row.number("peak_memory_bytes") or 0, row["method"]))
    cheapest = next((row for row in same if row.number("peak_memory_bytes") is not None), None)
    text = ""
    if cheapest is not None:
        words = (
            f"Of the {len(same)} methods that cannot be told apart from the best"
            if len(same) > 1
            else "The best"
        )
        verb = (
            f"{cheapest['method']} needs the least memory"
            if len(same) > 1
            else f"is {cheapest['method']}"
        )
        text = f"{words}{',' if len(same) > 1 else ''} {verb}: {_figures(group, cheapest)}. "
    if least is not cheapest:
        text += f"{least['method']} needs the least of all: {_figures(group, least)}."
    return text.strip()


def _figures(group: Group, row: Row) -> str:
    peak = bytes_text(row.number("peak_memory_bytes"))
    return f"{peak}{_against_full(row)}, with {group.metric} {row.number('quality_mean'):.3f}"


def time(group: Group) -> str:
    known = [row for row in group.scored if row.number("step_seconds_median") is not None]
    if not known:
        return f"No scored method of {group.name} has a step time."
    fastest = min(known, key=lambda row: (row.number("step_seconds_median") or 0, row["method"]))
    best = next((row for row in known if row is group.best), None)
    text = f"{fastest['method']} has the shortest median step: {_step(group, fastest)}"
    if best is None or best is fastest:
        return f"{text}."
    return f"{text}; {best['method']}, the best, takes {_step(group, best)}."


def _step(group: Group, row: Row) -> str:
    ratio = row.number("time_vs_full")
    turns = (
        ""
        if ratio is None or row["method"] == "full"
        else f" ({ratio:.2f} times full, timed in turns)"
    )
    return f"{1000 * (row.number('step_seconds_median') or 0):.0f} ms{turns} with {group.metric} {row.number('quality_mean'):.3f}"


def waterfall(cells: Mapping[str, Mapping[str, float]]) -> str:
    """`cells`: by method the bytes of each kind, `full` among them."""
    full = cells["full"]
    saved = {
        m: sum(full.values()) - sum(kinds.values()) for m, kinds in cells.items() if m != "full"
    }
    most = min(saved, key=lambda method: (-saved[method], method))
    if saved[most] <= 0:
        return f"No method takes less than full, which holds {bytes_text(sum(full.values()))}."
    by_kind = {kind: full[kind] - cells[most][kind] for kind in BYTE_KINDS}
    kind = max(BYTE_KINDS, key=lambda kind: by_kind[kind])
    return (
        f"{most} saves the most against full, {bytes_text(saved[most])} of {bytes_text(sum(full.values()))}; "
        f"{bytes_text(by_kind[kind])} of it are {'optimizer states' if kind == 'optimizer' else kind}."
    )


def curves(group: Group, records: Sequence[Record]) -> str:
    last = [(r["cell"]["method"], r["quality"]["curve"][-1]) for r in records]
    sign = 1 if group.higher_is_better else -1
    method, point = max(last, key=lambda item: (sign * item[1]["value"], item[0]))
    reached = sorted(
        {r["cell"]["method"] for r in records if value(r, "quality.steps_to_target") is not None}
    )
    target = next((t for r in records if (t := value(r, "quality.target")) is not None), None)
    text = f"At its last evaluation, step {point['step']}, {method} leads with {group.metric} {point['value']:.3f} on the validation split"
    if target is None:
        return f"{text}."
    return f"{text}; {_few(reached) if reached else 'no method'} reached the target of {target:g}."


def intervals(records: Sequence[Record]) -> str:
    record = max(records, key=_fall)
    parts = record["memory"]["tensors"]["intervals"]
    name, first, last = record["cell"]["method"], parts[0], parts[-1]
    return (
        f"The peak of {name} goes from {bytes_text(first['peak_bytes'])} at the start to "
        f"{bytes_text(last['peak_bytes'])} from step {last['step']} on."
    )


def _fall(record: Record) -> float:
    parts = record["memory"]["tensors"]["intervals"]
    return abs(float(parts[0]["peak_bytes"] - parts[-1]["peak_bytes"]))


def ranks(method: str, found: Mapping[str, int]) -> str:
    low, high = min(found, key=lambda n: (found[n], n)), max(found, key=lambda n: (found[n], n))
    return f"{method} kept ranks from {found[low]} ({low}) to {found[high]} ({high}) over {len(found)} linear maps."


def footprint(rows: Sequence[Row]) -> str:
    known = [row for row in rows if row.number("peak_bytes") is not None]
    best, ratio = None, 1.0
    for row in known:
        full = next((r for r in known if r["method"] == "full" and same_shape(r, row)), None)
        if (
            full is not None
            and (row.number("peak_bytes") or 0) / (full.number("peak_bytes") or 1) < ratio
        ):
            best, ratio = row, (row.number("peak_bytes") or 0) / (full.number("peak_bytes") or 1)
    counted = (
        f"Predicted: {len(known)} rows on {_plural(len({row['model'] for row in known}), 'model')}"
    )
    if best is None:
        return f"{counted}; none needs less than full."
    return (
        f"{counted}; the largest saving is {best['method']} on {best['model']}: "
        f"{bytes_text(best.number('peak_bytes'))}, {ratio:.2f} times that of full."
    )


def same_shape(one: Row, other: Row) -> bool:
    """Whether two rows of the footprint differ in nothing but the method."""
    return all(one[name] == other[name] for name in ("model", "kind", "batch", "seq", "dtype"))


def batches(rows: Sequence[Row], gib: int) -> str:
    known = [row for row in rows if row.number(f"largest_batch_{gib}gib") is not None]
    if not known:
        return f"No largest batch was searched for {gib} GiB."
    most = max(known, key=lambda row: (row.number(f"largest_batch_{gib}gib") or 0, row["method"]))
    none = [row for row in known if row.number(f"largest_batch_{gib}gib") == 0]
    return (
        f"Within {gib} GiB the largest batch is {most[f'largest_batch_{gib}gib']}, {most['method']} on {most['model']}; "
        f"{len(none)} of {len(known)} do not fit with a single sequence."
    )


def claims(rows: Sequence[Row]) -> str:
    return f"Of {len(rows)} claims {_counted(Counter(row['verdict'].replace('_', ' ') for row in rows))}."


def failures(rows: Sequence[Row], cells: int) -> str:
    if not rows:
        return f"Every one of {cells} runs ended well." if cells else "There is no run yet."
    return f"{_plural(len(rows), 'run')} without a usable result: {_counted(Counter(row['status'] for row in rows))}."


def calibration(rows: Sequence[Row]) -> str:
    ran = [row for row in rows if row["passed"] in ("true", "false")]
    bad = [row["check"] for row in ran if row["passed"] == "false"]
    verdict = (
        f"{listed(bad)} failed, so the figures are not to be trusted"
        if bad
        else "all are within their limits"
    )
    return f"{len(ran)} of {len(rows)} checks ran; {verdict}."


def environment(results: Results) -> str:
    records = results.records
    machines = {value(r, "provenance.hardware.name") or r["key"].get("hardware") for r in records}
    commits = {commit for r in records if (commit := value(r, "provenance.commit"))}
    dirty = sum(bool(value(r, "provenance.dirty")) for r in records)
    damaged = f" {results.damaged} more could not be read." if results.damaged else ""
    return (
        f"{_plural(len(records), 'record')} from {_plural(len(machines), 'machine')} and {_plural(len(commits), 'commit')}, "
        f"{dirty} of them with uncommitted changes.{damaged}"
    )
