"""Checks that every method must pass, for the tests of its author:

    from leantune.testing import parametrize_with_checks

    @parametrize_with_checks(["norm_tuning"])
    def test_my_method(method, check):
        check(method)

They run on models of width 16 with random weights, so they need no download and a second or so
each.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.bert import BertTokenizer

from leantune.api import BadInput, Batch, Context, Data, Unsupported, is_head, mark_head
from leantune.data.collate import Collate, batches
from leantune.errors import naming_extras
from leantune.machine.audit import observed
from leantune.models import export
from leantune.models.load import load_model
from leantune.prediction.metered_step import Probe
from leantune.prediction.one import build
from leantune.spec import plugins
from leantune.spec.stacks import parse_stack
from leantune.training.evaluation import mean_loss
from leantune.training.loop import Schedule, train
from leantune.training.stack import Stack, load_method

if TYPE_CHECKING:
    from leantune.spec.schema import MethodFile

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(59)))
STEPS, BATCH, LENGTH = 40, 8, 14
_ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_WORDS = {"vocab_size": len(WORDS), "max_position_embeddings": 32}
_DECODER = {**_WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 8,
}
_T5 = {
    **{"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2},
    **{"vocab_size": len(WORDS), "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 3},
}
# Four layers of width 16 (T5: in encoder and decoder), a vocabulary of 64, for each family.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {**_ENCODER, **_WORDS},
    "roberta": {**_ENCODER, **_WORDS, "max_position_embeddings": 40, "pad_token_id": 1},
    "deberta-v2": {**_ENCODER, **_WORDS, **_DEBERTA},
    "llama": {**_ENCODER, **_DECODER},
    "gpt2": {**_DECODER, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32},
    "t5": _T5,
}


def parametrize_with_checks(methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | Path) -> Any:
    """A decorator for a test with the parameters `method` and `check`, run for every check that
    applies.

    `methods` are names (`norm_tuning`, `norm_tuning@big`), or a mapping of names to settings that
    suit a model of width 16 (`{"norm_tuning": {"norm_tuning.rank": 2}}`), or the folder that holds
    `methods/`, all of which are taken. Raises BadInput for a folder without methods, or where a
    method has the name of another.
    """
    import pytest

    names = _names_in(methods) if isinstance(methods, Path) else methods
    settings = methods if isinstance(methods, Mapping) else {}
    subjects = [Subject(name, settings.get(name, {})) for name in names]
    pairs = [(subject, check) for subject in subjects for check in checks_of(subject)]
    ids = [f"{subject.name}-{check.__name__}" for subject, check in pairs]
    return pytest.mark.parametrize(("method", "check"), pairs, ids=ids)


def _names_in(folder: Path) -> list[str]:
    """The methods of a plugin root, which joins the search path if it is not on it."""
    folder = folder.absolute()
    names = sorted(file.parent.name for file in folder.glob("methods/*/method.yaml"))
    if not names:
        raise BadInput(
            f"{folder} holds no methods/<name>/method.yaml; give the folder above methods/"
        )
    if folder not in plugins.roots():
        paths = [os.environ.get("LEANTUNE_PLUGINS", ""), str(folder)]
        os.environ["LEANTUNE_PLUGINS"] = os.pathsep.join(p for p in paths if p)
    for name in names:
        found = plugins.discover("methods")[name]
        if not found.samefile(folder / "methods" / name / "method.yaml"):
            raise BadInput(f"'{name}' is the name of another method, {found.parent}; rename yours")
    return names


# ------------------------------------------------------------------ a small model and an easy task


@dataclass(frozen=True)
class Subject:
    """A method under test, with settings as `--set` names them."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> MethodFile:
        return plugins.get("methods", self.name.partition("@")[0]).spec

    @property
    def family(self) -> str:
        """BERT where the method supports it; T5 for a method of sequence-to-sequence models."""
        supports = self.spec.supports
        supported = (supports and supports.families) or [*ARCHITECTURES]
        if supports and supports.tasks == ["seq2seq_lm"]:
            supported = ["t5"]
        found = [name for name in ARCHITECTURES if name in supported]
        if not found:
            known = ", ".join(ARCHITECTURES)
            raise BadInput(f"'{self.name}' supports {', '.join(supported)}; checks are for {known}")
        return found[0]

    @property
    def kind(self) -> str:
        """The kind of task: the model's most usual one, where the method supports it."""
        known = ["causal_lm", "classification", "seq2seq_lm"]
        supported = (self.spec.supports and self.spec.supports.tasks) or known
        encoders = ("classification", "regression", "masked_lm")
        decoders = dict.fromkeys(("llama", "gpt2"), ("causal_lm",))
        usual = {**decoders, "t5": ("seq2seq_lm",)}.get(self.family, encoders)
        return next((kind for kind in usual if kind in supported), supported[0])

    def stack(self, beside: str | None = None) -> Stack:
        """The method alone, or with another one `beside` it."""
        name = f"{self.name}+{beside}" if beside else self.name
        return Stack(parse_stack(name, self.kind, self.settings))

    def context(self, scratch: Path) -> Context:
        return Context(
            kind=self.kind,
            family=self.family,
            steps=STEPS,
            head_lr=3e-2,
            seed=0,
            device="cpu",
            batch=BATCH,
            length=LENGTH,
            cache=scratch,
        )

    @property
    def model_spec(self) -> dict[str, Any]:
        """As a models/*.yaml would say it."""
        architecture = {
            "model_type": self.family,
            # Large enough for the first token to see the others through random layers.
            "initializer_range": 0.3,
            **ARCHITECTURES[self.family],
        }
        return {
            "name": "small",
            "kinds": [self.kind],
            "traits": ["from_scratch"],
            "architecture": architecture,
        }

    def model(self) -> nn.Module:
        made = load_model(self.model_spec, self.kind, 2, seed=0)
        mark_head(made, self.kind)
        return made


