import copy
import csv
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_records import failed, ok, place, write

from leantune.errors import BadInput
from leantune.files.text import csv_text
from leantune.prediction import paper_scale
from leantune.results import build, columns
from leantune.results import leaderboard as rows
from leantune.results.comparable import Entry
from leantune.results.comparison import compare_published
from leantune.results.leaderboard import leaderboard
from leantune.results.load import is_stale, load
from leantune.results.publish import publish
from leantune.results.readme import markdown_leaderboard, update_readme
from leantune.spec import plugins
from leantune.spec.cells import resolve_cell
from leantune.spec.config import expand, load_config

NAMES = (
    "key,model,task,method,status,seeds,tier,quality_metric,quality_mean,quality_low,quality_high,"
    "peak_memory_bytes,peak_source,peak_vs_full,mean_peak_bytes,step_seconds_median,time_vs_full,"
    "trainable_parameters,checkpoint_bytes,deployed_parameters,inference_tokens_per_second"
)


def entries(*records):
    return [Entry(place(record), record["status"], record) for record in records]


def ranks(found):
    return {(row["key"], row["method"]): row.get("tier") for row in found if row["status"] == "ok"}


def by_method(found):
    return {row["method"]: row for row in found}


@pytest.fixture
def not_stale(monkeypatch):
    """The sample records' hashes belong to no file."""
    monkeypatch.setattr("leantune.results.load.is_stale", lambda record: False)


# ------------------------------------------------------------------ leaderboard


def test_a_row_aggregates_its_seeds():
    row = leaderboard(
        entries(*[ok("lora", s, q, p) for s, q, p in [(0, 0.7, 10), (1, 0.8, 12), (2, 0.9, 11)]])
    )[0]
    assert (row["seeds"], row["quality_metric"], row["peak_memory_bytes"]) == (3, "accuracy", 12)
    assert row["quality_mean"] == pytest.approx(0.8)
    assert row["quality_low"] == pytest.approx(0.8 - 4.302652729911275 * 0.1 / 3**0.5)
    assert (row["trainable_parameters"], row["step_seconds_median"]) == (10, 0.5)


def test_one_seed_has_no_interval_and_missing_numbers_are_empty():
    row = leaderboard(entries(ok("lora")))[0]
    text = csv_text(
        [row], ["quality_low", "quality_high", "time_vs_full", "checkpoint_bytes", "peak_vs_full"]
    )
    assert text.splitlines()[1] == ",,,,"


def test_peak_is_compared_with_full_of_the_same_key_model_and_source():
    here = [ok("full", peak=400), ok("lora", peak=100), ok("lora", peak=100, key={"batch": 8})]
    on_gpu = ok("came", peak=50)
    on_gpu["memory"]["peak_source"] = "cuda"
    found = {
        (r["key"], r["method"]): r.get("peak_vs_full") for r in leaderboard(entries(*here, on_gpu))
    }
    assert found == {
        ("cpu-b16", "full"): 1.0,
        ("cpu-b16", "lora"): 0.25,
        ("cpu-b8", "lora"): None,
        ("cpu-b16", "came"): None,
    }


def test_measured_over_predicted_compares_figures_of_one_kind():
    exact, on_gpu, unknown = ok("full", peak=100), ok("lora", peak=90), ok("came")
    exact["memory"]["predicted"] = {"peak_bytes": 80, "allocated_bytes": 50}
    on_gpu["memory"].update(
        cuda={"allocated_peak_bytes": 96}, predicted={"peak_bytes": 80, "allocated_bytes": 120}
    )
    unknown["memory"]["predicted"] = {"peak_bytes": None, "reason": "the rank is not known"}
    expected = {"full": 1.25, "lora": 0.8, "came": None}
    found = entries(exact, on_gpu, unknown)
    for table in (rows.cells(found), leaderboard(found)):
        assert {r["method"]: r["measured_over_predicted"] for r in table} == expected
    worst = copy.deepcopy(exact)
    worst["cell"]["seed"], worst["memory"]["predicted"]["peak_bytes"] = 1, 50
    assert leaderboard(entries(exact, worst))[0]["measured_over_predicted"] == 2.0


def test_best_first_in_either_direction():
    up = leaderboard(entries(ok("a", quality=0.1), ok("b", quality=0.9)))
    down = leaderboard(
        entries(ok("a", quality=0.1, higher=False), ok("b", quality=0.9, higher=False))
    )
    assert [r["method"] for r in up] == ["b", "a"]
    assert [r["method"] for r in down] == ["a", "b"]


