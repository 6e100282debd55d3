"""The tables of the page: which columns, what they mean, and their cells as text with units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from leantune.files.text import bytes_text, count_text
from leantune.prediction.paper_scale import BUDGETS_GIB
from leantune.report.data import Row, slug
from leantune.spec.stacks import plugin_names


def _bytes(text: float) -> str:
    return bytes_text(text)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _three(number: float) -> str:
    return f"{number:.3f}"


def _ratio(number: float) -> str:
    return f"{number:.2f}"


def _count(number: float) -> str:
    return count_text(int(number))


def _whole(number: float) -> str:
    return f"{number:.0f}"


def _plain(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1e5 else f"{number:.4g}"


@dataclass(frozen=True)
class Column:
    """A column of a CSV as the page shows it. `shown` turns its number into text; without it the
    text stands."""

    name: str
    title: str
    help: str
    shown: Callable[[float], str] | None = None
    wide: bool = False  # a text that may break into lines


@dataclass(frozen=True)
class Cell:
    text: str
    order: float | None = None  # what it is sorted by
    links: Sequence[
        tuple[str, str | None]
    ] = ()  # pieces of the text, each with its address or none


@dataclass(frozen=True)
class Table:
    """`id` without its prefix `table-`; `csv` is the name of the file behind it."""

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    csv: str


MODEL = Column("model", "model", "the model that was fine-tuned")
TASK = Column("task", "task", "the task it was fine-tuned on")
METHOD = Column("method", "method", "the method or stack of methods; its page says what it is")
KEY = Column(
    "key",
    "key",
    "the comparability key: device, dtype, batch, length, steps and a hash; rows of two keys do not compare",
)
SEED = Column("seed", "seed", "the seed of the run")
PEAK = Column(
    "peak_memory_bytes",
    "peak memory",
    "the most memory that a training step held at once, worst seed",
    _bytes,
)
SOURCE = Column(
    "peak_source",
    "peak from",
    "tensors-cpu: exact bytes of live tensors; cuda: what the GPU allocated",
)
STEP = Column(
    "step_seconds_median", "step", "the median time of a training step in milliseconds", _ms
)
TRAINABLE = Column(
    "trainable_parameters",
    "trainable",
    "parameters that are trained, the classifier head left out",
    _count,
)
STATUS = Column(
    "status",
    "status",
    "ok, or how the run ended: oom, timeout, diverged, unsupported, error, stale",
)
COMMAND = Column("command", "command", "what repeats the row", wide=True)
WHY = Column("why", "why", "the reason for the verdict", wide=True)
QUALITY = Column(
    "quality_mean", "quality", "the task's metric on its test split, the mean over seeds", _three
)

LEADERBOARD = (
    MODEL,
    TASK,
    Column(
        "tier",
        "tier",
        "methods of one tier cannot be told apart by the evidence; 1 is best; none where the scores vary far more over seeds than the others'",
        _whole,
    ),
    METHOD,
    STATUS,
    QUALITY,
    Column("quality_low", "low", "lower end of the 95 % interval of the quality", _three),
    Column("quality_high", "high", "upper end of the 95 % interval of the quality", _three),
    Column("quality_metric", "metric", "what the quality is; for loss lower is better"),
    Column("seeds", "seeds", "how many seeds ended well", _whole),
    PEAK,
    Column("peak_vs_full", "x full", "peak memory over that of full fine-tuning", _ratio),
    STEP,
    Column(
        "time_vs_full",
        "time x full",
        "step time over that of full fine-tuning, timed in turns on a machine of "
        "its own; empty where it was not",
        _ratio,
    ),
    TRAINABLE,
    Column(
        "checkpoint_bytes", "stored", "what is stored for each task beside the base model", _bytes
    ),
    KEY,
)
CELLS = (
    MODEL,
    TASK,
    METHOD,
    SEED,
    Column("trial", "trial", "the number of a tuning trial; empty for a run that counts", _whole),
    STATUS,
    Column("quality", "quality", "the task's metric on its test split", _three),
    PEAK,
    SOURCE,
    STEP,
    Column("train_seconds_total", "training", "seconds in the training loop", _seconds),
    TRAINABLE,
    Column(
        "measured_over_predicted",
        "measured / predicted",
        "measured peak over the one predicted before the run",
        _three,
    ),
    KEY,
)
FOOTPRINT = (
    MODEL,
    METHOD,
    Column("kind", "kind", "what the model is trained as"),
    Column("batch", "batch", "sequences in a training step", _whole),
    Column("seq", "length", "tokens in a sequence", _whole),
    Column("dtype", "dtype", "the type of the weights"),
    STATUS,
    Column("peak_bytes", "peak", "predicted exact peak of live tensors in a training step", _bytes),
    Column(
        "reserved_bytes",
        "reserved",
        "predicted bytes that PyTorch's CUDA allocator reserves",
        _bytes,
    ),
    Column(
        "smallest_card",
        "smallest card",
        "the smallest known GPU that holds it, 1 GiB left for the CUDA context",
    ),
    TRAINABLE,
)
BATCHES = (
    MODEL,
    METHOD,
    Column("kind", "kind", "what the model is trained as"),
    Column("seq", "length", "tokens in a sequence", _whole),
    Column("dtype", "dtype", "the type of the weights"),
    *(
        Column(
            f"largest_batch_{gib}gib",
            f"{gib} GiB",
            f"the largest batch predicted to fit into {gib} GiB; "
            "0: not even one sequence; empty: not asked",
            _whole,
        )
        for gib in BUDGETS_GIB
    ),
)
CLAIMS = (
    METHOD,
    Column("claim", "claim", "what the paper says", wide=True),
    Column(
        "verdict",
        "verdict",
        "supported, refuted, undecided (not the paper's setting, or too noisy) or not_run",
    ),
    Column("published", "published", "the figure in the paper", wide=True),
    Column("measured", "measured", "the figure here", _plain),
    Column("expected", "expected", "what counts as agreement", wide=True),
    Column(
        "setting",
        "setting",
        "paper: the paper's own; inferred: parts were not stated; scaled_down: smaller here",
    ),
    WHY,
)
FAILURES = (
    STATUS,
    MODEL,
    TASK,
    METHOD,
    SEED,
    Column("phase", "phase", "the phase of the run in which it ended"),
    Column("reason", "reason", "what went wrong", wide=True),
    KEY,
)
CALIBRATION = (
    Column("check", "check", "a control with a known answer"),
    MODEL,
    TASK,
    Column("expected", "expected", "the known answer", _plain),
    Column("measured", "measured", "what the meter said", _plain),
    Column("error", "error", "how far off it is", _plain),
    Column("limit", "limit", "how far off it may be", _plain),
    Column("passed", "passed", "true, false or not_run"),
    WHY,
)
RUNS = (Column("method", "stack", "the stack that was run"), *CELLS[:2], *CELLS[3:10], COMMAND)


def table(
    name: str,
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    csv: str,
    methods: str | None,
) -> Table:
    """The rows as a table. `methods` is the address of the folder of method pages, None for no
    links to them."""
    return Table(
        name,
        caption,
        columns,
        [[_cell(row, column, methods) for column in columns] for row in rows],
        csv,
    )


def _cell(row: Row, column: Column, methods: str | None) -> Cell:
    number = row.number(column.name) if column.shown else None
    if column.shown and number is not None:
        return Cell(column.shown(number), number)
    if column is METHOD and methods is not None:
        return Cell(row["method"], links=method_links(row["method"], methods))
    return Cell(row[column.name])


def method_links(method: str, methods: str) -> list[tuple[str, str | None]]:
    """The parts of a stack, each with its page: `svfit@r64+came` is svfit (link), @r64+, came
    (link)."""
    found: list[tuple[str, str | None]] = []
    rest = method
    for part in plugin_names(method):
        before, _, rest = rest.partition(part) if part else ("", "", rest)
        found += [(before, None), (part, f"{methods}/{quote(slug(part))}.html")] if part else []
    return [piece for piece in [*found, (rest, None)] if piece[0]]
