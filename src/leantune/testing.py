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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from leantune.api import BadInput, Context, Data, Unsupported, is_head, mark_head
from leantune.data.collate import Collate, batches
from leantune.errors import naming_extras
from leantune.machine.audit import observed
from leantune.models import export
from leantune.models.load import load_model
from leantune.prediction.metered_step import Probe
from leantune.prediction.one import build
from leantune.spec import plugins
from leantune.spec.stacks import merged_spec, parse_stack
from leantune.training.evaluation import mean_loss
from leantune.training.loop import Schedule, Training, train
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
_DECODER = {
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
}
ARCHITECTURES: dict[
    str, dict[str, Any]
] = {  # by family: four layers of width 16, a vocabulary of 64
    "bert": {**_ENCODER, "vocab_size": 64, "max_position_embeddings": 32},
    "roberta": {**_ENCODER, "vocab_size": 64, "max_position_embeddings": 40, "pad_token_id": 1},
    "deberta-v2": {
        **_ENCODER,
        **_DEBERTA,
        "vocab_size": 64,
        "max_position_embeddings": 32,
        "position_buckets": 8,
    },
    "llama": {**_ENCODER, **_DECODER},
    "gpt2": {**_DECODER, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32},
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

    if isinstance(methods, Path):
        methods = _names_in(methods)
    subjects = [
        Subject(name, methods[name] if isinstance(methods, Mapping) else {}) for name in methods
    ]
    pairs = [(subject, check) for subject in subjects for check in checks_of(subject)]
    return pytest.mark.parametrize(
        ("method", "check"), pairs, ids=[f"{s.name}-{c.__name__}" for s, c in pairs]
    )


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
        return merged_spec(plugins.get("methods", self.name.partition("@")[0]))

    @property
    def family(self) -> str:
        """BERT where the method supports it."""
        supported = (self.spec.supports and self.spec.supports.families) or list(ARCHITECTURES)
        found = [name for name in ARCHITECTURES if name in supported]
        if not found:
            raise BadInput(
                f"'{self.name}' supports {', '.join(supported)}; checks are for {', '.join(ARCHITECTURES)}"
            )
        return found[0]

    @property
    def kind(self) -> str:
        supported = (self.spec.supports and self.spec.supports.tasks) or [
            "causal_lm",
            "classification",
        ]
        preferred = (
            ("causal_lm",)
            if self.family in ("llama", "gpt2")
            else ("classification", "regression", "masked_lm")
        )
        return next((kind for kind in preferred if kind in supported), supported[0])

    def stack(self, beside: str | None = None) -> Stack:
        """The method alone, or with another one `beside` it."""
        return Stack(
            parse_stack(f"{self.name}+{beside}" if beside else self.name, self.kind, self.settings)
        )

    def context(self, folder: Path) -> Context:
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
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
        # Weights that are large enough for the first token to see the others through random layers.
        architecture = {
            "model_type": self.family,
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
    """64 sentences of eight low words or of eight high ones; the label says of which."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", **special)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(64):
        length = int(torch.randint(4, LENGTH - 1, (), generator=draw))
        ids = torch.randint(5, 13, (length,), generator=draw) + 30 * (i % 2)
        text = " ".join(WORDS[j] for j in ids)
        row = {
            "text": text,
            "input_ids": [2, *ids.tolist(), 3],
            "attention_mask": [1] * (length + 2),
        }
        rows.append({**row, "label": float(i % 2) if kind == "regression" else i % 2})
    with naming_extras("leantune.testing"):
        from datasets import Dataset
    split = Dataset.from_list(rows)
    names = ("low", "high") if kind == "classification" else ()
    return Data(kind, split, split, split, names, tokenizer, Collate.of(kind, tokenizer))


def _attached(stack: Stack, subject: Subject, ctx: Context) -> tuple[nn.Module, Data]:
    torch.manual_seed(ctx.seed)
    model, data = stack.attach(subject.model(), easy_data(subject.kind), ctx)
    assert data is not None, "attach gave no data back"
    return model, data


def _trained(stack: Stack, model: nn.Module, data: Data, ctx: Context) -> Training:
    assert data.collate is not None, "attach took the data's collate function away"
    return train(
        model,
        stack,
        batches(data.train, data.collate, BATCH, STEPS, 0, True),
        Schedule(steps=STEPS),
        ctx,
    )


def _logits(model: nn.Module, data: Data) -> Tensor:
    assert data.collate is not None
    inputs = data.collate([data.train[i] for i in range(4)])
    inputs.pop("labels", None)
    with torch.no_grad():
        return model.eval()(**inputs).logits


def _loss(model: nn.Module, data: Data) -> float:
    assert data.collate is not None
    return mean_loss(model, batches(data.train, data.collate, BATCH), "cpu", "fp32")


# ------------------------------------------------------------------ the checks


def check_valid_yaml(subject: Subject) -> None:
    """`method.yaml` keeps to its schema, every point and search value is a setting, and `method.py`
    has one class."""
    spec = subject.spec
    for point in [None, *spec.points]:
        name = subject.name.partition("@")[0] + (f"@{point}" if point else "")
        (part, *_) = [p for p in parse_stack(name, subject.kind) if p.plugin.name == spec.name]
        unknown = set(spec.search) - set(part.params)
        assert not unknown, f"method.yaml: `search` names '{min(unknown)}', which is no setting"
    load_method(spec.name)


def check_deterministic_attach(subject: Subject) -> None:
    """The same seed gives the same model: names, values and what is trained. A control predicts the
    same twice."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = subject.context(Path(folder))
        if subject.spec.slot == "control":
            control: Any = [subject.stack().control for _ in range(2)]
            one, two = (c.fit_predict(easy_data(subject.kind), ctx) for c in control)
            assert list(one) == list(two), "fit_predict gave other predictions the second time"
            return
        first, second = (_attached(subject.stack(), subject, ctx)[0] for _ in range(2))
        states = first.state_dict(), second.state_dict()
    assert _trainable(first) == _trainable(second), (
        "attach chose other parameters to train the second time"
    )
    assert states[0].keys() == states[1].keys(), "attach made other modules the second time"
    changed = [
        name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])
    ]
    assert not changed, (
        f"attach gave '{changed[0]}' other values the second time; draw them from torch's generator"
    )