def test_seeds_separate_what_differs_at_every_seed_and_not_what_does_not():
    clear = [ok(m, s, q + 0.01 * s) for s in range(4) for m, q in [("a", 0.9), ("b", 0.5)]]
    noisy = [ok("c", s, q) for s, q in enumerate([0.93, 0.87, 0.95, 0.88])]
    found = by_method(leaderboard(entries(*clear, *noisy)))
    assert (found["a"]["tier"], found["c"]["tier"], found["b"]["tier"]) == (1, 1, 2)
    assert found["a"]["tier_from"] == "seeds"


def test_one_seed_is_separated_by_its_test_examples_or_not_at_all():
    truth = [float(i % 2) for i in range(300)]
    worse = [1 - x if i < 60 else x for i, x in enumerate(truth)]
    sure = [
        ok("a", 0, 1.0, predictions=truth, references=truth),
        ok("b", 0, 0.8, predictions=worse, references=truth),
    ]
    found = by_method(leaderboard(entries(*sure)))
    assert (found["a"]["tier"], found["b"]["tier"], found["a"]["tier_from"]) == (1, 2, "examples")
    found = by_method(leaderboard(entries(ok("a", 0, 1.0), ok("b", 0, 0.1))))
    assert (found["a"]["tier"], found["b"]["tier"]) == (1, 1)


def test_a_lower_loss_ranks_higher():
    losses = {
        "a": [1.0 + 0.001 * i for i in range(200)],
        "b": [2.0 + 0.002 * i for i in range(200)],
    }
    found = by_method(
        leaderboard(
            entries(
                *[
                    ok(m, 0, sum(x), metric="loss", higher=False, predictions=x)
                    for m, x in losses.items()
                ]
            )
        )
    )
    assert (found["a"]["tier"], found["b"]["tier"]) == (1, 2)


def test_other_samples_are_never_ranked_together():
    found = leaderboard(
        entries(
            *[ok(m, s, q, key={"samples": m}) for m, q in [("a", 0.9), ("b", 0.1)] for s in (0, 1)]
        )
    )
    assert [row["tier"] for row in found] == [1, 1]


def test_failed_and_stale_cells_are_listed_without_a_tier():
    stale = Entry("x", "stale", ok("came", quality=0.99))
    found = by_method(
        leaderboard([*entries(ok("full"), failed("lora"), failed("full", 1, "diverged")), stale])
    )
    assert (found["lora"]["status"], found["lora"]["tier"], found["lora"].get("quality_mean")) == (
        "oom",
        None,
        None,
    )
    assert (found["came"]["status"], found["came"]["tier"]) == ("stale", None)
    assert (found["full"]["status"], found["full"]["seeds"], found["full"]["failed_seeds"]) == (
        "ok",
        1,
        1,
    )


