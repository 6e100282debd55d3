"""`leantune repro`: a record's cell is run again and compared with it."""

import json

from leantune.cli.flags import Arguments, flag, path

FLAGS = (
    path("record", metavar="RECORD", help="the JSON file of a cell"),
    flag("--json", action="store_true", help="print one JSON object"),
)


def run(arguments: Arguments) -> int:
    from leantune.results import reproduce  # imports scipy: not for `--help`

    original, again = reproduce.run_again(arguments.record)
    fields = reproduce.fields(original, again)
    holds = reproduce.holds(fields)
    found = {"record": str(arguments.record), "reproduced": holds, "fields": fields}
    print(json.dumps(found) if arguments.json else reproduce.describe(fields))
    return 0 if holds else 1