@functools.cache
def easy_data(kind: str) -> Data:
    """64 sentences of eight low words or of eight high ones; the label says of which, and so does
    the answer that an encoder-decoder model writes."""
    tokenizer = BertTokenizer({word: number for number, word in enumerate(WORDS)})
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, LENGTH - 1, (64,), generator=draw)
    words = [
        torch.randint(5, 13, (n,), generator=draw) + 30 * (i % 2) for i, n in enumerate(lengths)
    ]
    columns: dict[str, list[Any]] = {
        "text": [" ".join(WORDS[word] for word in ids) for ids in words],
        "input_ids": [[2, *ids.tolist(), 3] for ids in words],
        "attention_mask": [[1] * (len(ids) + 2) for ids in words],
        "label": [float(i % 2) if kind == "regression" else i % 2 for i in range(64)],
    }
    if kind == "seq2seq_lm":
        columns["labels"] = [[5 + 30 * (i % 2), 3] for i in range(64)]
    with naming_extras("leantune.testing"):
        from datasets import Dataset
    split = Dataset.from_dict(columns)
    classes = ("low", "high") if kind == "classification" else ()
    return Data(kind, split, split, split, classes, tokenizer, Collate.of(kind, tokenizer))


def _attached(stack: Stack, subject: Subject, ctx: Context) -> tuple[nn.Module, Data]:
    torch.manual_seed(ctx.seed)
    model, data = stack.attach(subject.model(), easy_data(subject.kind), ctx)
    assert data is not None, "attach gave no data back"
    return model, data


def _batches(data: Data, steps: int | None = None) -> Iterator[Batch]:
    assert data.collate is not None, "attach took the data's collate function away"
    return batches(data.train, data.collate, BATCH, steps, seed=0, shuffle=steps is not None)