METHODS = st.sampled_from(["full", "lora", "came", "svfit@r64", "vocab_pruning+came"])
RECORDS = st.lists(
    st.builds(
        lambda m, seed, quality, batch: ok(m, seed, quality, key={"batch": batch}),
        METHODS,
        st.integers(0, 3),
        st.floats(0, 1),
        st.sampled_from([8, 16]),
    ),
    min_size=1,
    max_size=12,
    unique_by=place,
)
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(RECORDS, st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_record_order(records, rng):
    shuffled = records.copy()
    rng.shuffle(shuffled)
    for make in (rows.leaderboard, rows.cells, rows.failures):
        assert make(entries(*records)) == make(entries(*shuffled))


@QUICK
@given(RECORDS, METHODS, st.sampled_from(["oom", "timeout", "diverged", "unsupported", "error"]))
def test_a_failed_record_changes_no_rank(records, method, status):
    before = ranks(leaderboard(entries(*records)))
    assert ranks(leaderboard(entries(*records, failed(method, 9, status)))) == before


@QUICK
@given(RECORDS)
def test_another_batch_size_never_shares_a_rank(records):
    found = leaderboard(entries(*records))
    alone = [leaderboard(entries(*[r for r in records if r["key"]["batch"] == b])) for b in (8, 16)]
    assert ranks(found) == {**ranks(alone[0]), **ranks(alone[1])}


@QUICK
@given(RECORDS, st.permutations(range(4)))
def test_naming_the_seeds_otherwise_changes_no_tier(records, names):
    renamed = [
        ok(r["cell"]["method"], names[r["cell"]["seed"]], r["quality"]["value"], key=r["key"])
        for r in records
    ]
    assert ranks(leaderboard(entries(*renamed))) == ranks(leaderboard(entries(*records)))


# ------------------------------------------------------------------ files


def read(output, name):
    with (output / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_same_bytes_twice_and_in_any_order(tmp_path, not_stale):
    records = [ok(m, s, 0.1 * s) for m in ("full", "lora") for s in range(3)] + [failed("came")]
    contents = []
    for folder in ("a", "b", "b"):
        random.shuffle(records)
        write(tmp_path / folder, *records)
        build.write_tables(tmp_path / folder)
        contents.append([f.read_bytes() for f in sorted((tmp_path / folder / "tables").iterdir())])
    assert contents[0] == contents[1] == contents[2]


def test_leaderboard_columns_begin_as_promised(tmp_path, not_stale):
    write(tmp_path, ok())
    build.write_tables(tmp_path)
    assert (tmp_path / "tables" / "leaderboard.csv").read_text().startswith(NAMES + ",")
    assert len(read(tmp_path, "cells")) == 1


def test_a_new_number_is_one_line_of_the_table_of_columns(tmp_path, not_stale, monkeypatch):
    new = columns.Column("odd_bytes", "details.odd", "largest", "bytes", "odd", "a new number")
    alone = columns.Column("lone", "details.lone", "", "", "lone", "of one seed")
    more = {"odd_bytes": new, "lone": alone}
    known = columns.known()
    monkeypatch.setattr(columns, "known", lambda: {**known, **more})
    records = [ok("lora", seed) for seed in (0, 1)]
    for number, record in enumerate(records):
        record["details"] = {"odd": 2**20 * (1 + number), "lone": number}
    write(tmp_path, *records)
    build.write_tables(tmp_path)
    assert [(r["odd_bytes"], r["lone"]) for r in read(tmp_path, "cells")] == [
        ("1048576", "0"),
        ("2097152", "1"),
    ]
    (row,) = read(tmp_path, "leaderboard")
    assert row["odd_bytes"] == "2097152"
    assert "lone" not in row


def test_every_column_has_a_title_and_says_what_it_means():
    for table in columns.ORDER:
        for column in columns.of_table(table):
            assert column.title, (table, column.name)
            assert column.help, (table, column.name)
            assert column.seeds in {"", *columns.JOINED}
            if column.path and "." not in column.path:
                assert column.path in {*columns.DERIVED, "phase", "reason"}
    for name in paper_scale.COLUMNS:
        assert columns.column(name, "footprint").help


def test_damaged_records_are_named_and_the_tables_go_on(tmp_path, not_stale, capsys):
    write(tmp_path, ok("full"), ok("lora"), ok("came"))
    files = {m: tmp_path / "records" / place(ok(m)) for m in ("lora", "came")}
    files["lora"].write_text("{")
    files["came"].write_text(
        files["came"].read_text().replace('"status": "ok"', '"status": "fine"')
    )
    copy = tmp_path / "records" / place(ok("full", 7))
    copy.write_text((tmp_path / "records" / place(ok("full"))).read_text())
    build.write_tables(tmp_path)
    assert [(r["method"], r["seeds"]) for r in read(tmp_path, "leaderboard")] == [("full", "1")]
    bad = read(tmp_path, "failures")
    assert {(r["status"], r["method"], r["seed"]) for r in bad} == {
        ("damaged", "came", "0"),
        ("damaged", "lora", "0"),
        ("damaged", "full", "7"),
    }
    said = capsys.readouterr().err
    assert all(row["file"] in said for row in bad)
    assert str(tmp_path) not in (tmp_path / "tables" / "failures.csv").read_text()


def _cells(*methods):
    config = {
        "cells": [{"models": ["minilm-l6"], "tasks": ["sentiment"], "methods": list(methods)}],
        "device": "cpu",
    }
    return expand(load_config(config))


def _record_of(cell, **more):
    record = ok(
        cell.method, cell.seed, command=" ".join(cell.command()), hashes=dict(cell.hashes), **more
    )
    record["key"] = {**cell.key, "samples": "abc"}
    return record


def test_expected_cells_without_a_record_are_missing(tmp_path):
    full, lora = _cells("full", "lora")
    write(tmp_path, _record_of(full))
    build.write_tables(tmp_path, [full, lora])
    assert [
        (r["status"], r["task"], r["method"], r["seed"]) for r in read(tmp_path, "failures")
    ] == [("missing", "sentiment", "lora", "0")]


def test_a_record_of_changed_files_is_stale(tmp_path):
    full, lora = _cells("full", "lora")
    old = _record_of(lora)
    old["provenance"]["hashes"]["method"] = "older"
    write(tmp_path, _record_of(full), old)
    found = by_method(build.write_tables(tmp_path))
    assert (found["full"]["status"], found["full"]["tier"]) == ("ok", 1)
    assert (found["lora"]["status"], found["lora"]["tier"]) == ("stale", None)
    assert "changed" in read(tmp_path, "failures")[0]["reason"]


def test_staleness_knows_the_settings_and_methods_that_are_gone(tmp_path):
    cell = resolve_cell(
        "minilm-l6", "sentiment", "lora", device="cpu", overrides={"lora.rank": 4, "task.steps": 3}
    )
    record = _record_of(cell)
    assert not is_stale(record)
    record["provenance"]["command"] = record["provenance"]["command"].replace(
        "lora.rank=4", "lora.rank=5"
    )
    assert is_stale(record)
    record["cell"]["method"] = "no_such_method"
    assert is_stale(record)


def test_the_gate_lists_what_the_config_does_not_allow(tmp_path):
    cells = _cells("full", "lora", "head", "bitfit")
    statuses = {"lora": "oom", "head": "unsupported"}
    for cell in cells[:3]:
        record = _record_of(cell)
        if cell.method in statuses:
            record.update(
                status=statuses[cell.method], phase="load", reason="the reason", quality=None
            )
        write(tmp_path, record)
    lines = build.not_allowed(load(tmp_path, cells), ["ok", "unsupported"])
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["missing", "minilm-l6", "sentiment", "bitfit"],
        ["oom", "minilm-l6", "sentiment", "lora"],
    ]
    assert "the reason" in lines[2]
    assert "2 of 4 cells" in lines[3]
    assert build.not_allowed(load(tmp_path, cells), ["ok", "unsupported", "oom", "missing"]) == []


def test_unwritable_tables_are_one_sentence(tmp_path):
    (tmp_path / "tables").write_text("a file in the way")
    with pytest.raises(BadInput, match=r"cannot write .*tables"):
        build.write_tables(tmp_path)


# ------------------------------------------------------------------ for people


def test_markdown_has_units_intervals_and_failures():
    many = [ok("full", s, 0.8 + 0.01 * s, 3 * 2**30) for s in range(3)] + [
        ok("lora", 0, 0.7, 5 * 2**20),
        failed("came"),
    ]
    text = markdown_leaderboard(leaderboard(entries(*many)))
    assert "**sentiment** with minilm-l6, accuracy (higher is better)" in text
    assert "| 1 | full | 0.810 [0.785, 0.835] | 3 | 3.00 GiB | 1.00 | 500 ms | 10 |  |" in text
    assert "| lora | 0.700 | 1 | 5.0 MiB | 0.00 |" in text
    assert "| came | oom |" in text


def test_all_leaderboards_but_the_largest_are_folded():
    found = [ok(m, quality=q) for m, q in [("full", 0.8), ("lora", 0.7)]]
    small = ok("full", quality=0.9)
    small["cell"]["task"] = "topics52"
    text = markdown_leaderboard(leaderboard(entries(*found, small)))
    largest, folded = text.split("<details>")
    assert "**sentiment**" in largest
    assert folded.startswith("\n<summary>topics52 with minilm-l6</summary>\n\n**topics52** with")
    assert text.endswith("\n\n</details>")
    assert "<details>" not in markdown_leaderboard(leaderboard(entries(*found)))


def test_readme_is_changed_between_the_marks_only(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("top\n<!-- leaderboard:begin -->\nold\n<!-- leaderboard:end -->\nbottom\n")
    for _ in range(2):
        update_readme(readme, "new\n")
        expected = "top\n<!-- leaderboard:begin -->\nnew\n<!-- leaderboard:end -->\nbottom\n"
        assert readme.read_text() == expected
    with pytest.raises(BadInput, match=r"cannot read .*NONE"):
        update_readme(tmp_path / "NONE.md", "new")
    readme.write_text("no marks")
    with pytest.raises(BadInput, match="leaderboard:begin"):
        update_readme(readme, "new")


def _compared(tmp_path, mine, theirs):
    write(tmp_path / "run", mine)
    if theirs:
        write(tmp_path / "results", theirs)
    text = compare_published(load(tmp_path / "run").records, tmp_path / "results")
    return text, " ".join(text.splitlines()[2].split())


def test_reproduced_against_published(tmp_path):
    theirs = ok("lora", quality=0.79, peak=100)
    theirs["time"]["step_seconds_median"] = 0.25
    text, row = _compared(tmp_path, ok("lora", quality=0.8, peak=100), theirs)
    assert row == "minilm-l6 sentiment lora 0 0.8000 0.7900 +0.0100 equal 2.00 -"
    assert "1 of 1 cells compared" in text
    assert "equal in 1 of 1" in text


def test_of_several_published_runs_the_one_with_the_same_settings_is_compared(tmp_path):
    tuned = ok("lora", quality=0.9)
    tuned["provenance"]["hashes"] = {**tuned["provenance"]["hashes"], "method": "of other settings"}
    write(tmp_path / "results" / "a", tuned)  # found first
    write(tmp_path / "results" / "b", ok("lora", quality=0.79))
    write(tmp_path / "run", ok("lora", quality=0.8))
    text = compare_published(load(tmp_path / "run").records, tmp_path / "results")
    assert "0.8000 0.7900 +0.0100" in " ".join(text.split())
    assert "the files changed" not in text


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (ok("lora", peak=101), "0.8000 0.8000 +0.0000 differ 1.00 -"),
        (
            ok("lora", key={"hardware": "another"}),
            "0.8000 0.8000 +0.0000 equal - time: other hardware",
        ),
        (ok("lora", key={"torch": "2.14"}), "0.8000 0.8000 +0.0000 - 1.00 bytes: other torch"),
        (ok("lora", key={"batch": 8, "steps": 50}), "0.8000 - - - - other batch, steps"),
        (ok("lora", key={"batch": 8}), "0.8000 - - - - other batch"),
        (failed("lora"), "0.8000 - - - - published ended as oom"),
        (None, "0.8000 - - - - not published"),
    ],
)
def test_what_cannot_be_compared_says_why(tmp_path, theirs, expected):
    _, row = _compared(tmp_path, ok("lora"), theirs)
    assert row == f"minilm-l6 sentiment lora 0 {expected}"


