"""The commands that check results against a second source: `repro` (run it again) and `merge` (somebody else's)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add both to the command line's subparsers."""
    repro = commands.add_parser("repro", help="run a record's own command again and compare it field by field")
    repro.add_argument("record", type=Path, metavar="RECORD", help="the JSON file of a cell")
    repro.add_argument("--json", action="store_true", help="print one JSON object")
    repro.set_defaults(action=_repro)

    merge = commands.add_parser("merge", help="check records from another machine and add them to the results")
    merge.add_argument("folder", type=Path, metavar="FOLDER", help="what was sent: a folder with records/ in it")
    merge.add_argument("--into", type=Path, default=Path("results"), help="the results that they join (results)")
    merge.add_argument("--allow-dirty", action="store_true",
                       help="also take records of uncommitted files, or without a commit")  # fmt: skip
    merge.add_argument("--uncalibrated", action="store_true", help="also take records without the control cells")
    merge.set_defaults(action=_merge)


def _repro(arguments: argparse.Namespace) -> int:
    from leantune import repro

    original, again = repro.run_again(arguments.record)
    fields = repro.compare(original, again)
    holds = repro.holds(fields)
    if arguments.json:
        print(json.dumps({"record": str(arguments.record), "reproduced": holds, "fields": fields}))
    else:
        print(repro.describe(fields))
    return 0 if holds else 1


def _merge(arguments: argparse.Namespace) -> int:
    from leantune import merge

    judged = merge.merge(
        arguments.folder, arguments.into,
        allow_dirty=arguments.allow_dirty, uncalibrated=arguments.uncalibrated,
    )  # fmt: skip
    for one in judged:
        print(one)
    return 1 if any(one.verdict == "refused" for one in judged) else 0