def check_only_declared_parameters_move(subject: Subject) -> None:
    """What `attach` left frozen stays bit for bit, and the optimizer gets all that is trainable and
    nothing else."""
    stack = subject.stack("head" if subject.spec.slot in ("vocabulary", "optimizer") else None)
    with tempfile.TemporaryDirectory() as folder:
        ctx = subject.context(Path(folder))
        model, data = _attached(stack, subject, ctx)
        frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        groups = [id(p) for group in stack.parameter_groups(model, ctx) for p in group["params"]]
        trainable = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
        left_out = [name for key, name in trainable.items() if key not in groups]
        assert not left_out, (
            f"'{left_out[0]}' requires a gradient and is in no group of parameter_groups"
        )
        assert len(groups) == len(trainable), (
            "parameter_groups lists a parameter twice, or one that is frozen"
        )
        model = _trained(stack, model, data, ctx).model
    now = dict(model.named_parameters())
    moved = [n for n, p in frozen.items() if n in now and not torch.equal(now[n].detach(), p)]
    assert not moved, f"'{moved[0]}' was frozen by attach and has moved in training"


def check_learns_an_easy_task(subject: Subject) -> None:
    """The loss in eval mode falls by a tenth in forty steps, at the method's own learning rates."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = subject.context(Path(folder))
        stack = subject.stack()
        model, data = _attached(stack, subject, ctx)
        before = _loss(model, data)
        after = _loss(_trained(stack, model, data, ctx).model, data)
    assert after < 0.9 * before, (
        f"the loss went from {before:.3f} to {after:.3f}; is anything trained, at what rate?"
    )


def check_export_and_reload_agree(subject: Subject) -> None:
    """The exported model computes what the trained one did, and comes back from its folder bit for
    bit."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = subject.context(Path(folder))
        stack = subject.stack()
        model, data = _attached(stack, subject, ctx)
        model = _trained(stack, model, data, ctx).model if stack.trains else model
        trained = _logits(model, data)
        exported: Any = stack.export(model, ctx)
        expected = _logits(exported, data)
        torch.testing.assert_close(
            expected, trained, rtol=1e-4, atol=1e-5, msg=lambda m: f"export changed it: {m}"
        )
        export.save(exported, Path(folder, "exported"))
        found = _logits(export.load(Path(folder, "exported")), data)
    assert torch.equal(found, expected), (
        "the exported model is another one after saving and loading"
    )


def check_prediction_equals_real_peak(subject: Subject) -> None:
    """Memory predicted without values is, to the byte and the operation, that of real tensors."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = subject.context(Path(folder))
        stack, real_stack = subject.stack(), subject.stack()
        data = easy_data(subject.kind)
        shape = (3, 12)
        try:
            built = build(subject.model_spec, stack, ctx, 2, data)
        except Unsupported:  # attaching needs values, and a prediction then takes real ones
            built = build(subject.model_spec, stack, ctx, 2, data, "cpu")
        model, _ = _attached(real_stack, subject, ctx)
        schedule = Schedule(steps=STEPS)
        predicted = Probe(stack, schedule, ctx, shape).fake(built, cuda=False)
        real = Probe(real_stack, schedule, ctx, shape).real(model)
    for number in (
        "peak_bytes",
        "peak_phase",
        "by_kind",
        "by_phase",
        "optimizer_state_bytes",
        "flops_per_step",
    ):
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
_TRAINING = {
    check_only_declared_parameters_move,
    check_learns_an_easy_task,
    check_prediction_equals_real_peak,
}


def checks_of(subject: Subject) -> list[Callable[[Subject], None]]:
    """The checks that apply: those of training only where the method trains, export only where
    there is a model."""
    spec = subject.spec
    control = spec.slot == "control"
    if spec.disabled is not None:
        return [check_valid_yaml]
    left_out = _TRAINING if control or not spec.trains else set()
    return [
        c
        for c in CHECKS
        if c not in left_out and not (control and c is check_export_and_reload_agree)
    ]


def _trainable(model: nn.Module) -> list[tuple[str, bool]]:
    return [(name, is_head(p)) for name, p in model.named_parameters() if p.requires_grad]


def _whole_life(subject: Subject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ctx = subject.context(Path(folder))
        stack: Any = subject.stack()
        if stack.control is not None:
            stack.control.fit_predict(easy_data(subject.kind), ctx)
            return
        model, data = _attached(stack, subject, ctx)
        if stack.trains:
            model = _trained(stack, model, data, ctx).model
        stack.export(model, ctx)
