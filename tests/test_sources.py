"""Fetching, unpacking and caching, on real pip and real archives."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from leantune.errors import BadInput
from leantune.fetch.source import fetch
from leantune.files.parse import check
from leantune.spec.schema import SourceBlock, YamlFields

ROOT = Path(__file__).parents[1]


class Sourced(YamlFields):
    source: SourceBlock


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def make_tar(path, members):
    """`members`: name to text, or to a ready TarInfo of a link."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            if isinstance(text, tarfile.TarInfo):
                archive.addfile(text)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def entries(cache):
    """What the cache holds, locks aside."""
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock") if cache.exists() else []


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEANTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(house, name, members):
    """A wheel of the distribution `name`, version 1.0."""
    info = f"{name}-1.0.dist-info"
    return make_zip(
        house / f"{name}-1.0-py3-none-any.whl",
        {
            **members,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
            "Tag: py3-none-any\n",
            f"{info}/RECORD": "",
        },
    )


@pytest.fixture
def house(tmp_path, cache, monkeypatch):
    """A folder whose wheels pip finds, and no others."""
    house = tmp_path / "house"
    house.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    return house


@pytest.fixture
def wheel(house):
    return make_wheel(house, "tiny_data", {"tiny_data/words.txt": "some words\n"})


def block(wheel, **changes):
    return {
        "package": "tiny-data==1.0",
        "sha256": sha256(wheel),
        "path": "tiny_data/words.txt",
    } | changes


# ------------------------------------------------------------------ packages


@pytest.mark.process
def test_package_is_fetched_once_and_then_needs_no_index(wheel, cache):
    source = block(wheel)
    assert fetch(source).read_text() == "some words\n"
    assert entries(cache) == [source["sha256"]]
    wheel.unlink()
    assert fetch(source).read_text() == "some words\n"


@pytest.mark.process
def test_wrong_hash_is_named_and_leaves_nothing(wheel, cache):
    with pytest.raises(BadInput, match=r"tiny-data==1\.0 has another sha256"):
        fetch(block(wheel, sha256="0" * 64))
    assert entries(cache) == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "abc"}, "needs `sha256:`"),
        ({"package": "tiny-data"}, "must be written name==version"),
        ({"package": "tiny-data==1.0 --no-deps"}, "must be written name==version"),
        ({"package": "tiny-data==9.9"}, "could not be downloaded"),
        ({"hub": "a/b"}, "exactly one of"),
        ({"path": "tiny_data/missing.txt"}, "has no 'tiny_data/missing.txt'"),
        ({"path": "../../manifest.json"}, "leaves its source"),
    ],
)
def test_bad_package_block(wheel, changes, message):
    with pytest.raises(BadInput, match=message):
        fetch(block(wheel, **changes))