def test_publish_copies_records_and_tables_and_keeps_other_machines(tmp_path):
    (cell,) = _cells("full")
    run, results = tmp_path / "run", tmp_path / "results"
    other = _record_of(cell)
    other["key"]["short"] = "other-machine"
    write(results, other)
    write(run, _record_of(cell))
    publish(run, results, [cell])
    assert len(read(results, "cells")) == 2
    assert not [r for r in read(results, "failures")]
    with pytest.raises(BadInput, match="no record"):
        publish(tmp_path / "empty", results, [cell])


def test_schema_of_configs_names_the_key():
    with pytest.raises(
        BadInput, match=r"key 'cells\.0\.method' is unknown; allowed: models, tasks, methods"
    ):
        load_config(
            {"cells": [{"models": ["m"], "tasks": ["t"], "methods": ["full"], "method": 1}]}
        )


@pytest.mark.parametrize("name", ["config", "smoke", "full"])
def test_shipped_configs_resolve(name):
    file = plugins.roots()[0] / "config" / f"{name}.yaml"
    assert expand(load_config(file))


def test_what_has_no_tier_is_called_not_placed_but_a_control_is_not_ranked_at_all() -> None:
    found = [
        ok(m, s, q + s / 100)
        for s in range(3)
        for m, q in [("full", 0.8), ("lora", 0.79), ("head", 0.6)]
    ]
    found += [ok("svd", s, q) for s, q in enumerate([0.5, 0.9, 0.7])] + [
        ok("tfidf", quality=0.7, model="none")
    ]
    lines = markdown_leaderboard(leaderboard(entries(*found))).splitlines()
    assert [
        line.split(" | ")[:2] for line in lines if "| svd |" in line or "| tfidf |" in line
    ] == [
        ["| not placed", "svd"],
        ["| ", "tfidf"],
    ]


def test_controls_stand_below_the_models_of_their_task() -> None:
    rows = leaderboard(
        entries(
            ok("full", quality=0.9), ok("lora", quality=0.8), ok("tfidf", quality=0.7, model="none")
        )
    )
    text = markdown_leaderboard(rows)
    assert text.count("**sentiment**") == 1
    assert [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ")][1:] == [
        "full",
        "lora",
        "tfidf",
    ]
