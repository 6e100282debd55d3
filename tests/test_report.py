"""The report: the page, the pages of methods, the answer's script and the figures, from made and
published results."""

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import playwright
import pytest
from sample_records import failed, ok, place, write

from leantune import report
from leantune.cli import parser
from leantune.files.text import csv_text
from leantune.prediction import paper_scale
from leantune.report import charts, sentences, site, views
from leantune.report.data import Line, read_content
from leantune.results import build, columns
from leantune.spec import plugins

ROOT = plugins.roots()[0]
NODE = (
    Path(playwright.__file__).parent / "driver" / "node"
)  # the JavaScript engine that playwright brings
MIB, GIB = 2**20, 2**30
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "../../evil")
CARDS = (8, 16, 24, 48, 80)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr("leantune.results.load.is_stale", lambda record: False)


# ------------------------------------------------------------------ made results


def run(method="full", quality=0.8, peak=100, seconds=0.5, seed=0, **more):
    """A record with everything that is drawn. `peak`: the MiB of optimizer states, weights are 100
    MiB."""
    kinds = dict.fromkeys(("buffers", "gradients", "activations", "temporaries", "inputs"), 0)
    kinds |= {"weights": 100 * MIB, "optimizer": peak * MIB}
    record = ok(method, seed, quality, sum(kinds.values()), **more)
    record["memory"]["tensors"] |= {"by_kind": kinds, "peak_bytes": sum(kinds.values())}
    record["time"]["step_seconds_median"] = seconds
    points = [
        {"step": step, "value": quality - 0.1 + step / 1000, "loss": 1.0, "seconds": 1.0}
        for step in (50, 100)
    ]
    record["quality"] |= {"curve": points, "target": 0.7}
    return record


def predicted(method, reserved, model="bert-base", batches=(None,) * 5, **more):
    row = {
        "model": model,
        "method": method,
        "kind": "classification",
        "batch": 8,
        "seq": 128,
        "dtype": "fp32",
    }
    row |= {
        "status": "ok",
        "peak_bytes": int(0.9 * reserved * GIB),
        "reserved_bytes": int(reserved * GIB),
        **more,
    }
    return row | {f"largest_batch_{gib}gib": n for gib, n in zip(CARDS, batches, strict=True)}


FOOTPRINT = [
    predicted("full", 9, batches=(0, 9, 19, 30, 60)),
    predicted("lora", 2, batches=(74, 160, 300, 600, 999)),
]


def save(folder, name, rows):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "tables" / f"{name}.csv").write_text(csv_text(rows, columns))


def results(folder, *records, **more):
    """A folder of results: records, the tables made of them, and `more` tables by name."""
    write(folder, *records)
    build.write_tables(folder)
    for name, rows in more.items():
        save(folder, name, rows)
    return folder


def four():
    """full and lora cannot be told apart (two seeds that cross), head is worse, came did not get
    through."""
    good = [
        run(m, q, p, seed=s)
        for s, m, q, p in (
            (0, "full", 0.80, 200),
            (1, "full", 0.82, 200),
            (0, "lora", 0.81, 20),
            (1, "lora", 0.80, 20),
        )
    ]
    return [
        *good,
        *(run("head", 0.6 + s / 100, 0, 0.1, s) for s in (0, 1)),
        failed("came", status="oom"),
    ]


def built(folder):
    return report.write_report(folder, folder / "report").read_text()