@pytest.mark.process
def test_missing_network_is_one_sentence_and_leaves_nothing(wheel, cache, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(BadInput, match="could not be downloaded") as caught:
        fetch(block(wheel))
    assert "\n" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    assert entries(cache) == []


@pytest.mark.process
def test_two_processes_fetch_once(wheel, cache, tmp_path):
    code = (
        "import json, sys; from leantune.fetch.source import fetch;"
        "print(fetch(json.loads(sys.argv[1])).read_text())"
    )
    command = [sys.executable, "-c", code, json.dumps(block(wheel))]
    logs = [tmp_path / f"pip{i}.log" for i in range(2)]
    started = [
        subprocess.Popen(
            command, env={**os.environ, "PIP_LOG": str(log)}, stdout=subprocess.PIPE, text=True
        )
        for log in logs
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in started] == [
        "some words"
    ] * 2
    assert sum(log.exists() for log in logs) == 1  # only one of them started pip


@pytest.mark.process
def test_what_a_killed_process_left_is_replaced(wheel, cache):
    source = block(wheel)
    left = cache / f"{source['sha256']}.partial"
    (left / "files").mkdir(parents=True)
    (left / "files" / "half").write_text("x")
    assert fetch(source).read_text() == "some words\n"
    assert entries(cache) == [source["sha256"]]


@pytest.mark.process
@pytest.mark.parametrize("text", ["some", "SOME WORDS\n"])
def test_damaged_cache_file_is_named_and_fetched_again(wheel, cache, caplog, text):
    source = block(wheel)
    fetch(source).write_text(text)
    assert fetch(source).read_text() == "some words\n"
    assert "tiny_data/words.txt" in caplog.text


@pytest.mark.process
def test_damaged_cache_file_that_cannot_be_replaced_is_an_error(wheel, cache):
    source = block(wheel)
    fetch(source).unlink()
    wheel.unlink()
    with pytest.raises(
        BadInput, match=r"damaged \(tiny_data/words.txt is missing\) and cannot be replaced"
    ):
        fetch(source)


@pytest.mark.process
def test_touching_a_cached_file_is_no_damage(wheel, cache, caplog):
    source = block(wheel)
    path = fetch(source)
    os.utime(path, (1, 1))
    wheel.unlink()
    assert fetch(source) == path
    assert caplog.text == ""


def test_unwritable_cache(tmp_path, wheel, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEANTUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BadInput, match=r"cannot be written.*LEANTUNE_CACHE"):
        fetch(block(wheel))


def test_real_source_package_and_its_inner_archive():
    source = yaml.safe_load((ROOT / "tasks/sentiment/task.yaml").read_text())["source"]
    assert (fetch(source) / "movieReviewSnippets_GroundTruth.txt").stat().st_size == 1383098


# ------------------------------------------------------------------ several parts of one file

PIECES = ["the first piece, ", "the second, ", "the last\n"]
WHOLE = "".join(PIECES)


@pytest.fixture
def wheels(house):
    """Three wheels, each with a piece of one file."""
    return [
        make_wheel(house, f"part{i}", {f"part{i}/data/whole.0{i}": piece})
        for i, piece in enumerate(PIECES)
    ]


def in_parts(wheels, **changes):
    parts = [
        {"package": f"part{i}==1.0", "sha256": sha256(wheel), "path": f"part{i}/data/whole.0{i}"}
        for i, wheel in enumerate(wheels)
    ]
    digest = hashlib.sha256(WHOLE.encode()).hexdigest()
    return {"parts": parts, "joined": "whole.txt", "sha256": digest} | changes


@pytest.mark.process
def test_parts_are_joined_in_order_and_kept_once(wheels, cache):
    source = in_parts(wheels)
    check({"source": source}, Sourced, Path("some.yaml"))
    assert fetch(source).read_text() == WHOLE
    assert fetch(source).name == "whole.txt"
    assert entries(cache) == [f"{source['sha256']}-joined"]
    for wheel in wheels:
        wheel.unlink()
    assert fetch(source).read_text() == WHOLE


@pytest.mark.process
def test_a_missing_part_is_named_and_the_others_wait_for_it(wheels, cache, tmp_path, monkeypatch):
    source = in_parts(wheels)
    away = wheels[1].rename(tmp_path / wheels[1].name)
    with pytest.raises(BadInput, match=r"part 2 of 3 of whole\.txt: package part1==1\.0") as caught:
        fetch(source)
    assert "\n" not in str(caught.value)
    assert entries(cache) == [f"{source['sha256']}.parts"]
    wheels[0].unlink()  # it was fetched, and is not asked for again
    away.rename(wheels[1])
    assert fetch(source).read_text() == WHOLE
    assert entries(cache) == [f"{source['sha256']}-joined"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["parts"].reverse(), r"whole\.txt, joined from 3 parts, has sha256"),
        (lambda s: s.update(sha256="0" * 64), "has sha256 [0-9a-f]{64}, not 0000"),
        (lambda s: s["parts"].pop(), "joined from 2 parts, has sha256"),
        (
            lambda s: s["parts"][0].update(sha256="0" * 64),
            r"part 1 of 3 of whole.txt: package part0==1\.0 has another sha256",
        ),
        (lambda s: s["parts"][2].update(path="part2/x"), "part 3 of 3 .* has no 'part2/x'"),
        (lambda s: s["parts"][2].pop("path"), r"part 3 of 3 .* is the folder .*`path:`"),
    ],
)
def test_wrong_parts(wheels, cache, change, message):
    source = in_parts(wheels)
    change(source)
    with pytest.raises(BadInput, match=message) as caught:
        fetch(source)
    assert "\n" not in str(caught.value)
    assert not (cache / f"{source['sha256']}-joined").exists()


@pytest.mark.process
def test_a_damaged_joined_file_is_named_and_fetched_again(wheels, cache, caplog):
    source = in_parts(wheels)
    fetch(source).write_text("short")
    assert fetch(source).read_text() == WHOLE
    assert "whole.txt was changed" in caplog.text


