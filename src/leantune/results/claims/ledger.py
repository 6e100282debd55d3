"""The claims ledger: each paper's headline, as its method's yaml states it, against what was
measured here.

A claim is decided (`supported`, `refuted`) only where it was measured in the paper's setting, or is
an identity that holds at every scale; else it is `undecided` and says which way it points. What is
missing is `not_run`.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.files.text import csv_text, each_told, read_csv, text_table, write_text
from leantune.prediction.ask import CACHE, versions
from leantune.results.claims.expressions import Language, Value
from leantune.results.claims.measures import NotRun, Predictions, Records, language
from leantune.results.columns import names
from leantune.results.comparable import Row
from leantune.results.load import load as load_results
from leantune.spec import plugins
from leantune.spec.hashes import model_hash, stack_hash
from leantune.spec.stacks import parse_stack

FILE = Path("tables", "claims.csv")  # below a run's folder, and below the published results
SETTINGS = {"inferred": "the setting is inferred", "scaled_down": "the setting is scaled down"}
RULES = ("near", "at_least", "at_most", "above", "below")


@dataclass(frozen=True)
class Condition:
    """One measure and what is expected of it."""

    measure: str
    rule: str
    bound: float
    tolerance: float  # of `near`: a share of the bound, or of 1 where that is 0

    @property
    def text(self) -> str:
        if self.rule != "near":
            return f"{self.rule.replace('_', ' ')} {_figure(self.bound)}"
        reach = (
            f" within {100 * self.tolerance:.3g} %"
            if self.bound
            else f" within {self.tolerance:.3g}"
        )
        return _figure(self.bound) + (reach if self.tolerance else " exactly")

    def holds(self, value: Value) -> bool | None:
        """Whether the value meets the expectation; None where its interval lies on both sides."""
        low, high = value.bounds
        if self.rule == "near":
            reach = self.tolerance * (abs(self.bound) or 1.0)
            inside = self.bound - reach <= low and high <= self.bound + reach
            outside = high < self.bound - reach or low > self.bound + reach
        elif self.rule in ("at_least", "above"):
            inside = low > self.bound or (self.rule == "at_least" and low == self.bound)
            outside = high < self.bound or (self.rule == "above" and high == self.bound)
        else:
            inside = high < self.bound or (self.rule == "at_most" and high == self.bound)
            outside = low > self.bound or (self.rule == "below" and low == self.bound)
        return True if inside else False if outside else None


@dataclass(frozen=True)
class Claim:
    """One row of the ledger. A joint claim has several conditions, and holds where all of them
    do."""

    method: str
    paper: str
    name: str
    claim: str
    published: str
    source: str
    scope: str  # footprint | embedded | paper
    setting: str  # paper | inferred | scaled_down
    by_construction: bool
    identity: bool
    needs: str | None  # what it takes to measure it, where it cannot be here
    conditions: tuple[Condition, ...]

    @property
    def decidable(self) -> bool:
        """Whether what is measured here can decide it."""
        return self.setting == "paper" or self.identity

    def row(self, language: Language) -> Row:
        """The claim's row, measured. Raises BadInput naming method and claim where a measure is
        wrong."""
        own: Row = {
            **{
                k: getattr(self, k)
                for k in ("method", "paper", "claim", "published", "scope", "setting")
            },
            **{"by_construction": self.by_construction, "name": self.name, "source": self.source},
            "expected": "; ".join(condition.text for condition in self.conditions),
        }
        if self.needs is not None:
            return {**own, "verdict": "not_run", "why": f"needs {self.needs}"}
        try:
            values = [language.evaluate(condition.measure) for condition in self.conditions]
        except NotRun as error:
            return {**own, "verdict": "not_run", "why": str(error)}
        except BadInput as error:
            raise BadInput(f"method '{self.method}', claim '{self.name}': {error}") from error
        verdict, why = self.verdict(values)
        low, high = (
            None if values[0].exact or not math.isfinite(bound) else bound
            for bound in values[0].bounds
        )
        commands = " && ".join(dict.fromkeys(c for value in values for c in value.commands))
        figures = {"measured": values[0].mean, "low": low, "high": high}
        return {**own, **figures, "verdict": verdict, "why": why, "command": commands}

    def verdict(self, values: Sequence[Value]) -> tuple[str, str]:
        """(supported | refuted | undecided, why) from the values of the conditions, in their
        order."""
        pairs = list(zip(self.conditions, values, strict=True))
        found = [condition.holds(value) for condition, value in pairs]
        holds = False if False in found else None if None in found else True
        measured = [
            f"{_figure(value.mean)}{_interval(value)} where {condition.text} is claimed"
            + ("" if len(found) == 1 else f" ({'open' if one is None else 'yes' if one else 'no'})")
            for (condition, value), one in zip(pairs, found, strict=True)
        ]
        notes = dict.fromkeys(note for value in values for note in value.notes)
        reasons = (
            ["by construction: the setting was chosen to give this"] if self.by_construction else []
        )
        reasons += ["an identity, so the scale does not matter"] if self.identity else []
        if holds is not None and self.decidable:
            verdict = "supported" if holds else "refuted"
        else:
            verdict = "undecided"
            estimate = all(condition.holds(Value(value.mean)) for condition, value in pairs)
            reasons.append(f"points the {'same' if estimate else 'other'} way")
            reasons += ["the interval holds values on both sides"] if holds is None else []
            reasons += [] if self.decidable else [SETTINGS[self.setting]]
        return verdict, "; ".join([*reasons, *measured, *notes])


def _figure(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1e5 else f"{number:.4g}"


def _interval(value: Value) -> str:
    if value.exact:
        return ""
    return (
        " ["
        + ", ".join(_figure(bound) if math.isfinite(bound) else "?" for bound in value.bounds)
        + "]"
    )


# ------------------------------------------------------------------ the claims of the methods


def load(methods: Sequence[str] = ()) -> list[Claim]:
    """The claims of these methods, or of all. Raises BadInput for an unknown method and for two of
    one name."""
    found: list[Claim] = []
    for method in methods or sorted(plugins.discover("methods")):
        plugin = plugins.get("methods", method)
        expanded = [one for claim in plugin.raw.get("claims", ()) for one in _expanded(claim)]
        names = [claim["name"] for claim in expanded]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadInput(f"method '{method}' has two claims called '{twice[0]}'; rename one")
        found += [_claim(method, plugin.spec.paper.arxiv or "", claim) for claim in expanded]
    return found


def _expanded(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claim, or one for each row of its key `each` with the row's values in place of
    {words}."""
    rest = {key: value for key, value in claim.items() if key != "each"}
    return [_filled(rest, row) for row in claim["each"]] if "each" in claim else [rest]