class Page(HTMLParser):
    """Its elements with their attributes, and its text outside scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.inside, self.scripts = [], "", "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data

    def all(self, tag, name):
        return [attrs[name] for found, attrs in self.elements if found == tag and name in attrs]


# ------------------------------------------------------------------ the published results


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return report.write_report(ROOT / "results", out)


def test_the_published_page_has_every_view_under_its_stable_name(published):
    page = Page(published.read_text())
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = (
        "answer",
        "answer-model",
        "answer-task",
        "budget-memory",
        "budget-time",
        "budget-loss",
        "answer-text",
    )
    assert {
        *wanted,
        "table-cells",
        "table-claims",
        "table-calibration",
        "table-environment",
        "table-footprint",
    } <= {*ids}
    kinds = {i.split("-")[1] for i in page.all("figure", "id")}
    assert kinds == {"memory", "time", "waterfall", "curves", "intervals", "ranks", "footprint"}
    labelled = set(page.all("label", "for"))
    controls = {attrs["id"] for tag, attrs in page.elements if tag in ("input", "select")}
    assert controls == labelled
    headed = [attrs for tag, attrs in page.elements if tag == "th" and attrs.get("scope") == "col"]
    assert headed
    assert all(attrs["title"] for attrs in headed)


def test_every_link_leads_to_a_file_or_a_place_on_the_page(published):
    pages = [published, *published.parent.glob("methods/*.html")]
    assert {"safe.html", "vocab_pruning.html", "came.html"} <= {page.name for page in pages}
    for file in pages:
        page = Page(file.read_text())
        ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
        for link in page.all("a", "href"):
            if link.startswith("#"):
                assert link[1:] in ids
            elif not re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", link):
                assert (file.parent / unquote(link)).is_file(), link


def test_nothing_is_fetched_and_no_script_runs_but_the_three_of_the_page(published):
    for file in (published, *published.parent.glob("methods/*.html")):
        page = Page(file.read_text())
        assert not [a for _, a in page.elements if "src" in a or a.get("rel") == "stylesheet"]
        (policy,) = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
        assert policy.startswith("default-src 'none';")
        types = page.all("script", "type")
        code = [
            s
            for s, a in zip(
                page.scripts, [a for t, a in page.elements if t == "script"], strict=True
            )
            if a.get("type") != "application/json"
        ]
        hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in code}
        assert hashes == set(re.findall(r"'sha256-([^']+)'", policy))
        assert len(code) == (3 if file == published else 0)
        assert set(types) <= {"application/json", "module"}


def test_a_method_page_says_what_it_is_what_was_inferred_and_how_to_repeat_its_rows(published):
    text = Page((published.parent / "methods" / "safe.html").read_text()).text
    spec = plugins.get("methods", "safe").spec
    assert all(
        piece in text for piece in (spec.summary, spec.paper.title, *spec.inferred, *spec.params)
    )
    with (ROOT / "results" / "tables" / "cells.csv").open() as file:
        commands = [row["command"] for row in csv.DictReader(file) if row["method"] == "safe"]
    assert commands
    assert all(command in text for command in commands)


# ------------------------------------------------------------------ made results


def test_the_same_results_give_the_same_page(tmp_path):
    folder = results(tmp_path, *four(), footprint=FOOTPRINT)
    first = built(folder)
    methods = {file.name: file.read_bytes() for file in (folder / "report" / "methods").iterdir()}
    assert built(folder) == first
    assert {
        file.name: file.read_bytes() for file in (folder / "report" / "methods").iterdir()
    } == methods


def test_hostile_names_and_errors_are_text_on_every_page(tmp_path):
    bad = [run(name, 0.5 + i / 10) for i, name in enumerate(HOSTILE[:2])]
    error = failed("lora", status="error")
    error["reason"] = HOSTILE[1]
    footprint = [predicted(name, 3, model=name) for name in HOSTILE]
    claims = [
        {"method": name, "claim": name, "verdict": "undecided", "why": name} for name in HOSTILE
    ]
    folder = results(tmp_path / "r", run("full"), *bad, error, footprint=footprint, claims=claims)
    pages = {folder / "report" / "index.html": Page(built(folder))}
    pages |= {file: Page(file.read_text()) for file in (folder / "report" / "methods").iterdir()}
    assert len(pages) == 1 + 5  # full, lora and the three
    assert [file.name for file in tmp_path.rglob("*evil*") if file.suffix == ".html"] == [
        file.name for file in pages if "evil" in file.name
    ]
    for file, page in pages.items():
        tags = [tag for tag, _ in page.elements]
        assert "img" not in tags
        assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
        data = page.all("script", "type").count("application/json")
        assert tags.count("script") == data + (3 if file.name == "index.html" else 0)
    index = pages[folder / "report" / "index.html"]
    assert all(name in index.text for name in HOSTILE)
    read = [
        json.loads(s)
        for s in index.scripts[: index.all("script", "type").count("application/json")]
    ]
    assert all(name in json.dumps(read) for name in (HOSTILE[0], HOSTILE[2]))


def test_a_thousand_records_stay_under_six_megabytes(tmp_path):
    methods = [f"method{n}" for n in range(20)]
    for task in ("sentiment", "topics52", "valence", "dialogue", "pretrain"):
        for model in ("minilm-l6", "smollm2-135m"):
            for n, method in enumerate(methods):
                for seed in range(5):
                    record = run(
                        method,
                        0.7 + n / 100 + seed / 1000,
                        5 * n,
                        seed=seed,
                        task=task,
                        model=model,
                    )
                    record["reason"] = "x" * 100
                    file = tmp_path / "records" / place(record)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(record))
    results(tmp_path)
    page = report.write_report(tmp_path, tmp_path / "report")
    assert "1000 records" in page.read_text()
    assert sum(file.stat().st_size for file in (tmp_path / "report").rglob("*.html")) < 6_000_000


def test_a_fresh_run_has_a_page_that_says_what_is_missing(tmp_path):
    write(tmp_path, run("full"))
    text = Page(built(tmp_path)).text
    for words in (
        "No leaderboard has a row yet",
        "cells.csv is missing",
        "footprint.csv is missing",
        "claims.csv is missing",
        "failures.csv is missing",
        "calibration.csv is missing",
    ):
        assert words in text
    for name in ("leaderboard", "cells", "footprint", "claims", "failures", "calibration"):
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / f"{name}.csv").write_text("")
    text = Page(built(tmp_path)).text
    assert "missing" not in text
    assert "No claim was checked" in text


@pytest.mark.parametrize("damage", ["empty folder", "no csv", "no folder to write"])
def test_bad_input_is_one_sentence_and_exit_2(tmp_path, capsys, damage):
    words = ["report", "--results", str(tmp_path)]
    if damage != "empty folder":
        (tmp_path / "tables").mkdir()
    if damage == "no csv":
        (tmp_path / "tables" / "cells.csv").write_bytes(b"\xff\xfe\x00")
    if damage == "no folder to write":
        (tmp_path / "report").write_text("a file")
    assert parser.main(words) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert str(tmp_path) in err


def test_a_failed_cell_is_named_under_the_charts_and_in_the_table_of_failures(tmp_path):
    text = Page(built(results(tmp_path, *four()))).text
    assert "came, seed 0: oom, too big" in text
    assert "1 run without a usable result: 1 oom." in text


# ------------------------------------------------------------------ each sentence follows the data


def group_of(folder, *records, **more):
    content = read_content(results(folder, *records, **more))
    return content.leaderboards[0], content


def test_the_sentences_of_quality_name_what_is_cheapest(tmp_path):
    group, _ = group_of(tmp_path / "a", *four())
    assert sentences.memory(group) == (
        "Of the 2 methods that cannot be told apart from the best, lora needs the least memory: "
        "120.0 MiB, 0.40 times that of full, with accuracy 0.805. head needs the least of all: "
        "100.0 MiB, 0.33 times that of full, with accuracy 0.605."
    )
    assert sentences.time(group).startswith(
        "head has the shortest median step: 100 ms with accuracy 0.605; full,"
    )
    cheaper = [
        run("full", r["quality"]["value"], 5, 0.05, r["cell"]["seed"])
        if r["cell"]["method"] == "full"
        else r
        for r in four()
    ]
    group, _ = group_of(tmp_path / "b", *cheaper)
    assert "full needs the least memory: 105.0 MiB, with accuracy 0.810" in sentences.memory(group)
    assert sentences.time(group) == "full has the shortest median step: 50 ms with accuracy 0.810."


def test_the_sentences_of_the_other_charts_follow_their_records(tmp_path):
    slim, soft = run("safe", 0.9, 50), run("softlms", 0.7, 60)
    parts = [
        {"step": 0, "peak_bytes": 150 * MIB, "by_kind": {}},
        {"step": 30, "peak_bytes": 110 * MIB, "by_kind": {}},
    ]
    slim["memory"]["tensors"]["intervals"] = parts
    soft["details"] = {"ranks": {"encoder.layer.0.query": 8, "encoder.layer.1.query": 24}}
    slim["quality"]["steps_to_target"] = 50
    group, read = group_of(tmp_path, run("full", 0.8, 200), slim, soft)
    says = {chart.id.split("-")[0]: chart.says for chart in charts.of_board(group, read)}
    assert says["waterfall"] == (
        "safe saves the most against full, 150.0 MiB of 300.0 MiB; "
        "150.0 MiB of it are optimizer states."
    )
    assert (
        says["intervals"]
        == "The peak of safe goes from 150.0 MiB at the start to 110.0 MiB from step 30 on."
    )
    assert says["ranks"].startswith(
        "softlms kept ranks from 8 (encoder.layer.0.query) to 24 (encoder.layer.1.query)"
    )
    assert says["curves"] == (
        "At its last evaluation, step 100, safe leads with accuracy 0.900 on the validation split; "
        "safe reached the target of 0.7."
    )
    soft["details"]["ranks"] = {"a.0.b": 8, "a.1.b": 8}  # a setting, not a result
    group, read = group_of(tmp_path, soft)
    assert not [chart for chart in charts.of_board(group, read) if chart.id.startswith("ranks")]


def rows(*found):
    return [
        Line({key: str(value) for key, value in row.items() if value is not None}) for row in found
    ]


def test_the_sentences_of_the_tables_count_their_rows():
    claims = rows({"verdict": "supported"}, {"verdict": "not_run"}, {"verdict": "supported"})
    assert sentences.claims(claims) == "Of 3 claims 2 supported and 1 not run."
    checks = rows({"check": "sleep", "passed": "true"}, {"check": "leak", "passed": "not_run"})
    assert sentences.calibration(checks) == "1 of 2 checks ran; all are within their limits."
    checks[0]["passed"] = "false"
    assert "sleep failed" in sentences.calibration(checks)
    assert sentences.failures([], 7) == "Every one of 7 runs ended well."
    assert sentences.footprint(rows(*FOOTPRINT)) == (
        "Predicted: 2 rows on 1 model; the largest saving is lora on bert-base: 1.80 GiB, "
        "0.22 times that of full."
    )
    assert sentences.batches(rows(*FOOTPRINT), 8) == (
        "Within 8 GiB the largest batch is 74, lora on bert-base; "
        "1 of 2 do not fit with a single sequence."
    )
    assert (
        sentences.batches(rows(predicted("full", 9)), 8)
        == "No largest batch was searched for 8 GiB."
    )


# ------------------------------------------------------------ the answer, by the page's script


def answers(html, *asked):
    """What the page's script says of (model, task) under (memory in GiB, seconds, loss), for each
    asked."""
    (data,) = re.findall(r'id="choices">(.*?)</script>', html, re.DOTALL)
    script = (
        (Path(site.__file__).parent / "page.js").read_text()
        + f"""
      const all = choices({data});
      console.log(JSON.stringify({json.dumps(asked)}.map(([model, task, gib, seconds, loss]) => {{
        const told = explain(all.find((one) => one.model === model && one.task === task),
          {{ memory: gib * GIB, seconds, loss }});
        const first = told.before + told.use + told.after;
        return {{ use: told.use, text: [first, ...told.paragraphs, ...told.points].join("\\n") }};
      }})));"""
    )
    done = subprocess.run([NODE, "-e", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.process
def test_the_answer_takes_the_cheapest_of_those_not_told_apart_and_says_what_each_limit_ruled_out(
    tmp_path,
):
    group = ("minilm-l6", "sentiment")
    free, tight, quick, strict, none = answers(
        built(results(tmp_path, *four())),
        (*group, 1, None, None),
        (*group, 110 / 1024, None, None),
        (*group, 1, 0.2, None),
        (*group, 1, None, 0.002),
        (*group, 110 / 1024, None, 0.1),
    )
    assert free["use"] == "lora"
    assert (
        "does not tell full apart from it in quality; it needs no less memory: full (300.0 MiB)"
        in free["text"]
    )
    assert "lower tier of quality: head (accuracy 0.605" in free["text"]
    assert "No result: came (oom)" in free["text"]
    assert tight["use"] == "head"
    assert "Ruled out by memory: full (300.0 MiB) and lora (120.0 MiB)." in tight["text"]
    assert quick["use"] == "head"
    assert "Ruled out by step time: full (500 ms) and lora (500 ms)." in quick["text"]
    assert strict["use"] == "full"
    assert "Ruled out by quality: lora (loses 0.005) and head (loses 0.205)." in strict["text"]
    assert none["use"] is None


@pytest.mark.process
def test_what_is_not_placed_is_never_the_answer_while_another_fits(tmp_path):
    means = (("full", 0.80, 200), ("lora", 0.798, 100), ("adapter", 0.796, 90), ("head", 0.6, 50))
    placed = [
        run(m, q + ((s + i) % 3 - 1) / 200, p, seed=s)
        for s in range(3)
        for i, (m, q, p) in enumerate(means)
    ]
    wild = [run("svd", q, 10, seed=s) for s, q in enumerate((0.5, 0.99, 0.95))]
    folder = results(tmp_path, *placed, *wild)
    free, alone = answers(
        built(folder),
        ("minilm-l6", "sentiment", 1, None, None),
        ("minilm-l6", "sentiment", 0.11, None, None),
    )
    assert free["use"] == "adapter"
    assert "0.004 from the best, full" in free["text"]
    unplaced = (
        "Within the limits, but not placed, as its scores vary far more over seeds than the "
        "others': svd (accuracy 0.813 [0.137"
    )
    assert unplaced in free["text"]
    assert alone["use"] == "svd"
    assert "It is not placed in a tier" in alone["text"]
    assert "not placed in a tier" not in free["text"]


@pytest.mark.process
def test_at_paper_scale_the_answer_names_the_model_that_its_quality_was_measured_on(tmp_path):
    more = [*FOOTPRINT, predicted("softlms", 3), predicted("vocab_pruning@sst2", 1)]
    records = [*four(), *(run("vocab_pruning", 0.81 + s / 100, 150, seed=s) for s in (0, 1))]
    eight, sixteen, one = answers(
        built(results(tmp_path, *records, footprint=more)),
        ("bert-base", "sentiment", 8, None, None),
        ("bert-base", "sentiment", 16, None, None),
        ("bert-base", "sentiment", 1, None, None),
    )
    assert eight["use"] == "vocab_pruning@sst2"
    assert "(measured for vocab_pruning)" in eight["text"]
    assert (
        "Quality was not measured on bert-base; "
        "the evidence is minilm-l6, another model, on sentiment" in eight["text"]
    )
    assert (
        "Ruled out by memory: full (10.00 GiB)." in eight["text"]
    )  # 9 reserved and 1 for the context
    assert "Fits, but its quality was not measured: softlms (4.00 GiB)." in eight["text"]
    assert "All 4 stacks" in sixteen["text"]
    assert one["use"] is None
    html = built(results(tmp_path, *records, footprint=FOOTPRINT))
    assert (
        "The largest batch predicted to fit into 8 GiB is 74."
        in answers(html, ("bert-base", "sentiment", 12, None, None))[0]["text"]
    )


def test_the_page_opens_with_bert_on_8_gib(tmp_path):
    html = built(
        results(tmp_path, *four(), footprint=[*FOOTPRINT, predicted("full", 3, model="a-model")])
    )
    (data,) = re.findall(r'id="choices">(.*?)</script>', html, re.DOTALL)
    told = json.loads(data)
    assert (told["shapes"][0]["model"], told["first"], told["firstGib"]) == (
        "bert-base",
        "bert-base",
        8,
    )


# ------------------------------------------------------------------ figures


def test_figures_are_pdf_and_svg_of_each_kind_the_same_each_time(tmp_path, capsys):
    folder = results(tmp_path / "run", *four(), footprint=FOOTPRINT)
    assert parser.main(["report", "--results", str(folder), "--figures", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out.split()
    files = {file.name: file for file in (tmp_path / "a").iterdir()}
    assert sorted(printed) == sorted(map(str, files.values()))
    kinds = {
        (name.split("-")[0].removesuffix(file.suffix), file.suffix) for name, file in files.items()
    }
    assert kinds == {
        (k, s)
        for k in ("memory", "time", "waterfall", "curves", "footprint")
        for s in (".pdf", ".svg")
    }
    for file in files.values():
        if file.suffix == ".pdf":
            assert file.read_bytes().startswith(b"%PDF-")
        else:
            assert "currentColor" not in file.read_text()
            assert ET.parse(file).getroot().tag.endswith("svg")
    assert (
        "lora"
        in next(file for name, file in files.items() if re.match(r"memory.*svg", name)).read_text()
    )
    report.write_figures(folder, tmp_path / "b")
    for name, file in files.items():
        one, other = file.read_bytes(), (tmp_path / "b" / name).read_bytes()
        # The PDF writer lists a page's resources in any order; nothing else may differ.
        assert one == other or (
            file.suffix == ".pdf" and sorted(one.split(b"\n")) == sorted(other.split(b"\n"))
        )


def test_nothing_to_draw_is_said(tmp_path, capsys):
    (tmp_path / "records").mkdir()
    assert (
        parser.main(["report", "--results", str(tmp_path), "--figures", str(tmp_path / "a")]) == 0
    )
    assert "nothing to draw" in capsys.readouterr().out
    assert list((tmp_path / "a").iterdir()) == []


# ------------------------------------------------------------------ a new number


def test_a_new_number_is_on_the_page_without_another_change(tmp_path, monkeypatch):
    new = columns.Column("odd_bytes", "details.odd", "largest", "bytes", "odd", "a new number")
    known = {**columns.known(), "odd_bytes": new}
    monkeypatch.setattr(columns, "known", lambda: known)
    records = four()
    for record in records:
        record["details"] = {"odd": 3 * MIB}
    page = Page(built(results(tmp_path, *records)))
    assert page.all("th", "title").count("a new number") == 2  # every run, and the leaderboard
    assert page.text.count("3.0 MiB") == 7 + 3
    assert Page((tmp_path / "report/methods/lora.html").read_text()).text.count("3.0 MiB") == 2


def test_every_column_of_the_page_has_a_title_and_says_what_it_means():
    for view, (csv_name, names) in views.VIEWS.items():
        for column in views.columns_of(view):
            assert column.title, (view, column.name)
            assert column.help, (view, column.name)
            assert column.shown in {"", "wide", *views.FORMATS}
        header = paper_scale.COLUMNS if csv_name == "footprint" else columns.names(csv_name)
        assert {*names.split()} <= {*header}


# ------------------------------------------------------------------ where it is loaded


@pytest.mark.process
def test_neither_the_other_commands_nor_the_workflow_load_the_chart_library():
    code = (
        "import sys, leantune.cli.parser, leantune.workflow.jobs; "
        "print([m for m in ('jinja2', 'vl_convert') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
