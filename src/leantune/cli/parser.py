"""The command `leantune`: its subcommands and flags. `actions` does the work; bad input is one
sentence and exit 2."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leantune.cli import actions
from leantune.errors import BadInput, Unsupported
from leantune.prediction.cards import EFFICIENCY

EXAMPLES = """examples:
  leantune list
  leantune run --model minilm-l6 --task sentiment --method lora --seed 0 --out lora.json
  leantune run --model minilm-l6 --task sentiment --method vocab_pruning+svfit@r64+came --out row.json
  leantune predict --model llama2-7b --method lora --batch 4 --seq 512 --dtype bf16
  leantune predict --model bert-base,roberta-base --method full,lora,came --batch 8,32 --seq 128
  leantune plan --config config/paper.yaml --grid svfit --gpu L4
  leantune tables --config config/config.yaml
  leantune claims --records results/records svfit came
"""
GRID = "only this one of the config's grids"


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # it asks every user for a package of kernels
    if trusted := getattr(arguments, "trust_remote_code", None):
        os.environ["LEANTUNE_TRUST_REMOTE_CODE"] = ",".join(trusted)  # for the worker too
    try:
        return int(arguments.action(arguments) or 0)
    except (BadInput, Unsupported) as error:
        print(f"leantune: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `leantune list | head`
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="leantune",
        description="What memory-efficient fine-tuning really saves, and what it costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="methods with their points, tasks, models")
    listing.set_defaults(action=actions.list_)

    check = commands.add_parser(
        "validate", help="check plugin and config files against their schemas"
    )
    check.add_argument(
        "paths", nargs="*", type=Path, help="YAML files or folders; default: every known plugin"
    )
    check.set_defaults(action=actions.validate)

    run = commands.add_parser("run", help="run one cell and write its record")
    _cell_flags(run)
    run.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where the record goes"
    )
    run.add_argument(
        "--trial", type=int, metavar="N", help="a tuning trial: scored on the validation split"
    )
    run.add_argument(
        "--timeout",
        type=_positive(float),
        default=60.0,
        metavar="MINUTES",
        help="end the cell after this (60)",
    )
    run.add_argument(
        "--attempt",
        type=_positive(int),
        default=1,
        help="which attempt of the scheduler this is (1)",
    )
    run.add_argument(
        "--attempts",
        type=_positive(int),
        default=1,
        help="how many it has; before the last, oom exits 75 (1)",
    )
    run.add_argument("--threads", type=_positive(int), default=1, help="CPU threads of torch (1)")
    run.add_argument(
        "--force", action="store_true", help="run even where the prediction says it does not fit"
    )
    run.add_argument(
        "--limit-mb",
        type=_not_negative,
        default=0,
        metavar="MIB",
        help="do not start where the prediction needs more (0: what the machine has)",
    )
    run.add_argument("--export", type=Path, metavar="FOLDER", help="save the trained model here")
    run.add_argument(
        "--flatness",
        type=_not_negative,
        default=0,
        metavar="DRAWS",
        help="random changes after training that tell how flat the minimum is (0)",
    )
    run.add_argument(
        "--tuning",
        nargs="*",
        type=Path,
        default=[],
        metavar="FILE",
        help="settings chosen by `leantune choose` for parts of the stack",
    )
    run.add_argument(
        "--hardware", metavar="NAME", help="refuse to run on a machine of another kind"
    )
    run.set_defaults(action=actions.run)

    tune = commands.add_parser(
        "tune", help="run a cell for each of several settings, scored on the validation split"
    )
    _cell_flags(tune)
    tune.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="METHOD.PARAM=V,V,...",
        help="values to try; default: those under `search:` of the method's yaml",
    )
    tune.add_argument(
        "--output", type=Path, default=Path("runs/default"), help="the run's folder (runs/default)"
    )
    tune.add_argument(
        "--timeout",
        type=_positive(float),
        default=60.0,
        metavar="MINUTES",
        help="end a trial after this (60)",
    )
    tune.set_defaults(action=actions.tune)

    choose = commands.add_parser(
        "choose", help="the best of a method's trials, as a file for `run --tuning`"
    )
    choose.add_argument("trials", nargs="+", type=Path, metavar="RECORD")
    choose.add_argument("--out", required=True, type=Path)
    choose.set_defaults(action=actions.choose)

    compare = commands.add_parser(
        "compare", help="step times of methods that take turns on a machine of their own"
    )
    compare.add_argument("--model", required=True)
    compare.add_argument("--task", required=True)
    compare.add_argument(
        "--methods", nargs="+", required=True, metavar="STACK", help="the first is compared with"
    )
    compare.add_argument(
        "--rounds", type=_positive(int), default=3, help="how often each takes its turn (3)"
    )
    compare.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    compare.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="METHOD.PARAM=VALUE or task.steps=VALUE",
    )
    compare.add_argument("--tuning", nargs="*", type=Path, default=[], metavar="FILE")
    compare.add_argument(
        "--out", type=Path, metavar="FILE", help="also write what was measured here, as JSON"
    )
    _trust_flag(compare)
    compare.set_defaults(action=actions.compare)

    predict = commands.add_parser(
        "predict", help="peak memory of a method on a model, with no GPU and no weights"
    )
    _list_flag(predict, "--model", str, required=True, help="one or more, comma-separated")
    _list_flag(
        predict,
        "--method",
        str,
        required=True,
        metavar="STACK[@POINT]",
        help="one or more, comma-separated",
    )
    predict.add_argument("--task", help="take batch, length and head from this task")
    _list_flag(predict, "--batch", int, help="sequences per step, one or more")
    _list_flag(predict, "--seq", int, help="tokens per sequence, one or more")
    predict.add_argument(
        "--head", choices=["classification", "mlm", "pretraining", "causal-lm", "span"]
    )
    predict.add_argument(
        "--dtype", choices=["fp32", "bf16"], help="of the weights (the task's training, or fp32)"
    )
    predict.add_argument(
        "--set", action="append", default=[], metavar="METHOD.PARAM=VALUE", dest="settings"
    )
    predict.add_argument(
        "--under", metavar="SIZE", help="8GiB or a card (T4, L4, A100-80, ...): what fits into it"
    )
    predict.add_argument(
        "--json", action="store_true", help="print one JSON object, or a list of them"
    )
    _trust_flag(predict)
    predict.set_defaults(action=actions.predict)

    bill = commands.add_parser(
        "plan", help="memory, FLOPs and hours of everything a config runs, before it runs"
    )
    _config_flags(bill)
    bill.add_argument(
        "--gpu",
        default="A100-40GB",
        metavar="CARD",
        help="hours are those on this card (A100-40GB)",
    )
    bill.add_argument(
        "--efficiency",
        type=_positive(float, most=1),
        default=EFFICIENCY,
        metavar="SHARE",
        help=f"of the card's peak that training reaches ({EFFICIENCY})",
    )
    bill.add_argument(
        "--under", metavar="SIZE", help="leave out what needs more: 24GiB or a card (what CARD has)"
    )
    bill.add_argument("--json", action="store_true", help="print one JSON object")
    bill.add_argument(
        "--csv", type=Path, metavar="FILE", help="also write the cells into this table"
    )
    bill.set_defaults(action=actions.plan_)

    tables = commands.add_parser("tables", help="build the CSV tables from records")
    _config_flags(tables)
    tables.add_argument(
        "--output", type=Path, help="the run's folder; default: the config's `output`"
    )
    tables.add_argument(
        "--across",
        action="append",
        default=[],
        metavar="FIELD",
        help="rank together what differs only in this field of the key: hardware, batch, ...",
    )
    tables.set_defaults(action=actions.tables)

    footprint = commands.add_parser(
        "footprint", help="predict the config's stacks on its models into footprint.csv"
    )
    _config_flags(footprint)
    footprint.add_argument(
        "--output", type=Path, help="the run's folder; default: the config's `output`"
    )
    footprint.set_defaults(action=actions.footprint)

    ledger = commands.add_parser(
        "claims", help="each paper's claims against what was measured, into claims.csv"
    )
    ledger.add_argument(
        "methods", nargs="*", metavar="METHOD", help="only these; default: every method with claims"
    )
    where = ledger.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    ledger.add_argument("--grid", help=GRID)
    where.add_argument(
        "--records",
        type=Path,
        metavar="FOLDER",
        help="a folder of records, such as results/records",
    )
    ledger.add_argument(
        "--output",
        type=Path,
        help="the run's folder; default: the config's, or the one above FOLDER",
    )
    ledger.set_defaults(action=actions.claims)

    report = commands.add_parser(
        "report", help="write the results as one static page, or its charts as PDF and SVG"
    )
    report.add_argument(
        "--results", type=Path, default=Path("results"), help="a run's folder, or results (results)"
    )
    report.add_argument("--out", type=Path, help="where the page goes (report/ in the results)")
    report.add_argument(
        "--figures", type=Path, metavar="DIR", help="write only the charts, for a paper, into DIR"
    )
    report.set_defaults(action=actions.report)

    gate = commands.add_parser(
        "gate", help="fail where a cell ended with a status that the config does not allow"
    )
    _config_flags(gate)
    gate.add_argument("--output", type=Path)
    gate.add_argument(
        "--published", type=Path, default=Path("results"), help="compare with these results"
    )
    gate.set_defaults(action=actions.gate)

    publish = commands.add_parser(
        "publish", help="copy a run's records and tables to the published results"
    )
    _config_flags(publish)
    publish.add_argument("--output", type=Path)
    publish.add_argument("--to", type=Path, default=Path("results"))
    publish.add_argument(
        "--readme", type=Path, help="also write the leaderboards into this Markdown file"
    )
    publish.set_defaults(action=actions.publish)

    rerun = commands.add_parser(
        "rerun", help="remove the records of failed cells, so that the next run repeats them"
    )
    rerun.add_argument(
        "--status", default="oom,timeout,error", help="comma-separated (oom,timeout,error)"
    )
    _config_flags(rerun)
    rerun.add_argument("--output", type=Path)
    rerun.set_defaults(action=actions.rerun)

    repro = commands.add_parser(
        "repro", help="run a record's own command again and compare it field by field"
    )
    repro.add_argument("record", type=Path, metavar="RECORD", help="the JSON file of a cell")
    repro.add_argument("--json", action="store_true", help="print one JSON object")
    repro.set_defaults(action=actions.repro)

    merge = commands.add_parser(
        "merge", help="check records from another machine and add them to the results"
    )
    merge.add_argument(
        "folder", type=Path, metavar="FOLDER", help="what was sent: a folder with records/ in it"
    )
    merge.add_argument(
        "--into", type=Path, default=Path("results"), help="the results that they join (results)"
    )
    merge.add_argument(
        "--allow-dirty",
        action="store_true",
        help="also take records of uncommitted files, or without a commit",
    )
    merge.add_argument(
        "--uncalibrated", action="store_true", help="also take records without the control cells"
    )
    merge.set_defaults(action=actions.merge)

    new = commands.add_parser("new", help="start a method or task folder from a working example")
    new.add_argument("kind", choices=["method", "task"])
    new.add_argument("name")
    new.add_argument(
        "--at", type=Path, metavar="DIR", help="the plugin root (default: this checkout)"
    )
    new.set_defaults(action=actions.new)
    return parser


def _positive(what: type[int] | type[float], most: float | None = None) -> Callable[[str], float]:
    def value(text: str) -> float:
        number = what(text)
        if not number > 0 or (most is not None and number > most):
            raise argparse.ArgumentTypeError(
                f"'{text}' must be more than 0" + (f" and at most {most}" if most else "")
            )
        return number

    value.__name__ = what.__name__  # argparse's word where a value is wrong
    return value


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"'{text}' must not be negative")
    return number


def _list_flag(
    parser: argparse.ArgumentParser, flag: str, what: Callable[[str], Any], **more: Any
) -> None:
    """A flag that takes several values, `a,b` or given again; its value is a list."""

    def values(text: str) -> list[Any]:
        return [what(word) for word in text.split(",")]

    values.__name__ = f"list of {what.__name__}"  # argparse's word where a value is wrong
    parser.add_argument(flag, type=values, action="extend", default=[], **more)


def _config_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--grid", help=GRID)


def _trust_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="append",
        default=[],
        metavar="MODEL",
        help="run the code beside the weights of this model, whose file must ask for it too",
    )


def _cell_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument(
        "--method", required=True, metavar="STACK", help="lora, svfit@r64, vocab_pruning+came, ..."
    )
    parser.add_argument(
        "--point", help="the named setting of a single method; the same as METHOD@POINT"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="sequences per step (the task's)")
    parser.add_argument("--seq", type=int, help="tokens per sequence (the task's)")
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16"], help="of the forward and backward pass (the task's)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="METHOD.PARAM=VALUE or task.steps=VALUE",
    )
    _trust_flag(parser)
