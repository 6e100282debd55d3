"""docs/failures.md names the tests that hold what it says."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_the_table_of_faults_and_the_fault_tests_name_each_other():
    text = (TESTS.parent / "docs" / "failures.md").read_text()
    named, file = set(), ""
    for where, test in re.findall(r"`(\w+\.py)?::(\w+)`", text):
        file = where or file
        named.add((file, test))
    assert len(named) > 30
    defined = {
        (path.name, test)
        for path in TESTS.glob("test_*.py")
        for test in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert named <= defined
    # What is left unnamed holds a part of the machinery, not a fault.
    parts = {
        "test_the_optimizer_keeps_its_own_precision",
        "test_a_state_of_another_structure_is_refused_and_changes_nothing",
        "test_what_nvidia_smi_says_is_read",
        "test_the_worker_sees_the_leased_device_alone_and_holds_its_lease_too",
    }
    marked = {
        n
        for n in defined
        if re.search(r"^pytestmark = .*mark\.faults", (TESTS / n[0]).read_text(), re.MULTILINE)
    }
    assert {test for _, test in marked - named} == parts
