"""One sentence for each view, computed from the rows that the view shows."""

from collections import Counter
from collections.abc import Mapping, Sequence

from leantune.files.record import BYTE_KINDS, Record, value
from leantune.files.text import bytes_text
from leantune.report.data import Content, Leaderboard, Line, shares_of_full, with_number


def _listed(names: Sequence[str], most: int = 1000) -> str:
    """`a, b and c`, or `a, b and 5 more`."""
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))) or "none"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s'[: count != 1]}"


def _counted(names: Sequence[str]) -> str:
    counts = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    return _listed([f"{count} {name}" for name, count in counts])


def _least(rows: Sequence[Line], column: str) -> Line:
    """The row with the smallest number in the column; of equals the first by name."""
    return min(rows, key=lambda row: (row.number(column) or 0, row["method"]))


def overview(content: Content) -> str:
    """What the page is made from."""
    boards = content.leaderboards
    if not boards:
        return "There is no result to rank yet."
    methods = {row["method"] for board in boards for row in board.rows}
    return (
        f"{_plural(len(content.records), 'record')}: {_plural(len(methods), 'method')} on "
        f"{_plural(len({board.model for board in boards}), 'model')} and "
        f"{_plural(len({board.task for board in boards}), 'task')}."
    )


def memory(board: Leaderboard) -> str:
    known = with_number(board.scored, "peak_memory_bytes")
    if not known:
        return f"No scored method of {board.name} has a measured peak."
    same = [row for row in board.scored if row["tier"] == "1"]
    least, text = _least(known, "peak_memory_bytes"), ""
    if placed := with_number(same, "peak_memory_bytes"):
        best = _least(placed, "peak_memory_bytes")
        words = f"The best is {best['method']}"
        if len(same) > 1:
            words = (
                f"Of the {len(same)} methods that cannot be told apart from the best, "
                f"{best['method']} needs the least memory"
            )
        text = f"{words}: {_peak(board, best)}."
        if best is least:
            return text
    return f"{text} {least['method']} needs the least of all: {_peak(board, least)}.".strip()


def _peak(board: Leaderboard, row: Line) -> str:
    ratio = row.number("peak_vs_full")
    of_full = (
        "" if ratio is None or row["method"] == "full" else f", {ratio:.2f} times that of full"
    )
    score = f"{board.metric} {row.number('quality_mean'):.3f}"
    return f"{bytes_text(row.number('peak_memory_bytes'))}{of_full}, with {score}"


def time(board: Leaderboard) -> str:
    known = with_number(board.scored, "step_seconds_median")
    if not known:
        return f"No scored method of {board.name} has a step time."
    fastest, best = _least(known, "step_seconds_median"), board.best
    text = f"{fastest['method']} has the shortest median step: {_step(board, fastest)}"
    if best is None or best is fastest or best not in known:
        return f"{text}."
    return f"{text}; {best['method']}, the best, takes {_step(board, best)}."


def _step(board: Leaderboard, row: Line) -> str:
    ratio = row.number("time_vs_full")
    turns = (
        f" ({ratio:.2f} times full, timed in turns)" if ratio and row["method"] != "full" else ""
    )
    score = f"{board.metric} {row.number('quality_mean'):.3f}"
    return f"{1000 * (row.number('step_seconds_median') or 0):.0f} ms{turns} with {score}"


def waterfall(kinds: Mapping[str, Mapping[str, float]]) -> str:
    """`kinds`: by method the bytes of each kind, `full` among them."""
    totals = {method: sum(found.values()) for method, found in kinds.items()}
    most = min(totals.keys() - {"full"}, key=lambda method: (totals[method], method))
    saved, of_full = totals["full"] - totals[most], bytes_text(totals["full"])
    if saved <= 0:
        return f"No method takes less than full, which holds {of_full}."
    by_kind = {kind: kinds["full"][kind] - kinds[most][kind] for kind in BYTE_KINDS}
    kind = max(by_kind, key=lambda kind: by_kind[kind])
    return (
        f"{most} saves the most against full, {bytes_text(saved)} of {of_full}; "
        f"{bytes_text(by_kind[kind])} of it are "
        f"{'optimizer states' if kind == 'optimizer' else kind}."
    )


