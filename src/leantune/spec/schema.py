"""What the YAML files of methods, tasks, models and configs may hold.

Importing pydantic takes a tenth of a second, so this module is imported where a file is read.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from leantune.files.schema import Count, Fields, Natural, Positive, Settings, Sha256, wrong
from leantune.spec.config import CALIBRATION_LIMITS
from leantune.spec.kinds import Kind

Dtype = Literal["fp32", "bf16"]
Sentence = Annotated[str, Field(min_length=10)]


class YamlFields(Fields):
    """A mapping of a YAML file. A key without a value is refused: absent and null would be two
    spellings of one thing, and the raw mapping goes on to plugins."""

    refuses_null = True

    def given(self) -> dict[str, Any]:
        """The mapping as the file has it."""
        return self.model_dump(exclude_unset=True)


def _unique(given: list[Any]) -> list[Any]:
    if twice := [value for value, times in Counter(given).items() if times > 1]:
        raise wrong(f": {twice[0]!r} stands there twice")
    return given


# ------------------------------------------------------------------ sources of weights and texts


class SourceBlock(YamlFields):
    """Where weights or texts are fetched from: exactly one of package, hub, local, parts,
    none."""

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+$")] | None = None
    hub: str | None = None
    local: str | None = None
    parts: Annotated[list[SourceBlock], Field(min_length=2)] | None = None  # of one file, in order
    none: Literal[True] | None = None
    joined: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")] | None = None
    sdist: bool | None = None
    sha256: Sha256 | None = None
    revision: str | None = None
    repo_type: Literal["model", "dataset"] | None = None
    files: Annotated[list[str], Field(min_length=1)] | None = None
    path: str | None = None
    format: Literal["transformers", "gguf"] | None = None

    beside: ClassVar[dict[str, tuple[str, ...]]] = {
        "package": ("sdist", "sha256", "path", "format"),
        "hub": ("revision", "repo_type", "files", "path", "format"),
        "local": ("sha256", "path", "format"),
        "parts": ("joined", "sha256", "path", "format"),
        "none": (),
    }

    @model_validator(mode="after")
    def _one_place(self) -> SourceBlock:
        given = self.model_fields_set
        places = [place for place in self.beside if place in given]
        if len(places) != 1:
            raise wrong(": needs exactly one of package, hub, local, parts, none")
        (place,) = places
        if others := sorted(given - {place, *self.beside[place]}):
            known = ", ".join(self.beside[place]) or "nothing"
            raise wrong(f": '{others[0]}' does not go with '{place}'; with it go: {known}")
        if place == "package" and self.sha256 is None:
            raise wrong(": 'package' needs 'sha256'")
        if place == "parts":
            self._one_file()
        return self

    def _one_file(self) -> None:
        if self.joined is None or self.sha256 is None:
            raise wrong(": 'parts' needs 'joined', the file's name, and 'sha256', of that file")
        for part in self.parts or ():
            if part.format or not {"package", "local"} & part.model_fields_set:
                raise wrong(": a part is a package or a local file, without 'format'", "parts")


# ------------------------------------------------------------------ methods


class PaperBlock(YamlFields):
    title: str | None = None
    arxiv: str | None = None
    url: str | None = None


# what a method may need of a model: the words of `leantune.architectures.WHAT`
Need = Literal[
    "linears",
    "plain_linears",
    "query",
    "key",
    "value",
    "attention_output",
    "ffn_output",
    "ffn_linears",
    "biases",
]


class SupportsBlock(YamlFields):
    """What a method works with; where a key is absent, with everything."""

    families: list[str] | None = None
    needs: list[Need] | None = None
    tasks: list[Kind] | None = None
    devices: list[Literal["cpu", "cuda"]] | None = None


Measure = Annotated[str, Field(min_length=1)]
Bound = float | Annotated[str, Field(pattern=r"^\{[a-z_]+\}$")]  # or a {word} of the claim's rows
RULES = ("near", "at_least", "at_most", "above", "below")


class ExpectBlock(YamlFields):
    """What a measure is expected to be: one rule, and the tolerance of `near`."""

    near: Bound | None = None
    tolerance: Annotated[float, Field(ge=0)] | None = None
    at_least: Bound | None = None
    at_most: Bound | None = None
    above: Bound | None = None
    below: Bound | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> ExpectBlock:
        rules = self.model_fields_set & {*RULES}
        if len(rules) != 1:
            raise wrong(f": needs exactly one of {', '.join(RULES)}")
        if ("near" in rules) != (self.tolerance is not None):
            raise wrong(": 'near' needs 'tolerance', and no other rule has it")
        return self


class ConditionBlock(YamlFields):
    measure: Measure
    expect: ExpectBlock


class ClaimBlock(YamlFields):
    """A headline of the paper and how it is measured here; `scope: paper` cannot be."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_{}]*$")]
    claim: Sentence
    published: str | float
    source: Annotated[str, Field(min_length=5)]  # where the paper says it
    measure: Measure | None = None
    expect: ExpectBlock | None = None
    also: Annotated[list[ConditionBlock], Field(min_length=1)] | None = None
    each: Annotated[list[dict[str, str | float]], Field(min_length=1)] | None = None
    needs: Annotated[str, Field(min_length=5)] | None = None
    scope: Literal["footprint", "embedded", "paper"]
    setting: Literal["paper", "inferred", "scaled_down"]
    by_construction: bool
    identity: bool = False

    @model_validator(mode="after")
    def _measured_or_needed(self) -> ClaimBlock:
        given, measured = self.model_fields_set, {"measure", "expect"}
        if self.scope == "paper" and ("needs" not in given or given & {*measured, "also"}):
            raise wrong(": a claim of scope 'paper' has 'needs', and no measure, expect or also")
        if self.scope != "paper" and ("needs" in given or not measured <= given):
            raise wrong(f": a claim of scope '{self.scope}' has measure and expect, not 'needs'")
        return self


