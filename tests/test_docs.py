"""The documentation: it builds, its commands parse, its links lead somewhere, and its tables name
every key."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import griffe
import pytest
import yaml

from leantune.cli import new, parser
from leantune.errors import BadInput
from leantune.files.parse import check
from leantune.spec import plugins
from leantune.spec.schema import ModelFile, schema

ROOT = plugins.roots()[0]
PAGES = sorted([ROOT / "README.md", ROOT / "config" / "README.md", *(ROOT / "docs").rglob("*.md")])
OUTSIDE = ROOT / "docs" / "sample-plugin"  # a repository of its own
DEAD = "http://127.0.0.1:9"  # nothing answers there


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    found = re.findall(
        rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.S | re.M
    )
    return [text for _, text in found]


def command_lines() -> list[tuple[str, str]]:
    """(page, command) of every `leantune ...` line in a shell block."""
    return [
        (named(page), line.strip())
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if re.match(r"(python -m )?leantune ", line.strip())
    ]


def inline_commands() -> list[tuple[str, str]]:
    """(page, command) of every `leantune ...` in running text; these leave out what does not matter
    there."""
    return [
        (named(page), command)
        for page in PAGES
        for command in re.findall(r"(?<!`)`leantune ([^`]+)`", page.read_text(encoding="utf-8"))
    ]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "HTTP_PROXY": DEAD,
        "HTTPS_PROXY": DEAD,
    }
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.process
def test_the_strict_build_makes_a_page_of_every_document(site):
    missing = [
        named(page)
        for page in (ROOT / "docs").rglob("*.md")
        if OUTSIDE not in page.parents
        and not (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    ]
    assert missing == []
    assert not (site / "captions").exists()


@pytest.mark.process
def test_the_site_loads_nothing_from_the_network(site):
    for page in site.rglob("*.html"):
        tags = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*", page.read_text(encoding="utf-8")
        )
        assert [
            tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)
        ] == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(
            r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")
        ), sheet.name


@pytest.mark.process
def test_the_reference_shows_the_contract_with_its_words(site):
    html = (site / "reference" / "api.html").read_text(encoding="utf-8")
    for name in ("Method.attach", "Method.export", "Context", "Data", "freeze_body"):
        assert f'id="leantune.api.{name}"' in html
    assert "Must work on meta tensors when" in html


def test_every_page_is_in_the_navigation():
    settings = "".join(
        line
        for line in (ROOT / "mkdocs.yml").open(encoding="utf-8")
        if not line.strip().startswith("#")
    )
    listed = set(re.findall(r": ([\w\-/]+\.md)", settings))
    pages = {
        str(page.relative_to(ROOT / "docs"))
        for page in (ROOT / "docs").rglob("*.md")
        if OUTSIDE not in page.parents
    }
    assert pages == listed, "a page of docs/ needs its line under `nav:` in mkdocs.yml"


def parses(*words: str) -> bool:
    try:
        parser.parse([*words])
    except (SystemExit, BadInput) as ended:
        return isinstance(ended, SystemExit) and ended.code == 0
    return True


def test_every_command_line_parses():
    asked = command_lines()
    assert len(asked) > 15
    failures = []
    for page, line in asked:
        words = shlex.split(line.partition(" > ")[0], comments=True)
        if not parses(*words[words.index("leantune") + 1 :]):
            failures.append(f"{page}: {line}")
    assert failures == []


def test_every_command_in_the_text_names_a_subcommand_and_its_flags(capsys):
    asked = inline_commands()
    assert len(asked) > 10
    failures = []
    for page, command in asked:
        name, *words = shlex.split(command)
        known = parses(name, "--help")
        usage = capsys.readouterr().out
        if not known or any(word.startswith("--") and word not in usage for word in words):
            failures.append(f"{page}: leantune {command}")
    assert failures == []


def test_every_local_link_leads_somewhere():
    failures = []
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                failures.append(f"{named(page)} links to {target}")
    assert failures == []


def anchors(page: Path) -> list[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return [slug(heading) for heading in headings]


@pytest.mark.parametrize(
    ("kind", "page"), [("method", "add-a-method"), ("task", "add-a-task"), ("model", "add-a-model")]
)
def test_the_page_names_every_key_of_the_schema_and_no_other(kind, page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    table = text[text.index("| key |") :].split("\n\n")[0]
    keys = {
        key for row in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert keys == set(schema(kind)["properties"])


@pytest.mark.parametrize("kind", ["method", "task"])
def test_what_new_makes_is_what_its_page_shows(kind, tmp_path):
    name = {"method": "norm_tuning", "task": "reviews"}[kind]
    folder = new.create(kind, name, tmp_path)
    text = (ROOT / "docs" / f"add-a-{kind}.md").read_text(encoding="utf-8")
    for file in folder.iterdir():
        assert f"`{kind}s/{name}/{file.name}`" in text
    (shown,) = blocks(ROOT / "docs" / f"add-a-{kind}.md", "python")
    code = (folder / f"{kind}.py").read_text()
    entry = {"method": "def attach(self", "task": "def load(folder: Path) -> dict[str, Dataset]:"}[
        kind
    ]
    assert entry in shown
    assert entry in code
    if kind == "task":
        spec = yaml.safe_load((folder / "task.yaml").read_text())
        assert spec["source"] == {"local": "data"}
        assert f"tasks/{name}/data/examples.csv" in text
        assert "examples.csv" in code


def test_the_model_shown_is_a_valid_one():
    (example,) = blocks(ROOT / "docs" / "add-a-model.md", "yaml")
    check(yaml.safe_load(example), ModelFile, "docs/add-a-model.md")


def test_every_public_name_of_the_reference_has_a_docstring():
    modules = [
        name
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for name in re.findall(r"^::: (leantune\.[\w.]+)$", page.read_text(encoding="utf-8"), re.M)
    ]
    assert len(modules) > 8
    silent = []
    package = griffe.load("leantune", search_paths=[ROOT / "src"])
    for name in modules:
        for member in package[name.removeprefix("leantune.")].members.values():
            if (
                member.is_alias
                or member.name.startswith("_")
                or not (member.is_function or member.is_class)
            ):
                continue
            inner = member.members.values() if member.is_class else []
            methods = [m for m in inner if m.is_function and not m.name.startswith("_")]
            silent += [one.path for one in (member, *methods) if not one.docstring]
    assert silent == []


# ------------------------------------------------------------------ names of files and functions

TEXTS = [
    *(page for page in PAGES if OUTSIDE not in page.parents),
    *(ROOT / name for name in ("CHANGELOG.md", "mkdocs.yml")),
    *sorted((ROOT / "methods").glob("*/README.md")),
    *sorted((ROOT / "src").rglob("*.py")),
]
# Files that an author or another library has.
ELSEWHERE = {"method.py", "task.py", "ops/selective_scan_interface.py"}
EXAMPLES = r"(methods|tasks)/(norm_tuning|reviews)/\w+\.py"


def files_named(text: str) -> set[str]:
    found = set(re.findall(r"(?<![\w./{}*<>-])[a-z][\w/]*\.py\b(?!\w)", text))
    return {name for name in found if name not in ELSEWHERE and not re.fullmatch(EXAMPLES, name)}


def test_every_python_file_that_is_named_is_there():
    """In pages, docstrings and comments; a name is seen from the root, the package or beside."""
    missing = [
        f"{named(text)} names {name}"
        for text in TEXTS
        for name in sorted(files_named(text.read_text(encoding="utf-8")))
        if not any(
            (folder / name).is_file()
            for folder in (ROOT, ROOT / "src" / "leantune", ROOT / "tests", text.parent)
        )
    ]
    assert missing == []


def test_every_module_and_function_that_a_page_names_is_there():
    package = griffe.load("leantune", search_paths=[ROOT / "src"])
    missing = []
    for page in TEXTS:
        if page.suffix != ".md":
            continue
        text = page.read_text(encoding="utf-8")
        for name in sorted(set(re.findall(r"\bleantune\.([a-z_]\w*(?:\.\w+)*)", text))):
            if name.split(".")[0] in ("plugins", "py", "git"):  # a group of entry points; others'
                continue
            try:
                package[name]
            except KeyError:
                missing.append(f"{named(page)} names leantune.{name}")
    assert missing == []


def test_every_step_of_the_design_notes_walks_is_there():
    """`file.py:Class.function`, seen from the package."""
    package = griffe.load("leantune", search_paths=[ROOT / "src"])
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    steps = re.findall(r"`([\w/]+)\.py:([\w.]+)`", text)
    assert len(steps) > 20
    modules = [f"{path.replace('/', '.')}.{name}" for path, name in steps]
    missing = []
    for name in modules:
        try:
            package[name]
        except KeyError:
            missing.append(name)
    assert missing == []
