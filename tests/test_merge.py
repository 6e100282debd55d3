"""Records from another machine: judged one by one, the sound ones added, nothing written for the
others."""

import csv
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_records import ok

from leantune.cli import parser
from leantune.files.record import read_record, write_record
from leantune.results import merge
from leantune.spec.cells import resolve_cell, short_key

TRUTH = [float(i % 2) for i in range(200)]
HALF = [float(i // 2 % 2) for i in range(200)]
THEIRS = "a machine far away"
SETS = {"task.steps": 30, "task.batch": 2}


def sound(
    method="full", task="sentiment", predictions=TRUTH, hardware=THEIRS, overrides=None, **more
):
    """A record as a run on another machine writes it."""
    cell = resolve_cell("minilm-l6", task, method, device="cpu", overrides=overrides)
    right = sum(a == b for a, b in zip(predictions, TRUTH, strict=True)) / len(TRUTH)
    made = ok(
        method, quality=right, predictions=list(predictions), references=TRUTH, task=task, **more
    )
    made["cell"]["model"] = cell.model_name
    made["key"] = {**cell.key, "hardware": hardware, "samples": "abc"}
    made["key"]["short"] = short_key(made["key"], cell.hashes["task"])
    made["provenance"] = {
        "command": shlex.join(cell.command("records/x.json")),
        "commit": "a" * 40,
        "dirty": False,
        "hashes": dict(cell.hashes),
        "hardware": {"name": hardware},
    }
    return made


def controls(ballast=2**26, hardware=THEIRS):
    words = {"overrides": SETS, "hardware": hardware}
    made = [
        sound("head", **words),
        sound("allocate_64mib", peak=1000 + ballast, **words),
        sound("sleep", **words),
    ]
    made[2]["time"]["step_seconds_median"] = 0.7
    nothing = sound("train_nothing", predictions=HALF, **words)
    nothing["parameters"]["trainable"], nothing["size"] = 0, {"checkpoint_bytes": 0}
    return [
        *made,
        nothing,
        sound("random", predictions=HALF, **words),
        sound("tfidf", "leak", hardware=hardware),
    ]


def place(record):
    cell = record["cell"]
    place = (record["key"]["short"], cell["model"], cell["task"], cell["method"], cell["seed"])
    return "/".join(map(str, place)) + ".json"


def send(folder, *records):
    for record in records:
        write_record(folder / "records" / place(record), record)
    return folder


def files(folder: Path):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def judge(tmp_path, record, **options):
    """The verdict on one record sent with sound controls, and what is in the results then."""
    sent = send(tmp_path / "sent", *controls(), record)
    judged = {one.file: one for one in merge.merge(sent, tmp_path / "results", **options)}
    return judged[place(record)], files(tmp_path / "results")


def test_a_sound_folder_is_added_and_the_tables_are_rebuilt_from_it(tmp_path, capsys):
    sent, results = (
        send(tmp_path / "sent", *controls(), sound("full"), sound("lora", predictions=HALF)),
        tmp_path / "r",
    )
    assert parser.main(["merge", str(sent), "--into", str(results)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 8
    assert all(line.endswith(": added") for line in said)
    assert {p for p in files(results) if p.startswith("records/")} == {p for p in files(sent)}
    with (results / "tables" / "leaderboard.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["full"]["quality_mean"] == "1.0"
    assert rows["lora"]["quality_mean"] == "0.5"
    with (results / "tables" / "calibration.csv").open() as file:
        assert {row["passed"] for row in csv.DictReader(file)} == {"true", "not_run"}

    before = files(results)
    assert parser.main(["merge", str(sent), "--into", str(results)]) == 0
    assert all(line.endswith(": same") for line in capsys.readouterr().out.splitlines())
    assert files(results) == before


def test_a_record_with_other_numbers_is_kept_and_listed(tmp_path, capsys):
    results = send(tmp_path / "results", sound("full", predictions=HALF))
    before = files(results)
    sent = send(tmp_path / "sent", *controls(), sound("full"))
    assert parser.main(["merge", str(sent), "--into", str(results)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "/full/" in line]
    assert "conflict: other quality than the record there, which was kept" in line
    name = f"records/{place(sound('full'))}"
    assert files(results)[name] == before[name]


def test_a_damaged_record_in_the_results_is_left_as_it_is(tmp_path):
    name = tmp_path / "results" / "records" / place(sound("full"))
    name.parent.mkdir(parents=True)
    name.write_text("{")
    judged, _ = judge(tmp_path, sound("full"))
    assert (judged.verdict, name.read_text()) == ("conflict", "{")


def _set(*path, to):
    def change(record):
        inner = record
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_set("provenance", "hashes", "method", to="older"), "stale: its method files"),
        (_set("provenance", "hashes", "task", to="older"), "stale: its task files"),
        (_set("provenance", "hashes", "model", to="older"), "stale: its model files"),
        (_set("key", "measurement", to=1), "stale: measured by version 1"),
        (_set("provenance", "commit", to=None), "an unknown commit"),
        (_set("provenance", "dirty", to=True), "files that were not committed"),
        (_set("provenance", "dirty", to=None), "files that were not committed"),
        (_set("quality", "value", to=0.9), "its predictions score 1, not 0.9"),
        (_set("quality", "predictions", to=TRUTH[:-1]), "a prediction for each reference"),
        (_set("quality", "predictions", to=[]), "a prediction for each reference"),
        (_set("quality", "metric", to="macro_f1"), "its task by 'accuracy'"),
        (_set("quality", "higher_is_better", to=False), "its task by 'accuracy'"),
        (_set("quality", to=None), "a prediction for each reference"),
        (_set("key", "batch", to=99), "does not fit its command or provenance (batch)"),
        (_set("key", "hardware", to="a faster one"), "(hardware)"),
        (_set("key", "torch", to="9.9"), "its content belongs at"),
        (_set("cell", "seed", to=3), "its content belongs at"),
        (_set("cell", "method", to="lora"), "stale"),
        (_set("cell", "method", to="no_such"), "unknown method 'no_such'"),
        (_set("cell", "trial", to=2), "a tuning trial"),
        (_set("provenance", "command", to="leantune run --set 'x"), "command cannot be read"),
    ],
)
def test_what_is_not_sound_is_refused_and_not_written(tmp_path, change, why):
    record = sound("full")
    sent = tmp_path / "sent" / "records" / place(record)
    change(record)
    send(tmp_path / "sent", *controls())
    write_record(sent, record)
    results = tmp_path / "results"
    judged = {one.verdict: one for one in merge.merge(tmp_path / "sent", results)}
    assert set(judged) == {"added", "refused"}
    assert why in judged["refused"].why
    assert not [name for name in files(results) if "/full/" in name]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', "\0", "[" * 100_000])
def test_a_damaged_file_is_refused(tmp_path, text):
    sent = send(tmp_path / "sent", *controls())
    (sent / "records" / "damaged.json").write_text(text)
    judged = [
        str(one) for one in merge.merge(sent, tmp_path / "results") if one.verdict == "refused"
    ]
    assert len(judged) == 1
    assert judged[0].startswith("damaged.json: refused: ")
    assert "\n" not in judged[0]
    assert str(tmp_path) not in judged[0]


@pytest.mark.parametrize(
    ("number", "why"), [("NaN", "NaN is no number"), ("1e999", "1e999 is no number")]
)
def test_a_number_that_is_not_finite_is_refused(tmp_path, number, why):
    record = sound("full")
    sent = send(tmp_path / "sent", *controls(), record)
    file = sent / "records" / place(record)
    file.write_text(
        file.read_text().replace('"step_seconds_p95": 0.6', f'"step_seconds_p95": {number}')
    )
    (refused,) = [
        one for one in merge.merge(sent, tmp_path / "results") if one.verdict == "refused"
    ]
    assert why in refused.why


def test_a_dirty_record_may_be_allowed(tmp_path):
    record = sound("full")
    record["provenance"]["dirty"] = True
    assert judge(tmp_path, record, allow_dirty=True)[0].verdict == "added"


def test_nothing_leads_outside(tmp_path):
    """Neither by the names in a record, nor by links in what was sent or in the results."""
    outside = tmp_path / "outside"
    outside.mkdir()
    sent, results = send(tmp_path / "sent", *controls()), tmp_path / "results"
    climbing = sound("full")
    climbing["key"]["short"] = "../../../outside"
    write_record(sent / "records" / "climbing.json", climbing)
    elsewhere = tmp_path / "secret.json"
    write_record(elsewhere, sound("lora"))
    link = sent / "records" / place(sound("lora"))
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    trap = results / "records" / place(sound("bitfit"))
    trap.parent.parent.mkdir(parents=True)
    trap.parent.symlink_to(outside)
    send(sent, sound("bitfit"))
    judged = {one.file: one for one in merge.merge(sent, results) if one.verdict != "added"}
    assert {one.verdict for one in judged.values()} == {"refused"}
    assert "belongs at" in judged["climbing.json"].why
    assert "a link" in judged[place(sound("lora"))].why
    assert "out of the results" in judged[place(sound("bitfit"))].why
    assert files(outside) == {}
    assert not (results / "records" / place(sound("lora"))).exists()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(max_size=20), st.sampled_from(["model", "task", "method"]))
def test_names_of_any_kind_write_nothing_and_stay_one_line(tmp_path_factory, name, which):
    folder = tmp_path_factory.mktemp("merge")
    record = sound("full")
    record["cell"][which] = name
    sent = folder / "sent" / "records" / "x.json"
    sent.parent.mkdir(parents=True)
    sent.write_text(json.dumps(record))
    (judged,) = merge.merge(folder / "sent", folder / "results", uncalibrated=True)
    assert judged.verdict == "refused"
    assert len(str(judged).splitlines()) == 1
    assert not (folder / "results").exists()


# ------------------------------------------------------------------ the machine


def test_a_machine_whose_meter_is_off_is_refused_as_a_whole(tmp_path, capsys):
    wrong = [*controls(ballast=2**26 + 512), sound("full")]
    right = [*controls(hardware="another"), sound("full", hardware="another")]
    sent, results = send(tmp_path / "sent", *wrong, *right), tmp_path / "results"
    for flags in ([], ["--uncalibrated"]):
        assert parser.main(["merge", str(sent), "--into", str(results), *flags]) == 1
    said = capsys.readouterr().out
    assert said.count(
        "refused: the calibration of its machine failed (allocate_64mib_tensors)"
    ) == 2 * len(wrong)
    there = [read_record(p) for p in (results / "records").rglob("*.json")]
    assert {r["key"]["hardware"] for r in there} == {"another"}
    assert len(there) == len(right)


def test_a_machine_without_controls_is_refused_unless_that_is_allowed(tmp_path):
    sent = send(tmp_path / "sent", sound("full"))
    (judged,) = merge.merge(sent, tmp_path / "results")
    assert judged.verdict == "refused"
    assert "no control cells for allocate_64mib_tensors, sleep" in judged.why
    assert not (tmp_path / "results").exists()
    (judged,) = merge.merge(sent, tmp_path / "results", uncalibrated=True)
    assert judged.verdict == "added"


def test_a_control_that_is_refused_calibrates_nothing(tmp_path):
    own = controls()
    own[2]["provenance"]["hashes"]["method"] = "a shorter sleep"
    sent = send(tmp_path / "sent", *own, sound("full"))
    judged = {one.file: one for one in merge.merge(sent, tmp_path / "results")}
    assert {one.verdict for one in judged.values()} == {"refused"}
    assert "no control cells for sleep" in judged[place(sound("full"))].why


def test_a_folder_without_records_is_bad_input(tmp_path, capsys):
    assert parser.main(["merge", str(tmp_path)]) == 2
    assert "holds no records" in capsys.readouterr().err


@pytest.mark.process
def test_a_record_that_a_run_just_wrote_is_sound(tmp_path, host):
    """The place, the key and the score as the worker makes them, with the short key computed a
    second time."""
    cell = resolve_cell(
        "minilm-l6", "valence", "tfidf", device="cpu", overrides={"task.train": 64, "task.test": 60}
    )
    out = tmp_path / "run" / cell.record_path
    done = host.run(cell.command(str(out))[1:])
    assert done.returncode == 0, done.stderr
    (judged,) = merge.merge(
        tmp_path / "run", tmp_path / "results", allow_dirty=True, uncalibrated=True
    )
    assert judged.verdict == "added", str(judged)