PointName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]


class MethodFile(YamlFields):
    """A `method.yaml`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    summary: Sentence
    paper: PaperBlock = PaperBlock()
    slot: Literal["vocabulary", "adaptation", "optimizer", "control"]
    base: str | None = None
    trains: bool = True
    resumable: bool | None = None
    params: dict[str, Any] = {}
    kinds: dict[Kind, dict[str, Any]] = {}
    points: dict[PointName, dict[str, Any]] = {}
    sources: dict[str, str] = {}
    search: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    supports: SupportsBlock | None = None
    inferred: list[str] = []
    claims: list[ClaimBlock] = []
    disabled: str | None = None

    @model_validator(mode="after")
    def _sources_of_points(self) -> MethodFile:
        if unknown := {*self.sources} - {*self.points}:
            raise wrong(f" names '{min(unknown)}', which is none of its points", "sources")
        return self


# ------------------------------------------------------------------ tasks


class DatasetBlock(YamlFields):
    """Columns and splits of a data set in the hub's layout."""

    config: str | None = None
    text: str
    pair: str | None = None
    label: str | None = None
    target: str | None = None
    train: str
    validation: str | None = None
    test: str


class SplitsBlock(YamlFields):
    train: Count
    validation: Count
    test: Count
    seed: int = 0


class TrainingBlock(YamlFields):
    """How a task trains; what is absent is in `cells.TRAINING_DEFAULTS`."""

    steps: Count
    batch: Count
    length: Annotated[int, Field(ge=2)]
    dtype: Dtype | None = None
    head_lr: Positive | None = None
    warmup: Annotated[float, Field(ge=0, le=1)] | None = None
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] | None = None
    clip: Annotated[float, Field(ge=0)] | None = None
    accumulate: Count | None = None
    checkpointing: bool | None = None
    evaluations: Natural | None = None
    max_new_tokens: Count | None = None


class MetricBlock(YamlFields):
    module: str
    score: str
    higher_is_better: bool
    target: float | None = None


class TaskFile(YamlFields):
    """A `task.yaml`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    summary: Sentence
    kind: Kind
    loader: str | None = None
    source: SourceBlock
    files: dict[str, Any] | None = None
    dataset: DatasetBlock | None = None
    splits: SplitsBlock
    training: TrainingBlock
    metric: MetricBlock

    @model_validator(mode="after")
    def _what_its_kind_needs(self) -> TaskFile:
        needed = {
            "classification": "label",
            "regression": "label",
            "causal_lm": "validation",
            "masked_lm": "validation",
            "generation": "target",
            "seq2seq_lm": "target",
        }.get(self.kind)
        if self.dataset and needed and getattr(self.dataset, needed) is None:
            raise wrong(f" is missing, which {self.kind} needs", "dataset", needed)
        most = self.training.max_new_tokens
        if self.kind == "seq2seq_lm":  # a task without it is scored by the loss on its targets
            module = "language_modelling" if most is None else "generation"
            if self.metric.module != module:
                word = "without" if most is None else "with"
                raise wrong(f" must be {module} {word} training.max_new_tokens", "metric", "module")
        elif (self.kind == "generation") != (most is not None):
            raise wrong(
                " is for the kind 'generation', which needs it, and for 'seq2seq_lm'",
                *("training", "max_new_tokens"),
            )
        return self


# ------------------------------------------------------------------ models


class ArchitectureBlock(YamlFields):
    """The configuration of transformers; `model_type` says whose."""

    model_config = ConfigDict(extra="allow")
    model_type: str


# An address, of a file with its commit where there is one, or a class: transformers 5.23.0 T5Config
Source = Annotated[str, Field(pattern=r"^(https://\S+|transformers [\d.]+ \w+Config)$")]


class CountBlock(YamlFields):
    """How many parameters a model has by a source that is not its `config`: a number, or one that
    is rounded, as it is written there (`7.6B`)."""

    says: Count | Annotated[str, Field(pattern=r"^\d+(\.\d+)?[MB]$")]
    source: Source
    also: list[Literal["output_embedding", "pooler", "rotary_frequencies"]] = []  # counted there
    without: list[Literal["embeddings", "position_offsets"]] = []  # counted here alone


class FactsBlock(YamlFields):
    """Where a model's facts were found: its configuration, and the number of its parameters a
    second time. What `architecture` does not say is the default of transformers' class."""

    config: Source
    count: CountBlock | None = None
    one_source: Literal[True] | None = None

    @model_validator(mode="after")
    def _second_source(self) -> FactsBlock:
        if (self.count is None) != (self.one_source is True):
            raise wrong(": needs 'count', or 'one_source: true' where there is no second source")
        return self


