"""The command `leantune`: its subcommands by name. Bad input is one sentence and exit 2."""

import argparse
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from leantune import __version__
from leantune.cli.flags import Arguments
from leantune.errors import BadInput, Unsupported, naming_extras

# The help lines stand here, so that `leantune --help` imports none of the modules.
COMMANDS = {
    "list": "methods with their points, tasks, models",
    "validate": "check plugin and config files against their schemas",
    "run": "run one cell and write its record",
    "tune": "run a cell for each of several settings, scored on the validation split",
    "choose": "the best of a method's trials, as a file for `run --tuning`",
    "compare": "step times of methods that take turns on a machine of their own",
    "predict": "peak memory of a method on a model, with no GPU and no weights",
    "plan": "memory, FLOPs and hours of everything a config runs, before it runs",
    "tables": "build the CSV tables from records",
    "footprint": "predict the config's stacks on its models into footprint.csv",
    "claims": "each paper's claims against what was measured, into claims.csv",
    "report": "write the results as one static page, or its charts as PDF and SVG",
    "gate": "fail where a cell ended with a status that the config does not allow",
    "publish": "copy a run's records and tables to the published results",
    "rerun": "remove the records of failed cells, so that the next run repeats them",
    "repro": "run a record's own command again and compare it field by field",
    "merge": "check records from another machine and add them to the results",
    "schema": "the JSON schema of a kind of YAML file, for editors",
    "new": "start a method or task folder from a working example",
}
EXAMPLES = """examples:
  leantune list
  leantune run --model minilm-l6 --task sentiment --method lora --seed 0 --out lora.json
  leantune run --model minilm-l6 --task sentiment --method vocab_pruning+svfit@r64+came \
--out row.json
  leantune predict --model llama2-7b --method lora --batch 4 --seq 512 --dtype bf16
  leantune predict --model bert-base,roberta-base --method full,lora,came --batch 8,32 --seq 128
  leantune plan --config config/paper.yaml --grid svfit --gpu L4
  leantune tables --config config/config.yaml
  leantune claims --records results/records svfit came
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status."""
    arguments = parse(sys.argv[1:] if words is None else words)
    # It tells every user to install a package of kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if trusted := getattr(arguments, "trust_remote_code", None):
        os.environ["LEANTUNE_TRUST_REMOTE_CODE"] = ",".join(trusted)  # for the worker too
    try:
        with naming_extras(f"`leantune {arguments.command}`"):
            return int(arguments.run(arguments) or 0)
    except (BadInput, Unsupported) as error:
        print(f"leantune: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `leantune list | head`
        return 0


def parse(words: Sequence[str]) -> Arguments:
    """The arguments of one call; `run` is the function that takes them.

    Only the module of the subcommand that is called is imported.
    """
    parser = argparse.ArgumentParser(
        prog="leantune",
        description="What memory-efficient fine-tuning really saves, and what it costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"leantune {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    called = next((word for word in words if not word.startswith("-")), None)
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line)
        if name == called:
            module = import_module(f"leantune.cli.{name}")
            command.set_defaults(command=name, run=module.run)
            groups: dict[str, Any] = defaultdict(command.add_mutually_exclusive_group)
            for flag in module.FLAGS:
                holder = groups[flag.instead] if flag.instead else command
                holder.add_argument(*flag.names, **flag.words)
    return parser.parse_args(words, Arguments())
