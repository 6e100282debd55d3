"""What the files that LeanTune itself writes may hold: records, choices of settings, step times in
turns, locked sources.

Importing pydantic takes a tenth of a second, so this module is imported where a file is read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from leantune.files.parse import UNKNOWN

Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def wrong(message: str, *inside: str, kind: str = "wrong") -> PydanticCustomError:
    """An error of `files.parse.check`: what its sentence says after the key, which is that of the
    checked value or one inside it."""
    return PydanticCustomError(kind, "{message}", {"message": message, "inside": inside})


class Fields(BaseModel):
    """A mapping of a file: values are taken as they are, never converted, and unknown keys are
    refused by a sentence that names the known ones."""

    model_config = ConfigDict(strict=True, extra="forbid", defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        if cls.model_config["extra"] == "forbid":
            for key in given:
                if key not in fields:
                    raise wrong(
                        f" is unknown; allowed: {', '.join(fields)}", str(key), kind=UNKNOWN
                    )
        return given


class OpenFields(Fields):
    """A mapping that may hold more than what is checked."""

    model_config = ConfigDict(extra="ignore")


def _is_setting(given: Any) -> Any:
    if isinstance(given, dict):
        raise wrong(": a mapping is no value of a setting")
    return given


Setting = Annotated[
    Any,
    AfterValidator(_is_setting),
    WithJsonSchema({"type": ["number", "string", "boolean", "array", "null"]}),
]
SettingName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$")]
Settings = dict[SettingName, Setting]  # METHOD.PARAM or task.KEY to its value


# ------------------------------------------------------------------ choices of settings


class Trial(OpenFields):
    trial: int | None
    settings: Settings
    status: str
    value: float | None


class Choice(Fields):
    """Which of a method's trials was chosen."""

    method: str
    metric: str | None
    trials: list[Trial]
    chosen: int | None
    settings: Settings
    at_edge: list[str]


# ------------------------------------------------------------------ step times in turns


class ComparisonKey(OpenFields):
    hardware: Any
    device: Any
    dtype: Any
    batch: Any
    length: Any
    checkpointing: Any
    torch: Any
    measurement: Any


class Turn(OpenFields):
    step_seconds: Positive


class Ratio(OpenFields):
    ratio: Positive


class Comparison(OpenFields):
    """What `leantune compare` measured: the step times of several methods in turns."""

    model: str
    task: str
    key: ComparisonKey
    against: str
    rounds: list[dict[str, Turn]]
    ratios: dict[str, Ratio]
    hashes: dict[str, str]


# ------------------------------------------------------------------ locked sources


class LockedFile(Fields):
    size: Natural
    sha256: Sha256


class LockedRepository(Fields):
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    files: dict[str, LockedFile]


RepositoryName = Annotated[str, Field(pattern=r"^(models|datasets)/")]


class Lock(RootModel[dict[RepositoryName, LockedRepository]]):
    """The commit and the files of each hub repository that was fetched."""


# ------------------------------------------------------------------ records


class CellSettings(Fields):
    model: str
    set: dict[str, Any]
    flatness: Natural


class CellNames(Fields):
    model: str
    task: str
    method: str
    point: str | None
    seed: int
    trial: int | None
    settings: CellSettings = None  # type: ignore[assignment]  # absent once, but never null


class Key(Fields):
    short: str
    hardware: str
    device: Literal["cpu", "cuda"]
    dtype: str
    batch: int
    length: int
    steps: int
    checkpointing: bool
    torch: str
    samples: str | None
    measurement: int


class Interval(OpenFields):
    step: int
    peak_bytes: Natural


class Tensors(OpenFields):
    source: Any
    path: Any
    peak_bytes: Natural
    peak_phase: str | None = None
    by_kind: dict[str, int]
    intervals: list[Interval] = []


class Allocated(OpenFields):
    allocated_peak_bytes: Natural | None = None


class Peak(OpenFields):
    peak_bytes: Natural | None = None


class Predicted(Peak):
    allocated_bytes: Natural | None = None


class Memory(Fields):
    peak_bytes: Natural | None
    peak_source: Literal["tensors-cpu", "cuda", "predicted"] | None
    mean_peak_bytes: Natural | None
    tensors: Tensors | None
    cuda: Allocated | None
    host: Peak | None
    predicted: Predicted | None


class Parameters(OpenFields):
    total: Natural
    trainable: Natural
    head: Natural


class Clocks(OpenFields):
    throttled_share: float | None = None


class Time(Fields):
    step_seconds: list[float] | None = None
    step_seconds_median: float | None
    step_seconds_p95: float | None
    train_seconds_total: float | None
    attach_seconds_cold: float | None
    hook_seconds_total: float | None = None
    resumed_after: list[Count] = []
    phases: dict[str, float]
    vs_full: float | None
    clocks: Clocks | None = None


class Quality(Fields):
    metric: str
    value: float
    higher_is_better: bool
    metrics: dict[str, float | None]
    curve: list[dict[str, Any]]
    target: float | None
    steps_to_target: int | None
    seconds_to_target: float | None
    predictions: list[float]
    references: list[float]
    flatness: dict[str, Any] | None = None


class Inference(OpenFields):
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    parameters: int | None = None


class Size(OpenFields):
    checkpoint_bytes: int | None = None
    deployed_parameters: int | None = None
    deployed_bytes: int | None = None


class Hashes(OpenFields):
    method: str
    task: str
    model: str


class Provenance(OpenFields):
    command: str
    commit: str | None
    dirty: bool | None
    revisions: dict[str, str | None] = {}
    hashes: Hashes


class RecordFile(Fields):
    """One run: what was asked for, how it ended, what was measured."""

    schema_: Literal[1] = Field(alias="schema")
    status: Literal["ok", "oom", "timeout", "diverged", "unsupported", "error"]
    phase: str | None
    reason: str | None
    cell: CellNames
    key: Key
    memory: Memory | None
    parameters: Parameters | None
    time: Time | None
    quality: Quality | None
    inference: Inference | None
    size: Size | None
    tuning: dict[str, Choice] | None
    details: dict[str, Any]
    provenance: Provenance
