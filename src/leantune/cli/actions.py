"""What each subcommand of `leantune` does with its arguments; most are a few lines around a module
of its own."""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leantune.errors import BadInput
from leantune.files import parse, record
from leantune.files.parse import read_yaml
from leantune.files.text import write_text
from leantune.machine.gpus import resolve_device
from leantune.prediction import many
from leantune.run import supervisor
from leantune.spec import plugins
from leantune.spec.cells import Cell, resolve_cell
from leantune.spec.config import expand, load_config
from leantune.spec.settings import parse_settings


def _settings_and_method(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    settings = parse_settings(arguments.settings)
    for flag, key in (("batch", "batch"), ("seq", "length"), ("dtype", "dtype")):
        if getattr(arguments, flag) is not None:
            settings[f"task.{key}"] = getattr(arguments, flag)
    method = arguments.method
    if arguments.point:
        if "+" in method or "@" in method:
            raise BadInput("--point goes with a single method; in a stack write METHOD@POINT")
        method = f"{method}@{arguments.point}"
    return settings, method


def tune(arguments: argparse.Namespace) -> None:
    from leantune.run import trials as tune

    settings, method = _settings_and_method(arguments)
    grid = tune.parse_grid(arguments.search) or tune.default_grid(method)
    cells_ = tune.trials(
        arguments.model, arguments.task, method, grid, arguments.seed, arguments.device, settings
    )
    records = [tune.run(cell, arguments.output, arguments.timeout) for cell in cells_]
    print(tune.describe(grid, cells_, records))


def choose(arguments: argparse.Namespace) -> None:
    from leantune.run import trials as tune

    record.write_json(
        arguments.out, tune.choice([record.read_record(file) for file in arguments.trials])
    )


def compare(arguments: argparse.Namespace) -> None:
    from leantune.run import step_times as compare
    from leantune.run import trials as tune

    found = compare.compare(
        arguments.model,
        arguments.task,
        arguments.methods,
        rounds=arguments.rounds,
        device=resolve_device(arguments.device),
        settings=parse_settings(arguments.settings),
        choices=[tune.read_choice(file) for file in arguments.tuning],
    )
    if arguments.out:
        record.write_json(arguments.out, found)
    print(compare.describe(found))


def run(arguments: argparse.Namespace) -> int:
    from leantune.run import trials as tune
    from leantune.spec.trials import chosen_settings

    settings, method = _settings_and_method(arguments)

    def resolved(settings: dict[str, Any]) -> Cell:
        return resolve_cell(
            arguments.model,
            arguments.task,
            method,
            arguments.seed,
            trial=arguments.trial,
            device=arguments.device,
            overrides=settings,
            flatness=arguments.flatness,
        )

    cell, tuning = resolved(settings), None
    if arguments.hardware and arguments.hardware != cell.hardware:
        raise BadInput(
            f"the run was planned for '{arguments.hardware}', this machine is '{cell.hardware}'; correct `hardware:` in "
            "the config, or let the scheduler choose among machines of one kind"
        )
    if arguments.tuning:
        choices = [tune.read_choice(file) for file in arguments.tuning]
        cell = resolved({**chosen_settings(cell, choices), **settings})  # what is set by hand stays
        tuning = {one["method"]: one for one in choices}
    return supervisor.run(
        cell,
        arguments.out,
        timeout_minutes=arguments.timeout,
        attempt=arguments.attempt,
        attempts=arguments.attempts,
        threads=arguments.threads,
        force=arguments.force,
        limit=arguments.limit_mb * 2**20 or None,
        export=arguments.export,
        tuning=tuning,
    )


def list_(arguments: argparse.Namespace) -> None:
    for kind in ("methods", "tasks", "models"):
        print(f"{kind}:")
        for name in sorted(plugins.discover(kind)):
            spec = plugins.get(kind, name).spec
            what = spec.get("slot") or spec.get("kind") or spec["family"]
            points = "".join(f" @{p}" for p in spec.get("points", {}))
            print(f"  {name + points:<34} {what:<15} {spec['summary']}")


def validate(arguments: argparse.Namespace) -> None:
    files = [
        f
        for path in arguments.paths
        for f in (sorted(path.rglob("*.yaml")) if path.is_dir() else [path])
    ]
    if not arguments.paths:
        files = [
            f for kind in ("methods", "tasks", "models") for f in plugins.discover(kind).values()
        ]
    for file in files:
        spec = read_yaml(file)
        schema = {"method.yaml": "method", "task.yaml": "task"}.get(file.name)
        schema = schema or (
            "model"
            if "architecture" in spec
            else "config"
            if {"cells", "grids"} & {*spec}
            else None
        )
        if schema is None:
            raise BadInput(
                f"{file}: neither a method.yaml, a task.yaml, a model nor a config; nothing to check it by"
            )
        parse.validate(spec, schema, file)
        if schema in ("method", "task") and spec["name"] != file.parent.name:
            raise BadInput(
                f"{file}: key 'name' is '{spec['name']}' but the folder is called '{file.parent.name}'"
            )
        print(f"ok  {file}")


def predict(arguments: argparse.Namespace) -> None:
    gc.disable()  # collecting while torch and transformers are imported costs one to two seconds
    from leantune.prediction import cards
    from leantune.prediction import one as predict

    gc.freeze()
    gc.enable()
    given = (arguments.model, arguments.method, arguments.batch, arguments.seq)
    if max(map(len, given)) > 1:
        _sweep(arguments)
        return
    arguments.model, arguments.method, arguments.batch, arguments.seq = (
        next(iter(v), None) for v in given
    )
    words: dict[str, Any] = {
        "task": arguments.task,
        "batch": arguments.batch,
        "length": arguments.seq,
        "head": arguments.head,
        "dtype": arguments.dtype,
        "settings": parse_settings(arguments.settings),
    }
    if arguments.under:
        words = {key: value for key, value in words.items() if value is not None}
        budget = cards.parse_bytes(arguments.under)
        found = predict.largest_shapes(budget, arguments.model, arguments.method, **words)
        print(json.dumps(found) if arguments.json else predict.describe_shapes(found))
        return
    result = predict.predict_names(arguments.model, arguments.method, **words)
    print(json.dumps(result) if arguments.json else predict.describe(result))


def _sweep(arguments: argparse.Namespace) -> None:
    if arguments.under:
        raise BadInput("--under searches for one model, method, batch and length; give one of each")
    asked = many.asks(
        arguments.model,
        arguments.method,
        arguments.batch,
        arguments.seq,
        settings=parse_settings(arguments.settings),
        task=arguments.task,
        head=arguments.head,
        dtype=arguments.dtype,
    )
    rows = []
    with many.progress(len(asked)) as told:
        for ask in asked:
            rows.append(many.answer(ask))
            told(rows[-1])
    print(json.dumps(rows) if arguments.json else many.describe(rows))


def _configured(arguments: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    config = load_config(arguments.config, arguments.grid)
    return config, arguments.output or Path(config["output"])


def plan_(arguments: argparse.Namespace) -> None:
    from leantune.prediction import cards, cost

    size, under = arguments.under, None
    if (
        size is not None
    ):  # a plan counts the CUDA context with the cell, so a card is all that it offers
        under = cards.usable_bytes(size) if size in cards.USABLE_GIB else cards.parse_bytes(size)
    config = load_config(arguments.config, arguments.grid)
    found = cost.draw_up(config, arguments.gpu, arguments.efficiency, under)
    if arguments.csv:
        write_text(arguments.csv, cost.table(found))
    print(
        json.dumps({**asdict(found), "totals": found.totals()})
        if arguments.json
        else cost.describe(found)
    )


def tables(arguments: argparse.Namespace) -> None:
    from leantune.results import build as tables

    config, output = _configured(arguments)
    tables.write_tables(output, expand(config), config["calibration"], arguments.across)


def footprint(arguments: argparse.Namespace) -> None:
    from leantune.prediction import paper_scale as footprint

    config, output = _configured(arguments)
    footprint.write(output, footprint.expand(config))


def claims(arguments: argparse.Namespace) -> None:
    from leantune.results.claims import ledger as claims

    records = arguments.records
    if records is not None:
        if not records.is_dir():
            raise BadInput(f"--records {records} is no folder; name one that holds records")
        output = arguments.output or records.parent
    else:
        _, output = _configured(arguments)
        records = output / "records"
    print(claims.describe(claims.write(records, output, arguments.methods)))


def report(arguments: argparse.Namespace) -> None:
    from leantune import report

    if arguments.figures:
        files = report.write_figures(arguments.results, arguments.figures)
        print(
            "\n".join(map(str, files))
            or f"{arguments.results} holds nothing to draw; run cells first"
        )
    else:
        print(report.write_report(arguments.results, arguments.out or arguments.results / "report"))


def gate(arguments: argparse.Namespace) -> int:
    from leantune.results import build as tables
    from leantune.results import calibration, comparison

    config, output = _configured(arguments)
    print(comparison.compare_published(output / "records", arguments.published))
    page = output / "report" / "index.html"
    if page.is_file():
        print(f"the report is in {page}")
    failed = tables.not_allowed(output, expand(config), config["allowed_statuses"])
    for line in failed:
        print(line, file=sys.stderr)
    wrong = tables.miscalibrated(output, config["calibration"])
    if wrong:
        print(
            f"{calibration.table(wrong)}\n{len(wrong)} checks of the meter failed", file=sys.stderr
        )
    return 1 if failed or wrong else 0


def publish(arguments: argparse.Namespace) -> None:
    from leantune.prediction import paper_scale as footprint
    from leantune.results import publish, readme
    from leantune.results.claims import ledger as claims
    from leantune.spec import published_hashes

    config, output = _configured(arguments)
    rows = publish.publish(output, arguments.to, expand(config), config["calibration"])
    if arguments.readme:
        readme.update_readme(arguments.readme, readme.markdown_leaderboard(rows))
    footprint.publish(output, arguments.to)
    if config["claims"]:
        claims.publish(output, arguments.to)
    published_hashes.write_for(arguments.to)


def rerun(arguments: argparse.Namespace) -> None:
    from leantune.results.publish import remove

    config, output = _configured(arguments)
    statuses = set(arguments.status.split(","))
    known = {*record.STATUSES, "stale", "damaged"}
    if not statuses <= known:
        raise BadInput(
            f"--status: '{min(statuses - known)}' is no status; known: {', '.join(sorted(known))}"
        )
    removed = remove(output, expand(config), statuses)
    print("\n".join(map(str, removed)) or "no such record")
    if removed:
        grid = ["--config", f"grid={arguments.grid}"] if arguments.grid else []
        words = ["snakemake", "--cores", "all", "--configfile", str(arguments.config), *grid]
        print(f"run `{shlex.join(words)}` to repeat them")


def new(arguments: argparse.Namespace) -> None:
    from leantune.cli import new as scaffold

    root = arguments.at or plugins.checkout()
    if root is None:
        raise BadInput(
            "give --at DIR, a folder of your own: LeanTune is installed here and is no place for it"
        )
    folder = scaffold.create(arguments.kind, arguments.name, root)
    print(f"made {folder}; edit it, then: leantune validate {shlex.quote(str(folder))}")
    if root.absolute() not in plugins.roots():
        print(f"to use it: export LEANTUNE_PLUGINS={shlex.quote(str(root.absolute()))}")


def repro(arguments: argparse.Namespace) -> int:
    from leantune.results import reproduce as repro

    original, again = repro.run_again(arguments.record)
    fields = repro.compare(original, again)
    holds = repro.holds(fields)
    if arguments.json:
        print(json.dumps({"record": str(arguments.record), "reproduced": holds, "fields": fields}))
    else:
        print(repro.describe(fields))
    return 0 if holds else 1


def merge(arguments: argparse.Namespace) -> int:
    from leantune.results import merge

    judged = merge.merge(
        arguments.folder,
        arguments.into,
        allow_dirty=arguments.allow_dirty,
        uncalibrated=arguments.uncalibrated,
    )
    for one in judged:
        print(one)
    return 1 if any(one.verdict == "refused" for one in judged) else 0