def curves(board: Leaderboard, records: Sequence[Record]) -> str:
    sign = 1 if board.higher_is_better else -1
    last = [(r["cell"]["method"], r["quality"]["curve"][-1]) for r in records]
    method, point = max(last, key=lambda item: (sign * item[1]["value"], item[0]))
    reached = [r for r in records if value(r, "quality.steps_to_target") is not None]
    names = sorted({record["cell"]["method"] for record in reached}) or ["no method"]
    targets = [t for r in records if (t := value(r, "quality.target")) is not None]
    return (
        f"At its last evaluation, step {point['step']}, {method} leads with {board.metric} "
        f"{point['value']:.3f} on the validation split"
        + (f"; {_listed(names, 4)} reached the target of {targets[0]:g}." if targets else ".")
    )


def intervals(records: Sequence[Record]) -> str:
    """Of the record whose memory changed the most."""
    ends = [
        (r["cell"]["method"], parts[0]["peak_bytes"], parts[-1])
        for r in records
        if (parts := r["memory"]["tensors"]["intervals"])
    ]
    name, first, last = max(ends, key=lambda end: abs(end[1] - end[2]["peak_bytes"]))
    return (
        f"The peak of {name} goes from {bytes_text(first)} at the start to "
        f"{bytes_text(last['peak_bytes'])} from step {last['step']} on."
    )


def ranks(method: str, found: Mapping[str, int]) -> str:
    low, high = (how(found, key=lambda name: (found[name], name)) for how in (min, max))
    return (
        f"{method} kept ranks from {found[low]} ({low}) to {found[high]} ({high}) over "
        f"{len(found)} linear maps."
    )


def footprint(rows: Sequence[Line]) -> str:
    known = shares_of_full(rows)
    models = _plural(len({row["model"] for row, _, _ in known}), "model")
    counted = f"Predicted: {len(known)} rows on {models}"
    less = [(share, peak, row) for row, peak, share in known if share is not None and share < 1]
    if not less:
        return f"{counted}; none needs less than full."
    share, peak, row = min(less, key=lambda found: found[0])
    return (
        f"{counted}; the largest saving is {row['method']} on {row['model']}: "
        f"{bytes_text(peak)}, {share:.2f} times that of full."
    )


def batches(rows: Sequence[Line], gib: int) -> str:
    column = f"largest_batch_{gib}gib"
    known = with_number(rows, column)
    if not known:
        return f"No largest batch was searched for {gib} GiB."
    most = max(known, key=lambda row: (row.number(column) or 0, row["method"]))
    return (
        f"Within {gib} GiB the largest batch is {most[column]}, {most['method']} on "
        f"{most['model']}; {sum(row.number(column) == 0 for row in known)} of {len(known)} do not "
        "fit with a single sequence."
    )


def claims(rows: Sequence[Line]) -> str:
    return f"Of {len(rows)} claims {_counted([row['verdict'].replace('_', ' ') for row in rows])}."


def failures(rows: Sequence[Line], cells: int) -> str:
    if rows:
        counts = _counted([row["status"] for row in rows])
        return f"{_plural(len(rows), 'run')} without a usable result: {counts}."
    return f"Every one of {cells} runs ended well." if cells else "There is no run yet."


def calibration(rows: Sequence[Line]) -> str:
    ran = [row for row in rows if row["passed"] in ("true", "false")]
    bad = [row["check"] for row in ran if row["passed"] == "false"]
    verdict = f"{_listed(bad)} failed, so the figures are not to be trusted"
    return (
        f"{len(ran)} of {len(rows)} checks ran; "
        f"{verdict if bad else 'all are within their limits'}."
    )


def environment(content: Content) -> str:
    records = content.records
    machines = {value(r, "provenance.hardware.name") or r["key"].get("hardware") for r in records}
    commits = {value(r, "provenance.commit") for r in records} - {None, ""}
    dirty = sum(bool(value(r, "provenance.dirty")) for r in records)
    damaged = f" {content.damaged} more could not be read." if content.damaged else ""
    return (
        f"{_plural(len(records), 'record')} from {_plural(len(machines), 'machine')} and "
        f"{_plural(len(commits), 'commit')}, {dirty} of them with uncommitted changes.{damaged}"
    )
