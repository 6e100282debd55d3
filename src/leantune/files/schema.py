"""What the files that LeanTune itself writes may hold: records, choices of settings, step times in
turns, locked sources.

Importing pydantic takes a tenth of a second, so this module is imported where a file is read.
"""

from types import GenericAlias
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    WithJsonSchema,
    create_model,
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
    refuses_null: ClassVar[bool] = (
        False  # whether a key without a value is no key, whatever its type
    )
    may_be_null: ClassVar[tuple[str, ...]] = ()  # but for these

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, given: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key, value in given.items() if isinstance(given, dict) else ():
            if key not in known and cls.model_config["extra"] == "forbid":
                raise wrong(f" is unknown; allowed: {', '.join(known)}", str(key), kind=UNKNOWN)
            empty = value is None and key in known and key not in cls.may_be_null
            if empty and cls.refuses_null:
                raise wrong(" has no value; give one or remove it", key)
        return given


class OpenFields(Fields):
    """A mapping that may hold more than what is checked."""

    model_config = ConfigDict(extra="ignore")


def _is_setting(given: Any) -> Any:
    if isinstance(given, dict):
        raise wrong(": a mapping is no value of a setting")
    return given


_SETTING_TYPES = {"type": ["number", "string", "boolean", "array", "null"]}
Setting = Annotated[Any, AfterValidator(_is_setting), WithJsonSchema(_SETTING_TYPES)]
SettingName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$")]
Settings = dict[SettingName, Setting]  # METHOD.PARAM or task.KEY to its value

# What follows is checked and then used as the mapping that it is, so no class spells it out: the
# type of each key, which must be there; of (type, default) pairs, which may be absent.


def _closed(name: str, base: type[Fields] = Fields, **keys: Any) -> Any:
    types: dict[str, Any] = {
        key: one if isinstance(one, tuple) else (one, ...) for key, one in keys.items()
    }
    return create_model(name, __base__=base, **types)


def _open(name: str, **keys: Any) -> Any:
    return _closed(name, OpenFields, **keys)


def _list_of(one: Any) -> Any:
    return GenericAlias(list, one)


def _mapping_to(one: Any, key: Any = str) -> Any:
    return GenericAlias(dict, (key, one))


# ------------------------------------------------------------------ choices of settings

Trial = _open("Trial", trial=int | None, settings=Settings, status=str, value=float | None)
Choice = _closed(
    "Choice",  # which of a method's trials was chosen
    method=str,
    metric=str | None,
    trials=_list_of(Trial),
    chosen=int | None,
    settings=Settings,
    at_edge=list[str],
)

# ------------------------------------------------------------------ step times in turns

Turn = _open("Turn", step_seconds=Positive)
Ratio = _open("Ratio", ratio=Positive)
ComparisonKey = _open(
    "ComparisonKey",
    hardware=Any,
    device=Any,
    dtype=Any,
    batch=Any,
    length=Any,
    checkpointing=Any,
    torch=Any,
    measurement=Any,
)
Comparison = _open(
    "Comparison",
    model=str,
    task=str,
    key=ComparisonKey,
    against=str,
    rounds=_list_of(_mapping_to(Turn)),
    ratios=_mapping_to(Ratio),
    hashes=dict[str, str],
)

# ------------------------------------------------------------------ locked sources

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
RepositoryName = Annotated[str, Field(pattern=r"^(models|datasets)/")]
LockedFile = _closed("LockedFile", size=Natural, sha256=Sha256)
Locked = _closed("Locked", revision=Commit | None, files=_mapping_to(LockedFile))
Lock: Any = RootModel.__class_getitem__(_mapping_to(Locked, RepositoryName))

# ------------------------------------------------------------------ records

Bytes = (Natural | None, None)  # absent where there is nothing to measure it with
CellNames = _closed(
    "CellNames",
    model=str,
    task=str,
    method=str,
    point=str | None,
    seed=int,
    trial=int | None,
    # Absent in older records, which have it in their command only, but never null.
    settings=(_closed("Asked", model=str, set=dict[str, Any], flatness=Natural), None),
)
Key = _closed(
    "Key",
    short=str,
    hardware=str,
    device=Literal["cpu", "cuda"],
    dtype=str,
    batch=int,
    length=int,
    steps=int,
    checkpointing=bool,
    torch=str,
    samples=str | None,
    measurement=int,
)
Interval = _open("Interval", step=int, peak_bytes=Natural)
Tensors = _open(
    "Tensors",
    source=Any,
    path=Any,
    peak_bytes=Natural,
    peak_phase=(str | None, None),
    by_kind=dict[str, int],
    intervals=(_list_of(Interval), []),
)
Memory = _closed(
    "Memory",
    peak_bytes=Natural | None,
    peak_source=Literal["tensors-cpu", "cuda", "predicted"] | None,
    mean_peak_bytes=Natural | None,
    tensors=Tensors | None,
    cuda=_open("Allocator", allocated_peak_bytes=Bytes) | None,
    host=_open("Host", peak_bytes=Bytes) | None,
    predicted=_open("Predicted", peak_bytes=Bytes, allocated_bytes=Bytes) | None,
)
Parameters = _open("Parameters", total=Natural, trainable=Natural, head=Natural)
Clocks = _open("Clocks", throttled_share=(float | None, None))
Time = _closed(
    "Time",
    step_seconds=(list[float] | None, None),
    step_seconds_median=float | None,
    step_seconds_p95=float | None,
    train_seconds_total=float | None,
    attach_seconds_cold=float | None,
    hook_seconds_total=(float | None, None),
    resumed_after=(list[Count], []),
    phases=dict[str, float],
    vs_full=float | None,
    clocks=(Clocks | None, None),
)
Quality = _closed(
    "Quality",
    metric=str,
    value=float,
    higher_is_better=bool,
    metrics=dict[str, float | None],
    curve=list[dict[str, Any]],
    target=float | None,
    steps_to_target=int | None,
    seconds_to_target=float | None,
    predictions=list[float],
    references=list[float],
    flatness=(dict[str, Any] | None, None),
)
Inference = _open(
    "Inference",
    tokens_per_second=(float | None, None),
    peak_bytes=(int | None, None),
    parameters=(int | None, None),
)
Size = _open(
    "Size",
    checkpoint_bytes=(int | None, None),
    deployed_parameters=(int | None, None),
    deployed_bytes=(int | None, None),
)
Provenance = _open(
    "Provenance",
    command=str,
    commit=str | None,
    dirty=bool | None,
    revisions=(dict[str, str | None], {}),
    hashes=_open("Hashes", method=str, task=str, model=str),
)
RecordFile = _closed(
    "RecordFile",  # one run: what was asked for, how it ended, what was measured
    schema_=(Literal[1], Field(alias="schema")),  # pydantic has a method of that name
    status=Literal["ok", "oom", "timeout", "diverged", "unsupported", "error"],
    phase=str | None,
    reason=str | None,
    cell=CellNames,
    key=Key,
    memory=Memory | None,
    parameters=Parameters | None,
    time=Time | None,
    quality=Quality | None,
    inference=Inference | None,
    size=Size | None,
    tuning=_mapping_to(Choice) | None,
    details=dict[str, Any],
    provenance=Provenance,
)
