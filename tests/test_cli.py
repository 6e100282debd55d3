"""The command's words that need no cell."""

import json
import subprocess
import sys

import pytest

import leantune
from leantune.cli import parser
from leantune.spec import plugins


def test_list_names_every_plugin_with_its_points(capsys):
    assert parser.main(["list"]) == 0
    out = capsys.readouterr().out
    for kind in ("methods", "tasks", "models"):
        for name in plugins.discover(kind):
            assert name in out
    assert "svfit @r64" in out


@pytest.mark.parametrize("command", ["", *parser.COMMANDS])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        parser.main([*command.split(), "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: leantune {command}".strip())
    assert ("examples:" in out) == (command == "")


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "told"),
    [("--help", "usage: leantune "), ("--version", f"leantune {leantune.__version__}\n")],
)
def test_help_and_version_come_without_the_commands_and_their_libraries(words, told):
    code = f"""
import sys
from leantune.cli import parser
try:
    parser.main([{words!r}])
except SystemExit:
    heavy = {{"jsonschema", "numpy", "psutil", "pydantic", "torch", "yaml"}} & {{*sys.modules}}
    print(heavy, *sorted(name for name in sys.modules if name.startswith("leantune.cli.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(told)
    assert done.stdout.splitlines()[-1] == "set() leantune.cli.flags leantune.cli.parser"


@pytest.mark.process
def test_an_answer_comes_without_words_of_the_libraries():
    words = ["predict", "--model", "minilm-l6", "--method", "lora", "--batch", "1", "--seq", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "leantune", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_validate_names_file_key_and_allowed_values(tmp_path, capsys):
    folder = tmp_path / "methods" / "odd"
    folder.mkdir(parents=True)
    (folder / "method.yaml").write_text(
        "name: odd\nsummary: A method with a wrong slot.\nslot: sideways\n"
    )
    assert parser.main(["validate", str(folder)]) == 2
    err = capsys.readouterr().err
    assert str(folder / "method.yaml") in err
    assert "slot" in err
    assert "adaptation" in err


def test_validate_passes_everything_shipped(capsys):
    assert parser.main(["validate"]) == 0
    assert capsys.readouterr().out.count("ok ") == sum(
        len(plugins.discover(k)) for k in ("methods", "tasks", "models")
    )


@pytest.mark.parametrize("kind", ["config", "method", "task", "model"])
def test_schema_prints_what_an_editor_reads(kind, capsys):
    assert parser.main(["schema", kind]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["additionalProperties"] is False
    assert ("cells" if kind == "config" else "name") in printed["properties"]


@pytest.mark.parametrize("kind", ["method", "task"])
def test_a_new_plugin_validates_and_a_second_of_its_name_is_refused(tmp_path, kind, capsys):
    assert parser.main(["new", kind, "fresh", "--at", str(tmp_path)]) == 0
    assert parser.main(["validate", str(tmp_path / f"{kind}s" / "fresh")]) == 0
    assert parser.main(["new", kind, "fresh", "--at", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "nonsense", "--method", "lora", "--batch", "1", "--seq", "8"],
            "unknown model",
        ),
        (["--model", "minilm-l6", "--method", "lora"], "give --task, or --batch and --seq"),
        (["--model", "minilm-l6", "--method", "lora", "--batch", "0", "--seq", "8"], "at least 1"),
        (
            ["--model", "minilm-l6", "--method", "lora", "--batch", "1", "--seq", "4096"],
            "512 positions",
        ),
        (["--model", "minilm-l6", "--method", "tfidf", "--batch", "1", "--seq", "8"], "control"),
        (
            [
                "--model",
                "minilm-l6",
                "--method",
                "full",
                "--batch",
                "1",
                "--seq",
                "8",
                "--head",
                "causal-lm",
            ],
            "no causal-lm head",
        ),
    ],
)
def test_predict_refuses_bad_words_in_one_sentence(words, message, capsys):
    assert parser.main(["predict", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--flatness", "-3"],
        ["--limit-mb", "-1"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--threads", "0"],
    ],
)
def test_run_refuses_a_number_out_of_range(words, capsys):
    cell = [
        "run",
        "--model",
        "minilm-l6",
        "--task",
        "sentiment",
        "--method",
        "head",
        "--out",
        "x.json",
    ]
    with pytest.raises(SystemExit) as stopped:
        parser.main([*cell, *words])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert f"argument {words[0]}: '{words[1]}' must" in err