def test_local_parts_stay_and_make_an_archive(cache, tmp_path):
    archive = make_tar(tmp_path / "a.tar.gz", {"deep/text": "found"})
    data = archive.read_bytes()
    (tmp_path / "x.0").write_bytes(data[:50])
    (tmp_path / "x.1").write_bytes(data[50:])
    source = {
        "parts": [{"local": "x.0"}, {"local": "x.1"}],
        "joined": "a.tar.gz",
        "sha256": sha256(archive),
        "path": "deep/text",
    }
    assert fetch(source, tmp_path).read_text() == "found"
    assert (tmp_path / "x.0").exists()
    (tmp_path / "x.1").write_bytes(data[51:])
    assert fetch(source, tmp_path).read_text() == "found"  # the joined file is kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": None}, "'parts' needs 'joined'"),
        ({"joined": None}, "'parts' needs 'joined'"),
        ({"joined": "../x"}, "joined"),
        ({"parts": [{"local": "a"}]}, "at least 2"),
        ({"parts": [{"local": "a"}, {"hub": "org/name"}]}, "a part is a package or a local file"),
        ({"parts": [{"local": "a"}, {"local": "b", "format": "gguf"}]}, "without 'format'"),
        ({"hub": "org/name"}, "exactly one of"),
    ],
)
def test_bad_parts_are_refused_where_the_file_is_read(change, message):
    good = {"parts": [{"local": "a"}, {"local": "b"}], "joined": "x", "sha256": "0" * 64}
    check({"source": good}, Sourced, Path("some.yaml"))
    bad = {key: value for key, value in (good | change).items() if value is not None}
    with pytest.raises(BadInput, match=message):
        check({"source": bad}, Sourced, Path("some.yaml"))


# ------------------------------------------------------------------ archives


def zip_with_link(path):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    return make_zip(path, {info: "/etc/passwd"})


EVIL = {
    "zip parent": lambda p: make_zip(p, {"a/../../x": "evil"}),
    "zip absolute": lambda p: make_zip(p, {"/tmp/leantune-evil": "evil"}),
    "zip backslash": lambda p: make_zip(p, {"..\\x": "evil"}),
    "zip link": zip_with_link,
    "tar parent": lambda p: make_tar(p, {"../x": "evil"}),
    "tar absolute": lambda p: make_tar(p, {"/tmp/leantune-evil": "evil"}),
    "tar symlink": lambda p: make_tar(p, {"l": link("l", "/tmp"), "l/leantune-evil": "evil"}),
    "tar hard link": lambda p: make_tar(p, {"l": link("l", "/etc/passwd", tarfile.LNKTYPE)}),
    "tar device": lambda p: make_tar(p, {"l": link("l", "", tarfile.CHRTYPE)}),
}


@pytest.mark.parametrize("kind", EVIL)
def test_evil_archive_writes_nothing(kind, cache, tmp_path):
    archive = EVIL[kind](tmp_path / "evil")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput, match=r"link or device|outside its folder"):
        fetch({"local": str(archive), "path": "x"})
    assert entries(cache) == []
    assert sorted(p for p in tmp_path.iterdir() if p != cache) == before
    assert not Path("/tmp/leantune-evil").exists()


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bomb_is_refused(make, cache, tmp_path):
    bomb = make(tmp_path / "bomb", {"zeros": "0" * 60_000_000})
    assert bomb.stat().st_size < 100_000
    with pytest.raises(BadInput, match="not trusted"):
        fetch({"local": str(bomb), "path": "zeros"})
    assert entries(cache) == []


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_truncated_archive(make, share, cache, tmp_path):
    archive = make(tmp_path / "cut", {f"f{i}": os.urandom(500).hex() for i in range(20)})
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(BadInput, match="fetch it again"):
        fetch({"local": str(archive), "path": "f1"})
    assert entries(cache) == []


def test_flipped_byte_in_archive(cache, tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"f": os.urandom(500).hex()})
    data = bytearray(archive.read_bytes())
    data[100] ^= 255
    archive.write_bytes(data)
    with pytest.raises(BadInput, match="broken"):
        fetch({"local": str(archive), "path": "f"})
    assert entries(cache) == []


def test_archive_in_archive_in_archive(cache, tmp_path):
    inner = make_tar(tmp_path / "inner.tar.gz", {"deep/text": "found"})
    with zipfile.ZipFile(tmp_path / "middle.zip", "w") as middle:
        middle.write(inner, "m/inner.tar.gz")
    source = {"local": str(tmp_path), "path": "middle.zip!m/inner.tar.gz!deep/text"}
    assert fetch(source).read_text() == "found"
    with pytest.raises(BadInput, match="not an archive file"):
        fetch({"local": str(tmp_path), "path": "cache!x"})


# ------------------------------------------------------------------ local paths


def test_local_path_is_relative_to_its_yaml_or_to_home(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.bin").write_text("a")
    assert fetch({"local": "weights", "path": "a.bin"}, tmp_path).read_text() == "a"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch({"local": "~/weights/a.bin"}).read_text() == "a"


def test_local_file_hash(tmp_path):
    (tmp_path / "a").write_text("a")
    assert fetch({"local": "a", "sha256": sha256(tmp_path / "a")}, tmp_path) == tmp_path / "a"
    with pytest.raises(BadInput, match="has sha256 ca97"):
        fetch({"local": "a", "sha256": "0" * 64}, tmp_path)
    with pytest.raises(BadInput, match="does not exist"):
        fetch({"local": "b"}, tmp_path)
