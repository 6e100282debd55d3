"""Which records may be ranked together: those of one model and task under one comparability key.

Groups of several keys are merged only across fields that were named, and then say so in their key.
"""

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leantune.errors import BadInput
from leantune.files.record import Record
from leantune.spec.settings import recorded_settings

Row = dict[str, Any]

KEY = (
    "hardware",
    "device",
    "dtype",
    "batch",
    "length",
    "steps",
    "checkpointing",
    "torch",
    "samples",
    "measurement",
)
MERGEABLE = tuple(field for field in KEY if field not in ("samples", "measurement"))


@dataclass(frozen=True)
class Entry:
    """One place where a record is or should be. `record` is None when it is `damaged` or
    `missing`."""

    file: str  # relative to the records' folder, with forward slashes
    status: str  # the record's own, or stale | damaged | missing
    record: Record | None
    problem: str | None = None


@dataclass(frozen=True)
class Group:
    """The entries of one model and task that may be ranked together, by method."""

    key: str  # the short key; of a merged group all of them, joined with ~
    model: str
    task: str
    # Of KEY: the values that occur, one each unless merged; () if unknown.
    fields: Mapping[str, tuple[str, ...]]
    methods: Mapping[str, Sequence[Entry]]

    @property
    def place(self) -> Row:
        """The columns that say which group a row is of."""
        return {"key": self.key, "model": self.model, "task": self.task}

    @property
    def one_machine(self) -> bool:
        """Whether its times were all taken on one kind of hardware and device."""
        return max(len(self.fields["hardware"]), len(self.fields["device"])) < 2

    @functools.cached_property
    def ok(self) -> dict[str, list[Record]]:
        """The usable records of every method that has any, by seed."""
        found = {method: usable(entries) for method, entries in sorted(self.methods.items())}
        by_seed = {
            method: sorted(records, key=lambda r: (r["cell"]["seed"], r["key"]["short"]))
            for method, records in found.items()
        }
        return {method: records for method, records in by_seed.items() if records}


def usable(entries: Iterable[Entry]) -> list[Record]:
    """The records that ended well and are not stale."""
    return [entry.record for entry in entries if entry.status == "ok" and entry.record is not None]


def groups(entries: Sequence[Entry], across: Sequence[str] = ()) -> list[Group]:
    """Every set of entries that may be ranked together; groups that differ only in the fields
    `across` are one.

    The short key says it all but for the samples, which only the worker knows: results on other
    samples are another group. Cells that failed early have none and go with the first group of
    their key. Raises BadInput for a field that is not one of MERGEABLE.
    """
    if unknown := [field for field in across if field not in MERGEABLE]:
        raise BadInput(
            f"--across: '{unknown[0]}' is no field that groups can be merged across; "
            f"known: {', '.join(MERGEABLE)}"
        )
    found: dict[tuple, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    first: dict[tuple, tuple] = {}  # of the groups of one setting, model and task
    for entry in sorted(entries, key=lambda entry: entry.status != "ok"):
        if entry.record is None:
            continue
        cell = entry.record["cell"]
        place = (_setting(entry.record, across), cell["model"], cell["task"])
        wanted = (*place, entry.record["key"]["samples"] or "")
        if entry.status == "ok":
            first[place] = min(first.get(place, wanted), wanted)
        else:
            wanted = first.setdefault(place, wanted)
        found[wanted][cell["method"]].append(entry)
    made = [_group(wanted[1], wanted[2], found[wanted]) for wanted in sorted(found)]
    return sorted(made, key=lambda group: (group.key, group.model, group.task))


def differing(group: Group, other: Group) -> str:
    """What keeps two groups of one model and task apart, such as `batch 16, here 8`: the other's
    value first."""
    fields = [(field, group.fields[field], other.fields[field]) for field in KEY]
    words = [
        f"{field} {'/'.join(there)}, here {'/'.join(here)}"
        for field, here, there in fields
        if here != there and here and there
    ]
    return " and ".join(words) or "other settings of the task"


def _setting(record: Record, across: Sequence[str]) -> str:
    """What must be equal inside a group besides model, task and samples.

    The short key has a hash of the task's settings, the merged fields among them, so a merged group
    goes by the key's other fields and by the task's settings that the record's cell changed.
    """
    if not across:
        return record["key"]["short"]
    merged = {f"task.{field}" for field in across}
    settings = {
        key: setting
        for key, setting in recorded_settings(record)["set"].items()
        if key.startswith("task.") and key not in merged
    }
    fixed = [record["key"][field] for field in KEY if field not in (*across, "samples")]
    return json.dumps([fixed, settings], sort_keys=True)


def _group(model: str, task: str, methods: Mapping[str, Sequence[Entry]]) -> Group:
    entries = [entry for found in methods.values() for entry in found]
    records = [entry.record for entry in entries if entry.record is not None]
    told = usable(entries) or records
    fields = {
        field: tuple(sorted({str(r["key"][field]) for r in told if r["key"][field] is not None}))
        for field in KEY
    }
    fields["samples"] = tuple(name[:8] for name in fields["samples"])  # a hash
    keys = sorted({record["key"]["short"] for record in records})
    return Group("~".join(keys), model, task, fields, methods)
