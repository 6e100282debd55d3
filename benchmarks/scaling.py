"""How the suite grows with the grid: `python benchmarks/scaling.py [--cells 1000,3000,10000] [--out
FILE]`.

A grid of toy methods is planned and run by the real Snakefile; its cells are replaced by a stub
that writes an empty record at once, so what is measured is the suite's and Snakemake's own work.
Tables and the report are then built from as many sample records. Prints a Markdown table; the last
column is the exponent of growth between the smallest and the largest grid, 1 where time is
proportional to cells. Wants an idle machine.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from sample_records import ok  # noqa: E402

from leantune.files.record import write_json  # noqa: E402
from leantune.spec.config import expand, load_config  # noqa: E402

METHODS, SEEDS = 10, 5  # of a group; the number of groups grows with the grid
EXAMPLES = 200  # predictions in a record
STUB = '#!/bin/sh\nfor last; do :; done\necho "{}" > "$last"\n'
METHOD = """from leantune.api import Method


class Toy(Method):
    def attach(self, model, data, ctx):
        return model, data
"""


def project(folder: Path, cells: int) -> int:
    """A working folder whose config has about this many cells; returns how many."""
    methods = [f"toy{number}" for number in range(METHODS)]
    blocks = max(1, round(cells / SEEDS / METHODS))
    for name in methods:
        home = folder / "plugins" / "methods" / name
        home.mkdir(parents=True)
        spec = {
            "name": name,
            "summary": "A toy that trains everything.",
            "slot": "adaptation",
            "params": {"lr": 1e-4},
        }
        (home / "method.yaml").write_text(yaml.safe_dump(spec))
        (home / "method.py").write_text(METHOD)
    block = {
        "models": ["minilm-l6"],
        "tasks": ["sentiment"],
        "methods": methods,
        "seeds": list(range(SEEDS)),
    }
    grid = [{**block, "set": {"task.steps": 10 + number}} for number in range(blocks)]
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(
        yaml.safe_dump({"output": "out", "device": "cpu", "cells": grid})
    )
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(STUB)
    (folder / "bin" / "python").chmod(0o755)
    return len(methods) * blocks * SEEDS


def seconds(folder: Path, *words: str, stub: bool = False) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of a command that has to end well."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}" if stub else os.environ["PATH"]
    environment = {**os.environ, "LEANTUNE_PLUGINS": str(folder / "plugins"), "PATH": path}
    with (folder / "log.txt").open("ab") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=folder, env=environment, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def write_records(folder: Path) -> None:
    """A record for every cell of the config, not stale, with predictions that differ."""
    os.environ["LEANTUNE_PLUGINS"] = str(folder / "plugins")
    draw = random.Random(0)
    references = [float(draw.random() < 0.5) for _ in range(EXAMPLES)]
    for cell in expand(load_config(folder / "config" / "config.yaml")):
        right = [draw.random() < 0.8 for _ in range(EXAMPLES)]
        predictions = [
            one if good else 1 - one for one, good in zip(references, right, strict=True)
        ]
        found = ok(
            cell.method,
            cell.seed,
            quality=sum(right) / EXAMPLES,
            predictions=predictions,
            references=references,
            key={**cell.key, "samples": "abc"},
            hashes=cell.hashes,
            command=shlex.join(cell.command()),
        )
        found["key"]["short"] = cell.key["short"]
        write_json(folder / "out" / cell.record_path, found)


def measure(cells: int, folder: Path) -> dict[str, float]:
    """The figures of one grid, by the row of the table."""
    cells = project(folder, cells)
    snakemake = (
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--cores",
        "1",
        "--quiet",
        "--until",
        "cell",
    )
    _, planned, memory = seconds(folder, *snakemake, "--dry-run")
    found = {"cells": cells, "DAG, CPU seconds": planned, "DAG, peak MiB": memory}
    ran = seconds(folder, *snakemake, stub=True)[1]
    found["scheduler and job start, CPU seconds"] = ran - planned
    found["the same, CPU ms a cell"] = (ran - planned) / cells * 1000
    subprocess.run(["rm", "-r", folder / "out"], check=True)
    write_records(folder)
    tables = ("leantune", "tables", "--config", "config/config.yaml")
    found["tables, CPU seconds"], found["tables, peak MiB"] = seconds(folder, *tables)[1:]
    report = seconds(folder, "leantune", "report", "--results", "out")
    found["report, CPU seconds"], found["report, peak MiB"] = report[1:]
    found["report, MB"] = (folder / "out" / "report" / "index.html").stat().st_size / 1e6
    return found


def markdown(columns: list[dict[str, float]]) -> str:
    """The figures as a table: a row per figure, a column per grid, and how fast it grows."""
    names = [name for name in columns[0] if name != "cells"]
    first, last = columns[0], columns[-1]
    span = math.log(last["cells"] / first["cells"]) if len(columns) > 1 else math.nan
    lines = [
        "| | " + " | ".join(f"{column['cells']:,} cells" for column in columns) + " | exponent |"
    ]
    lines.append("|---" * (len(columns) + 2) + "|")
    for name in names:
        grown = (
            math.log(max(last[name], 1e-9) / max(first[name], 1e-9)) / span if span else math.nan
        )
        numbers = " | ".join(f"{column[name]:,.1f}" for column in columns)
        lines.append(f"| {name} | {numbers} | {grown:.2f} |")
    return "\n".join(lines) + "\n"


def sizes(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--cells", type=sizes, default="1000,3000,10000", help="of the grids (1000,3000,10000)"
    )
    parser.add_argument("--out", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    columns = []
    for cells in arguments.cells:
        with tempfile.TemporaryDirectory() as folder:
            columns.append(measure(cells, Path(folder)))
        print(
            {name: round(value, 1) for name, value in columns[-1].items()},
            file=sys.stderr,
            flush=True,
        )
    text = markdown(columns)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