def _filled(value: Any, row: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(v, row) for key, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, row) for v in value]
    if not isinstance(value, str):
        return value
    if (alone := re.fullmatch(r"\{(\w+)\}", value)) and alone[1] in row:
        return row[alone[1]]
    return re.sub(r"\{(\w+)\}", lambda word: str(row.get(word[1], word[0])), value)


def _claim(method: str, paper: str, claim: Mapping[str, Any]) -> Claim:
    conditions = [claim, *claim.get("also", ())] if "measure" in claim else []
    return Claim(
        method,
        paper,
        **{
            key: claim[key]
            for key in ("name", "claim", "source", "scope", "setting", "by_construction")
        },
        published=str(claim["published"]),
        identity=claim.get("identity", False),
        needs=claim.get("needs"),
        conditions=tuple(
            _condition(method, claim["name"], c["measure"], c["expect"]) for c in conditions
        ),
    )


def _condition(method: str, name: str, measure: str, expect: Mapping[str, Any]) -> Condition:
    (rule,) = (key for key in RULES if key in expect)
    if not isinstance(expect[rule], int | float):
        raise BadInput(
            f"method '{method}', claim '{name}': '{expect[rule]}' is no number; "
            "name it in every row"
        )
    return Condition(measure, rule, expect[rule], expect.get("tolerance", 0.0))


def digest() -> str:
    """Changes when the ledger must be made again for a reason other than its records."""
    facts: list[Any] = [versions()]
    for method in sorted(plugins.discover("methods")):
        plugin = plugins.get("methods", method)
        kinds = plugin.spec.kinds
        stacks = [stack_hash(parse_stack(method, kind)) for kind in ("classification", *kinds)]
        facts.append([method, plugin.raw.get("claims"), stacks])
    models = [
        model_hash(plugins.get("models", model)) for model in sorted(plugins.discover("models"))
    ]
    return hashlib.sha256(json.dumps([facts, models], sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------ the table


def write(records: Path, output: Path, methods: Sequence[str] = ()) -> list[Row]:
    """Measure the claims and write `<output>/tables/claims.csv`; returns the rows. With `methods`
    only theirs are measured, and the table keeps its other rows."""
    claims = load(methods)
    if not claims:
        raise BadInput(
            f"no method of {', '.join(methods) or 'those installed'} has a key 'claims'; "
            "nothing to measure"
        )
    found = Records(load_results(records.parent, records=records).entries)
    spoken = language(Predictions(output / CACHE), found)
    for claim in claims:
        for condition in claim.conditions:
            try:
                spoken.check(condition.measure)
            except BadInput as error:
                raise BadInput(f"method '{claim.method}', claim '{claim.name}': {error}") from error
    measured = each_told(
        claims,
        lambda claim: claim.row(spoken),
        lambda row: f"{row['method']} {row['name']}: {row['verdict']}",
    )
    kept = read_csv(output / FILE) if methods else []
    table = [*(row for row in kept if row["method"] not in methods), *measured]
    table.sort(key=lambda row: row["method"])  # stable: a method's claims stay in its own order
    write_text(output / FILE, csv_text(table, names("claims")))
    return measured


def publish(output: Path, target: Path) -> None:
    """Measure the claims on the published records, with the predictions that the run made."""
    if (output / CACHE).is_dir():
        shutil.copytree(output / CACHE, target / CACHE, dirs_exist_ok=True)
    write(target / "records", target)


def describe(found: Sequence[Row]) -> str:
    """The ledger for people: a line for each claim, then how many ended how."""
    columns = ("verdict", "method", "claim", "published", "measured", "expected")
    lines = [
        [
            row["verdict"],
            row["method"],
            row["name"],
            row["published"][:28],
            None if row.get("measured") is None else _figure(row["measured"]),
            row["expected"],
        ]
        for row in found
    ]
    verdicts = [row["verdict"] for row in found]
    counts = ", ".join(
        f"{verdicts.count(v)} {v}" for v in ("supported", "refuted", "undecided", "not_run")
    )
    table = text_table(columns, lines)
    return f"{table}\n{len(found)} claims: {counts}; the reasons are in the table's column 'why'"