def _trained(stack: Stack, model: nn.Module, data: Data, ctx: Context) -> nn.Module:
    return train(model, stack, _batches(data, STEPS), Schedule(steps=STEPS), ctx).model


def _logits(model: nn.Module, data: Data) -> Tensor:
    apart = data.kind == "seq2seq_lm"  # the decoder's inputs are made of the labels
    inputs = {name: t for name, t in next(_batches(data)).items() if apart or name != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def _loss(model: nn.Module, data: Data) -> float:
    return mean_loss(model, _batches(data), "cpu", "fp32")


def _in_scratch(check: Callable[[Subject, Context], None]) -> Callable[[Subject], None]:
    """The check with a context whose scratch folder goes when it ends."""

    @functools.wraps(check)
    def run(subject: Subject) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(subject, subject.context(Path(folder)))

    return run


@_in_scratch
def _whole_life(subject: Subject, ctx: Context) -> None:
    """Attach, train and export, or what a control has in their place."""
    stack = subject.stack()
    if stack.control is not None:
        control: Any = stack.control  # a control's `fit_predict` is no hook of Method
        control.fit_predict(easy_data(subject.kind), ctx)
        return
    model, data = _attached(stack, subject, ctx)
    stack.export(_trained(stack, model, data, ctx) if stack.trains else model, ctx)


# ------------------------------------------------------------------ the checks


def check_valid_yaml(subject: Subject) -> None:
    """`method.yaml` keeps to its schema, every point and search value is a setting, and `method.py`
    has one class."""
    spec = subject.spec
    for point in [None, *spec.points]:
        name = f"{spec.name}@{point}" if point else spec.name
        (part, *_) = [p for p in parse_stack(name, subject.kind) if p.plugin.name == spec.name]
        unknown = set(spec.search) - set(part.params)
        assert not unknown, f"method.yaml: `search` names '{min(unknown)}', which is no setting"
    load_method(spec.name)


@_in_scratch
def check_deterministic_attach(subject: Subject, ctx: Context) -> None:
    """The same seed gives the same model: names, values and what is trained. A control predicts the
    same twice."""
    if subject.spec.slot == "control":
        controls: Any = [subject.stack().control for _ in range(2)]
        one, two = (list(c.fit_predict(easy_data(subject.kind), ctx)) for c in controls)
        assert one == two, "fit_predict gave other predictions the second time"
        return
    first, second = (_attached(subject.stack(), subject, ctx)[0] for _ in range(2))
    trained, again = (
        [(name, is_head(p)) for name, p in model.named_parameters() if p.requires_grad]
        for model in (first, second)
    )
    assert trained == again, "attach chose other parameters to train the second time"
    values, others = first.state_dict(), second.state_dict()
    assert values.keys() == others.keys(), "attach made other modules the second time"
    changed = [name for name, tensor in values.items() if not torch.equal(tensor, others[name])]
    assert not changed, (
        f"attach gave '{changed[0]}' other values the second time; draw them from torch's generator"
    )


@_in_scratch
def check_only_declared_parameters_move(subject: Subject, ctx: Context) -> None:
    """What `attach` left frozen stays bit for bit, and the optimizer gets all that is trainable and
    nothing else."""
    stack = subject.stack("head" if subject.spec.slot in ("vocabulary", "optimizer") else None)
    model, data = _attached(stack, subject, ctx)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    grouped = [id(p) for group in stack.parameter_groups(model, ctx) for p in group["params"]]
    trainable = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    left_out = [name for key, name in trainable.items() if key not in grouped]
    assert not left_out, (
        f"'{left_out[0]}' requires a gradient and is in no group of parameter_groups"
    )
    assert len(grouped) == len(trainable), (
        "parameter_groups lists a parameter twice, or one that is frozen"
    )
    now = dict(_trained(stack, model, data, ctx).named_parameters())
    moved = [n for n, p in frozen.items() if n in now and not torch.equal(now[n].detach(), p)]
    assert not moved, f"'{moved[0]}' was frozen by attach and has moved in training"


@_in_scratch
def check_learns_an_easy_task(subject: Subject, ctx: Context) -> None:
    """The loss in eval mode falls by a tenth in forty steps, at the method's own learning rates."""
    stack = subject.stack()
    model, data = _attached(stack, subject, ctx)
    before = _loss(model, data)
    after = _loss(_trained(stack, model, data, ctx), data)
    assert after < 0.9 * before, (
        f"the loss went from {before:.3f} to {after:.3f}; is anything trained, at what rate?"
    )


@_in_scratch
def check_export_and_reload_agree(subject: Subject, ctx: Context) -> None:
    """The exported model computes what the trained one did, and comes back from its folder bit for
    bit."""
    stack = subject.stack()
    model, data = _attached(stack, subject, ctx)
    model = _trained(stack, model, data, ctx) if stack.trains else model
    trained = _logits(model, data)
    exported: Any = stack.export(model, ctx)
    expected = _logits(exported, data)
    torch.testing.assert_close(
        expected, trained, rtol=1e-4, atol=1e-5, msg=lambda m: f"export changed it: {m}"
    )
    export.save(exported, ctx.cache / "exported")
    found = _logits(export.load(ctx.cache / "exported"), data)
    assert torch.equal(found, expected), (
        "the exported model is another one after saving and loading"
    )


@_in_scratch
def check_prediction_equals_real_peak(subject: Subject, ctx: Context) -> None:
    """Memory predicted without values is, to the byte and the operation, that of real tensors."""
    stack, real_stack, data = subject.stack(), subject.stack(), easy_data(subject.kind)
    try:
        built = build(subject.model_spec, stack, ctx, 2, data)
    except Unsupported:  # attaching needs values, and a prediction then takes real ones
        built = build(subject.model_spec, stack, ctx, 2, data, "cpu")
    model, _ = _attached(real_stack, subject, ctx)
    schedule, shape = Schedule(steps=STEPS), (3, 12)
    predicted = Probe(stack, schedule, ctx, shape).fake(built, cuda=False)
    real = Probe(real_stack, schedule, ctx, shape).real(model)
    peak = ("peak_bytes", "peak_phase", "by_kind", "by_phase")
    for number in (*peak, "optimizer_state_bytes", "flops_per_step"):
        assert predicted[number] == real[number], (
            f"{number}: predicted {predicted[number]}, real {real[number]}"
        )


def check_no_network(subject: Subject) -> None:
    """Attaching, training and exporting open no connection and look up no address."""
    with observed() as seen:
        _whole_life(subject)
    assert not seen.addresses, f"the method asked for the network: {seen.addresses[0]}"


def check_no_writes_outside_scratch(subject: Subject) -> None:
    """Files are written below `ctx.cache` and the system's temporary folder only."""
    with observed() as seen:
        _whole_life(subject)
    assert not seen.paths, f"the method wrote to {seen.paths[0]}; its scratch is ctx.cache"


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_valid_yaml,
    check_deterministic_attach,
    check_only_declared_parameters_move,
    check_learns_an_easy_task,
    check_export_and_reload_agree,
    check_prediction_equals_real_peak,
    check_no_network,
    check_no_writes_outside_scratch,
)
_OF_TRAINING = (
    check_only_declared_parameters_move,
    check_learns_an_easy_task,
    check_prediction_equals_real_peak,
)


def checks_of(subject: Subject) -> list[Callable[[Subject], None]]:
    """The checks that apply: those of training only where the method trains, export only where
    there is a model."""
    spec, left_out = subject.spec, set()
    if spec.disabled is not None:
        return [check_valid_yaml]
    if spec.slot == "control":
        left_out = {*_OF_TRAINING, check_export_and_reload_agree}
    elif not spec.trains:
        left_out = {*_OF_TRAINING}
    return [check for check in CHECKS if check not in left_out]
