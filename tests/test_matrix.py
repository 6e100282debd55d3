"""The matrix of methods and architectures: its runner and its page."""

import os
import signal
import time

import pytest
from tests import matrix, matrix_page
from tests.matrix import Cell

from leantune.api import Unsupported


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
