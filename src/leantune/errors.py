"""The errors that people see. A message is one sentence: what was wrong, where, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

RETRY = 75  # EX_TEMPFAIL: run the same command again, after a stop or with more memory or time

# What `pip install leantune` leaves out: extra to the packages that it brings, as imported.
EXTRAS = {
    "run": ("snakemake", "datasets", "sklearn", "scipy", "sacrebleu"),
    "report": ("vl_convert", "itables", "jinja2"),
    "quant": ("bitsandbytes", "gguf"),
    "optimizers": ("pytorch_optimizer",),
}


class BadInput(Exception):
    """Something the user wrote or holds is wrong (a name, a key, a file): exit 2, nothing is
    recorded."""


class Unsupported(Exception):
    """A method cannot run on this model, task or device: a record with status `unsupported`."""


class Diverged(Exception):
    """The loss is no longer finite: a record with status `diverged`."""


@contextmanager
def naming_extras(what: str, *packages: str) -> Iterator[None]:
    """A package of an extra that is missing inside becomes a BadInput that names the extra.

    `packages` are looked for at the start, without importing them. It also decorates a function.
    """
    try:
        for package in packages:
            if find_spec(package) is None:
                raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        for extra, brought in EXTRAS.items():
            if missing in brought:
                raise BadInput(
                    f"{what} needs the extra '{extra}': pip install 'leantune[{extra}]'"
                ) from error
        raise
