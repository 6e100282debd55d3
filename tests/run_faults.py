"""`make faults`: run the fault tests and the fuzzer, and say in one line what was counted.

    faults N, survived N, inputs fuzzed N, crashes N, records lost N

`faults` are the tests that put one in, `survived` those that passed; skipped ones are counted in
neither and named. `records lost` adds up what the tests say of the finished records before and
after their fault. Exits 1 where anything failed, crashed or was lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INPUTS = 2000


class Counts:
    """Counts the fault tests as they end. A test counts once, failed if any of its set-up, call and
    end failed."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.before = self.kept = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        former = self.outcomes.get(report.nodeid)
        if report.failed or former is None or (former == "passed" and report.skipped):
            self.outcomes[report.nodeid] = report.outcome
        if report.when == "teardown":
            told = dict(report.user_properties)
            self.before += int(str(told.get("records_before", 0)))
            self.kept += int(str(told.get("records_kept", 0)))

    def with_outcome(self, outcome: str) -> list[str]:
        return [name for name, found in self.outcomes.items() if found == outcome]


def fuzzed() -> dict[str, int]:
    """`inputs` and `crashes` of the fuzzer."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fuzz.json"
        words = [sys.executable, "tests/fuzz.py", "--inputs", str(INPUTS), "--out", str(out)]
        done = subprocess.run(words, cwd=ROOT, check=False)
        if not out.exists():
            raise SystemExit(f"the fuzzer wrote no counts (exit {done.returncode})")
        found = json.loads(out.read_text())
    return {"inputs": int(found["inputs"]), "crashes": int(found["crashes"])}


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    counts = Counts()
    status = pytest.main(["tests", "-m", "faults", *arguments], plugins=[counts])
    fuzz = fuzzed()
    for name in counts.with_outcome("skipped"):
        print(f"skipped: {name}")
    survived, failed = len(counts.with_outcome("passed")), len(counts.with_outcome("failed"))
    lost = counts.before - counts.kept
    print(
        f"faults {survived + failed}, survived {survived}, inputs fuzzed {fuzz['inputs']}, "
        f"crashes {fuzz['crashes']}, records lost {lost}"
    )
    return 1 if status or failed or fuzz["crashes"] or lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