class ModelFile(YamlFields):
    """A file of `models/`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
    summary: Sentence
    family: str
    source: SourceBlock
    kinds: Annotated[list[Kind], Field(min_length=1)]
    traits: list[Literal["dequantized", "from_scratch"]] = []
    trust_remote_code: bool = False
    parameters: Count | None = None  # counted where it is left out
    has: list[Need] | None = None  # None: not known before the model is built
    facts: FactsBlock | None = None
    license: Sentence | None = None  # the terms of use, where they ask to be named
    architecture: ArchitectureBlock


# ------------------------------------------------------------------ configs

Names = Annotated[list[str], Field(min_length=1)]
Seeds = Annotated[list[Natural], Field(min_length=1), AfterValidator(_unique)]
Sizes = Annotated[list[Count], Field(min_length=1), AfterValidator(_unique)]
Status = Literal[
    "ok",
    "oom",
    "timeout",
    "diverged",
    "unsupported",
    "error",
    "stale",
    "missing",
    "damaged",
]


class CellsBlock(YamlFields):
    """Some cells: every model with every task, method and seed."""

    models: Names
    tasks: Names
    methods: Names
    seeds: Seeds | None = None
    trials: Natural | None = None
    flatness: Natural = 0
    epochs: Count | None = None
    set: Settings = {}
    grid: str | None = None
    not_run: Sentence | None = None


def _with_full(given: list[str]) -> list[str]:
    if "full" not in given:
        raise wrong(": 'full' is missing, which every method is compared with")
    return given


class TimingBlock(YamlFields):
    """Methods whose steps are timed in turns."""

    models: Names
    tasks: Names
    methods: Annotated[list[str], Field(min_length=2), AfterValidator(_with_full)]
    rounds: Annotated[int, Field(ge=2)] = 3
    set: Settings = {}
    grid: str | None = None


class FootprintBlock(YamlFields):
    """Predictions at paper scale."""

    models: Names
    methods: Names
    kind: Literal["classification", "causal_lm", "masked_lm", "span", "seq2seq_lm"]
    batches: Sizes
    lengths: Sizes
    dtype: Dtype
    largest_batch: list[str] = []


class CalibrationBlock(YamlFields):
    """The largest relative errors: of memory that is known, of slept seconds."""

    limit: Annotated[float, Field(ge=0)] = CALIBRATION_LIMITS["limit"]
    sleep_limit: Annotated[float, Field(ge=0)] = CALIBRATION_LIMITS["sleep_limit"]


Blocks = Annotated[list[CellsBlock], Field(min_length=1)]


class ConfigFile(YamlFields):
    """A config: what to run, where, and into which folder."""

    may_be_null = ("hardware",)

    output: Annotated[str, Field(pattern=r"^[^{}*?\s]+$")] = "runs/default"
    seeds: Seeds = [0]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: str | list[str] = []
    hardware: Annotated[str, Field(min_length=1)] | None = None
    allowed_statuses: Annotated[list[Status], AfterValidator(_unique)] = ["ok", "unsupported"]
    timeout_minutes: Count = 60
    trials: Natural = 0
    timing: list[TimingBlock] = []
    calibration: CalibrationBlock = CalibrationBlock()
    footprint: list[FootprintBlock] = []
    claims: bool = False
    set: Settings = {}
    cells: Blocks = []
    grids: Annotated[dict[str, Blocks], Field(min_length=1)] | None = None
    grid: str | None = None

    def resolved(self) -> dict[str, Any]:
        """The config as data, its defaults filled in: a config of the same meaning."""
        return self.model_dump(exclude_none=True)


FILES: dict[str, type[YamlFields]] = {
    "config": ConfigFile,
    "method": MethodFile,
    "task": TaskFile,
    "model": ModelFile,
}


class _Editor(GenerateJsonSchema):
    """A key may be absent, but has no null: an editor then says so."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def schema(kind: str) -> dict[str, Any]:
    """The JSON schema of a `config`, `method`, `task` or `model` file, for editors."""
    return TypeAdapter(FILES[kind]).json_schema(schema_generator=_Editor)
