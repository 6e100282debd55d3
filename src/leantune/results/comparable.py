"""Which records may be ranked together: those of one model and task under one comparability key.

Groups of several keys are merged only across fields that were named, and then say so in their key.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
    """One place where a record is or should be. `record` is None when it is `damaged` or `missing`."""

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
    fields: Mapping[
        str, tuple[str, ...]
    ]  # of KEY: the values that occur, one each unless merged; () if unknown
    methods: Mapping[str, Sequence[Entry]]

    @property
    def one_machine(self) -> bool:
        """Whether its times were all taken on one kind of hardware and device."""
        return max(len(self.fields["hardware"]), len(self.fields["device"])) < 2

    @property
    def ok(self) -> dict[str, list[Record]]:
        """The usable records of every method that has any, by seed."""
        found = {
            m: [e.record for e in self.methods[m] if e.status == "ok" and e.record]
            for m in sorted(self.methods)
        }
        order = lambda record: (record["cell"]["seed"], record["key"]["short"])  # noqa: E731
        return {method: sorted(records, key=order) for method, records in found.items() if records}


def groups(entries: Sequence[Entry], across: Sequence[str] = ()) -> list[Group]:
    """Every set of entries that may be ranked together; groups that differ only in the fields
    `across` are one.

    The short key says it all but for the samples, which only the worker knows: results on other
    samples are another group. Cells that failed early have none and go with the first group of
    their key. Raises BadInput for a field that is not one of MERGEABLE.
    """
    for field in across:
        if field not in MERGEABLE:
            raise BadInput(
                f"--across: '{field}' is no field that groups can be merged across; known: {', '.join(MERGEABLE)}"
            )
    found: dict[tuple, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    first: dict[tuple, tuple] = {}  # of the groups of one setting, model and task
    for late in (False, True):
        for entry in entries:
            if entry.record is None or (entry.status != "ok") != late:
                continue
            key, cell = entry.record["key"], entry.record["cell"]
            place = (_setting(entry.record, across), cell["model"], cell["task"])
            wanted = (*place, key["samples"] or "")
            if late:
                wanted = first.setdefault(place, wanted)
            else:
                first[place] = min(first.get(place, wanted), wanted)
            found[wanted][cell["method"]].append(entry)
    made = [_group(wanted[1], wanted[2], found[wanted]) for wanted in sorted(found)]
    return sorted(made, key=lambda group: (group.key, group.model, group.task))


def differing(group: Group, other: Group) -> str:
    """What keeps two groups of one model and task apart, such as `batch 16, here 8`: the other's
    value first."""
    words = []
    for field in KEY:
        here, there = group.fields[field], other.fields[field]
        if here != there and here and there:
            words.append(f"{field} {'/'.join(there)}, here {'/'.join(here)}")
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
    records = [
        entry.record for found in methods.values() for entry in found if entry.record is not None
    ]
    usable = [
        entry.record
        for found in methods.values()
        for entry in found
        if entry.record and entry.status == "ok"
    ]
    fields = {field: _values(usable or records, field) for field in KEY}
    return Group(
        "~".join(sorted({record["key"]["short"] for record in records})),
        model,
        task,
        fields,
        methods,
    )


def _values(records: Sequence[Record], field: str) -> tuple[str, ...]:
    found = {str(record["key"][field]) for record in records if record["key"][field] is not None}
    return tuple(sorted(text[:8] if field == "samples" else text for text in found))
