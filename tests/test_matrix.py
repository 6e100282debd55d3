"""The matrix of methods and architectures: its runner, and whether docs/matrix.md is current."""

import datetime
import os
import signal
import time

import pytest
from tests import matrix, matrix_page
from tests.matrix import Cell

from leantune.api import Unsupported

SECONDS = 100  # of a sample on one core; with the start two minutes


@pytest.fixture
def published():
    return matrix_page.read(matrix_page.PAGE.read_text(encoding="utf-8"))


def test_the_page_has_a_cell_for_each_method_and_architecture_and_no_other(published):
    assert {*published.statuses} == {*matrix.cells()}, "run `make matrix`, which writes the page"


@pytest.mark.xfail(strict=True, reason="faults that are being mended; the page lists them")
def test_the_page_has_no_fault(published):
    assert [cell for cell, said in published.statuses.items() if said == "fault"] == []


def test_there_are_forty_architectures_and_every_method_that_takes_a_model():
    names = {cell.architecture for cell in matrix.cells()}
    assert len(names) >= 40
    assert {"full", "qlora", "vocab_pruning", "vocab_pruning+lora+came"} <= {*matrix.methods()}
    assert "tfidf" not in matrix.methods()


def test_a_page_is_read_as_it_was_written():
    said = ["works", "refused", "fault"]
    rows = {
        cell: matrix.row(cell, said[number % 3], f"{cell.architecture} lacks it", 0.1)
        for number, cell in enumerate(matrix.cells())
    }
    text = matrix_page.page(rows)
    read = matrix_page.read(text)
    assert read.statuses == {cell: row["status"] for cell, row in rows.items()}
    assert read.code["full", "causal_lm"] == matrix_page.code_of("full", "causal_lm")
    assert "- `full`: … lacks it (" in text


def test_a_sample_begins_with_what_changed_and_follows_the_day(published):
    code = {**published.code, ("came", "causal_lm"): "another"}
    changed = matrix_page.Published(published.statuses, code)
    first, second = (matrix_page.sample(day, changed) for day in ("2026-01-01", "2026-01-02"))
    number = len(matrix.columns()["causal_lm"])
    stale = {(cell.method, cell.kind) for cell in first[:number]}
    assert ("came", "causal_lm") in stale
    assert first != second
    assert {*first} == {*second} == {*matrix.cells()}


# ------------------------------------------------------------------ what a cell says


class Broken(matrix.Stack):
    """A stack whose export changes the model."""

    def export(self, model, ctx):
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        return super().export(model, ctx)


def test_a_cell_works_is_refused_or_has_a_fault(monkeypatch):
    cell = Cell("llama", "causal_lm", "full")
    assert matrix.result(cell)["status"] == "works"
    refused = matrix.result(Cell("llama", "causal_lm", "head"))
    assert refused["status"] == "refused"
    assert "tasks" in refused["reason"]
    monkeypatch.setattr(matrix, "Stack", Broken)
    broken = matrix.result(cell)
    assert broken["status"] == "fault"
    assert broken["reason"].startswith("export: AssertionError: export changed it")


def test_a_refusal_after_attach_is_a_fault(monkeypatch):
    def refuse(*_):
        raise Unsupported("not this model")

    monkeypatch.setattr(matrix, "_check_memory", refuse)
    found = matrix.result(Cell("llama", "causal_lm", "full"))
    assert (found["status"], found["reason"]) == ("fault", "memory: Unsupported: not this model")


def test_memory_that_is_not_the_real_one_is_a_fault(monkeypatch):
    monkeypatch.setattr(matrix.Probe, "fake", lambda self, *_, **__: dict.fromkeys(NUMBERS, 1))
    found = matrix.result(Cell("llama", "causal_lm", "full"))
    assert found["reason"].startswith("memory: AssertionError: peak_bytes: predicted 1, real ")


NUMBERS = ("peak_bytes", "by_kind", "by_phase", "optimizer_state_bytes", "flops_per_step")


@pytest.mark.process
def test_a_cell_that_kills_its_process_or_hangs_costs_that_cell_only(monkeypatch):
    one, two, three = (Cell(name, "causal_lm", "full") for name in ("llama", "gpt2", "opt"))
    whole = matrix.result

    def result(cell):
        if cell == one:
            os.kill(os.getpid(), signal.SIGKILL)
        if cell == two:
            time.sleep(60)
        return whole(cell)

    monkeypatch.setattr(matrix, "result", result)
    monkeypatch.setattr(matrix, "LIMIT", 3)
    found = {row["architecture"]: row for row in matrix.run([one, two, three], workers=1)}
    assert found["llama"]["reason"] == "exit -9"
    assert found["gpt2"]["reason"] == "took more than 3 s"
    assert found["opt"]["status"] == "works"


@pytest.mark.process
def test_finished_cells_are_kept_and_a_cut_line_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "CELLS", tmp_path / "matrix" / "cells.jsonl")
    words = ["--method", "full", "--architecture", "gpt2", "opt", "--workers", "1"]
    assert matrix.main(words) == 0
    text = matrix.CELLS.read_text()
    assert len(text.splitlines()) == 2
    assert matrix.main(words) == 0
    assert matrix.CELLS.read_text() == text
    matrix.CELLS.write_text(text[:-20])
    assert matrix.main(words) == 0
    assert len(matrix.finished()) == 2


# ------------------------------------------------------------------ the sample


@pytest.mark.process
@pytest.mark.timeout(400)
def test_a_sample_of_the_day_says_what_the_page_says(published):
    day = datetime.date.today().isoformat()
    order = matrix_page.sample(day, published)
    rows = [*matrix.run(order, workers=1, seconds=SECONDS)]
    print(f"matrix: sample of {day}, {len(rows)} of {len(order)} cells in {SECONDS} s")
    wrong = [
        f"{cell}: {row['status']} {row['reason']}, the page says {published.statuses[cell]}"
        for row in rows
        if (cell := Cell(row["architecture"], row["kind"], row["method"]))
        and published.statuses[cell] not in (row["status"], "fault")  # which its own test tells
    ]
    assert wrong == [], f"sample of {day}"
