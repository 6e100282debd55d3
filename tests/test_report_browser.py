"""The report in a real browser: Chromium, from disk, with the network off. Run by `make
report-test`.

Screenshots are left in runs/screenshots, for people to look at.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from sample_records import failed, ok, place

from leantune.files.record import write_record
from leantune.report import write_report
from leantune.results import build
from leantune.spec import plugins

pytestmark = pytest.mark.browser
ROOT = plugins.roots()[0]
SHOTS = ROOT / "runs" / "screenshots"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOSTILE = '<img src=x onerror="window.hacked=1">'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, (
        "no Chromium here; `make report-test` installs Debian's, or install one and try again"
    )
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the published results."""
    return write_report(ROOT / "results", tmp_path_factory.mktemp("published") / "report")


class Told:
    """What a page said to its console, and what it asked for."""

    def __init__(self, page: Page) -> None:
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.on(
            "console",
            lambda said: (
                self.errors.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(
    browser: Browser, file: Path, *, width: dict[str, int] = DESK, scheme: str = "light"
) -> tuple[Page, Told]:
    context = browser.new_context(
        viewport=width, color_scheme=scheme, offline=True, accept_downloads=True
    )  # type: ignore[arg-type]  # names of the browser's own
    page = context.new_page()
    told = Told(page)
    page.goto(file.as_uri())
    return page, told


def unfolded(page: Page) -> None:
    """Open every folded part, and bring every chart into view, so that all of it is drawn."""
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator("svg").first.wait_for(timeout=20_000)


def slide(page: Page, name: str, value: float | str) -> None:
    page.locator(f"#{name}").evaluate(
        "(input, value) => {"
        " input.value = value === 'min' ? input.min : value === 'max' ? input.max : value;"
        " input.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


def test_the_page_loads_from_disk_with_nothing_from_the_network(
    browser: Browser, report: Path, scheme: str
) -> None:
    page, told = opened(browser, report, scheme=scheme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"first-{scheme}.png")
    unfolded(page)
    page.screenshot(path=SHOTS / f"whole-{scheme}.png", full_page=True)
    assert told.errors == []
    assert [url for url in told.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert "LeanTune" in page.title()


def test_every_plot_is_drawn(browser: Browser, report: Path) -> None:
    page, _ = opened(browser, report)
    unfolded(page)
    figures = page.locator("figure").all()
    assert len(figures) > 5
    for figure in figures:
        box = figure.locator("svg").first.bounding_box()
        assert box is not None
        assert box["width"] > 100
        assert box["height"] > 50
        assert figure.locator("svg path, svg rect").count() > 2
        assert figure.locator("figcaption").inner_text().strip()


def test_it_opens_with_the_answer_for_bert_on_8_gib(browser: Browser, report: Path) -> None:
    page, _ = opened(browser, report)
    assert page.locator("#answer-model").input_value() == "bert-base"
    assert "8.00 GiB" in page.locator("#shown-memory").inner_text()
    text = page.locator("#answer-text").inner_text()
    assert text.startswith("Use ")
    assert "bert-base" in text
    assert "Memory:" in text
    assert "Quality" in text
    assert page.locator("#answer-text").bounding_box()["y"] < DESK["height"]  # type: ignore[index]  # without scrolling


def test_another_model_opens_with_its_fullest_comparison(browser: Browser, report: Path) -> None:
    page, _ = opened(browser, report)
    page.locator("#answer-model").select_option(label="llama2-7b")
    slide(page, "budget-memory", 24)
    text = page.locator("#answer-text").inner_text()
    assert text.startswith("Use ")
    assert "llama2-7b" in text
    assert "smollm2-135m, another model" in text


def test_the_sliders_change_the_answer(browser: Browser, report: Path) -> None:
    page, told = opened(browser, report)
    page.locator("#answer-model").select_option(label="minilm-l6")
    page.locator("#answer-task").select_option("sentiment")
    answer = page.locator("#answer-text")

    def method() -> str:
        return str(answer.locator(".verdict strong").inner_text())

    rows = [
        row
        for row in csv.DictReader((ROOT / "results/tables/leaderboard.csv").open(newline=""))
        if row["key"] == page.locator("#answer-setting").input_value() and row["peak_memory_bytes"]
    ]
    leanest = min(rows, key=lambda row: int(row["peak_memory_bytes"]))["method"]
    wide = method()
    assert wide != leanest
    slide(page, "budget-memory", "min")
    assert "No method" in answer.inner_text() or method() == leanest
    slide(page, "budget-memory", -(-min(int(row["peak_memory_bytes"]) for row in rows) // 2**20))
    assert method() == leanest
    slide(page, "budget-memory", "max")
    assert method() == wide
    slide(page, "budget-time", "min")
    assert "Ruled out by step time" in answer.inner_text()
    slide(page, "budget-time", "max")
    slide(page, "budget-loss", 0)
    assert "Ruled out by quality" in answer.inner_text()
    assert told.errors == []


def test_tables_sort_filter_and_export(browser: Browser, report: Path) -> None:
    page, told = opened(browser, report)
    unfolded(page)
    table = page.locator("table[id^='table-leaderboard']").first
    name = table.get_attribute("id")
    column = table.locator("thead th", has_text="peak memory").first
    index = column.evaluate("cell => cell.cellIndex")

    def peaks() -> list[float]:
        cells = page.locator(f"#{name} tbody tr td:nth-child({index + 1})")
        orders = [cell.get_attribute("data-order") for cell in cells.all()]
        return [float(order) for order in orders if order not in (None, "")]

    column.click()
    up = peaks()
    column.click()
    down = peaks()
    assert len(up) > 3
    assert sorted(up) == up
    assert sorted(down, reverse=True) == down
    assert column.get_attribute("title")
    box = page.locator(
        f".scroll:has(#{name}) input[type=search], .dt-container:has(#{name}) input[type=search]"
    ).first
    box.fill("lora")
    shown = page.locator(f"#{name} tbody tr")
    assert 0 < shown.count() < len(up)
    assert all("lora" in text for text in shown.all_inner_texts())
    box.fill("")
    with page.expect_download() as started:
        page.locator(f".dt-container:has(#{name}) button", has_text="CSV").first.click()
    saved = Path(started.value.path()).read_text(encoding="utf-8-sig")
    header, *rows = csv.reader(io.StringIO(saved.strip()))
    assert "peak memory" in header
    assert len(rows) == shown.count(), saved[-500:]
    assert told.errors == []


def test_a_phone_needs_no_sideways_scroll(browser: Browser, report: Path, scheme: str) -> None:
    for file in (report, *sorted((report.parent / "methods").glob("*.html"))):
        page, told = opened(browser, file, width=PHONE, scheme=scheme)
        if file == report:
            page.screenshot(path=SHOTS / f"phone-{scheme}.png")
            unfolded(page)
            page.screenshot(path=SHOTS / f"phone-whole-{scheme}.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE["width"], f"{file.name} is {wide} pixels wide"
        assert told.errors == []
        page.context.close()


def test_axe_finds_no_serious_fault(browser: Browser, report: Path, scheme: str) -> None:
    methods = sorted((report.parent / "methods").glob("*.html"))
    for file in (report, methods[0], report.parent / "methods" / "safe.html"):
        page, _ = opened(browser, file, scheme=scheme)
        if file == report:
            unfolded(page)
        found = Axe().run(page).response["violations"]
        serious = [
            (fault["id"], [node["html"][:200] for node in fault["nodes"][:3]])
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]
        assert serious == []
        page.context.close()


def test_hostile_names_and_errors_are_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    results = tmp_path / "results"
    records = [
        ok("full"),
        ok(HOSTILE, seed=0, quality=0.9, peak=500),
        {**failed("lora"), "reason": f"</script>{HOSTILE}"},
    ]
    for record in records:
        file = results / "records" / place(record)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_record(file, record)
    build.write_tables(results)
    index = write_report(results, results / "report")
    page, told = opened(browser, index)
    unfolded(page)
    assert HOSTILE in page.locator("body").inner_text()
    for file in sorted((index.parent / "methods").glob("*.html")):
        page.goto(file.as_uri())
        assert page.evaluate("window.hacked") is None
    page.goto(index.as_uri())
    page.locator("#answer-model").select_option(index=0)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert [
        error for error in told.errors if "Content Security Policy" in error
    ] == []  # nothing even tried to run
    assert json.loads(page.locator("#choices").text_content() or "")["groups"]
