"""Predicted against published memory: replay every run of a file on fake tensors, beside what a
user would ask instead.

    python benchmarks/prediction/replay.py benchmarks/prediction/peft_l40s_runs.json

One line a run while it goes, summaries of ours and of the peers, and one last line of JSON:
{"runs", "failed", "median_abs_error", "within_5pct", "worst", "pair_order"}, errors as fractions.
One number is fitted, the longest batch (session.py), none to a method.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import peers
import scores
import session
import torch
from runs import Published, Run, load

from leantune.errors import BadInput, Unsupported

MIB = 2**20


def main() -> int:
    """The exit status: 2 for a file or a name that is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "file", type=Path, help="published runs, in the format of peft_l40s_runs.json"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="only runs whose experiment contains one of these"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        published = load(arguments.file)
        chosen = [
            r
            for r in published.runs
            if not arguments.only or any(w in r.experiment for w in arguments.only)
        ]
        if not chosen:
            raise BadInput(
                f"no run's experiment contains {' or '.join(arguments.only)}; "
                "see the file for their names"
            )
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(chosen)} runs from {published.source}")
    print(f"fitted, once for all: the longest batch has {session.LONGEST} tokens")
    for name in peers.missing():
        print(f"{name} is not installed, so its column stays empty: pip install {name}")
    replay(chosen, published)
    return 0


def replay(chosen: list[Run], published: Published) -> None:
    """Predict and print."""
    width = max(len(run.experiment) for run in chosen)
    names = ["ours", "accelerate", *peers.PACKAGES]
    columns: dict[str, dict[str, float | None]] = {name: {} for name in names}
    measured = {run.experiment: float(run.measured) for run in chosen}
    print(
        f"{'':7} {'experiment':<{width}} {'measured':>9}"
        + "".join(f" {n:>9} {'error':>7}" for n in names[:1]),
        end="",
    )
    print("".join(f" {name:>12}" for name in names[1:]) + "   MiB, seconds")
    for number, run in enumerate(chosen, 1):
        started = time.perf_counter()
        reason, trainable = "", None
        try:
            columns["ours"][run.experiment], trainable = session.predict(
                run, published.architecture
            )
        except Unsupported as error:
            reason = str(error)
        except Exception as error:
            # a method's own set-up or step: the run counts as failed, with what it said
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        columns["ours"].setdefault(run.experiment, None)
        others = peers.estimates(run, published.architecture, trainable, published.gpu)
        for name, size in others.items():
            columns[name][run.experiment] = size
        ours = columns["ours"][run.experiment]
        sizes = f"{run.measured / MIB:9.0f} {_cell(ours, 9)} "
        line = f"[{number:>2}/{len(chosen)}] {run.experiment:<{width}} {sizes}"
        line += f"{'failed':>7}" if ours is None else f"{scores.error(ours, run.measured):7.2%}"
        line += "".join(f" {_cell(size, 12)}" for size in others.values())
        print(
            f"{line}   {time.perf_counter() - started:.1f}"
            + (f"\n        failed: {reason}" if reason else ""),
            flush=True,
        )
    for name in names:
        print(_describe(name, scores.summary(columns[name], measured)))
    print(json.dumps(scores.summary(columns["ours"], measured)))


def _cell(size: float | None, width: int) -> str:
    return f"{'-':>{width}}" if size is None else f"{size / MIB:{width}.0f}"


def _describe(name: str, result: dict[str, Any]) -> str:
    predicted = result["runs"] - result["failed"]
    if not predicted:
        return f"{name}: no figure for any of {result['runs']} runs"
    order = "" if result["pair_order"] is None else f", pair order {result['pair_order']:.1%}"
    return (
        f"{name}: {predicted} of {result['runs']} runs, "
        f"median error {result['median_abs_error']:.2%}, "
        f"within 5 % {result['within_5pct']:.1%}, worst {result['worst']:.1%}{order}"
    )


if __name__ == "__main__":
    sys.exit(main())
