"""`leantune.apply`: a stack on a model of your own, for a plain loop, the `transformers` Trainer or
`accelerate`.

The methods' work inside a training loop is tied to what every loop does anyway: a penalty is added
to the loss that the model returns, and schedules run after each `optimizer.step()`. So a loop needs
nothing but the handle's optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, get_scheduler
from transformers.models.auto import modeling_auto

from leantune import architectures
from leantune.api import BadInput, Batch, Context, Data, Unsupported, mark_head
from leantune.data.collate import Collate
from leantune.errors import naming_extras
from leantune.fetch.cache import cache_folder
from leantune.models.export import save
from leantune.spec.cells import TRAINING_DEFAULTS
from leantune.spec.plugins import Plugin
from leantune.spec.schema import ModelFile
from leantune.spec.stacks import parse_stack, stack_name, unsupported_reason
from leantune.training.loop import CHECKS, step_fractions
from leantune.training.stack import Stack

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
STEPS = "steps=, the number of optimizer steps"  # what is asked for where it was forgotten
CLASSES = {  # kind to the names of the classes that transformers has for it
    # first, since BART's class stands in the list of masked models too
    "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "masked_lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "span": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}


def apply(
    model: PreTrainedModel,
    stack: str,
    *,
    data: Dataset | Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    head_lr: float = TRAINING_DEFAULTS["head_lr"],
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch: int = 16,
    dtype: str = "fp32",
    seed: int = 0,
) -> Handle:
    """Attach a stack such as `vocab_pruning+svfit@r64+came` to a `transformers` model and return
    its handle.

    The model is changed in place; move it to its device first. `data` are tokenized examples with
    `input_ids` (of an encoder-decoder model with `labels`, the target's tokens): a
    `datasets.Dataset`, a list, or a mapping of these by `train`, `validation` and `test`. Methods
    that look at no data need none. `steps` is the number of optimizer steps of the
    whole run; schedules need it. `settings` are the words of `--set`, such as `{"svfit.rank": 64}`.
    `head_lr` is the learning rate of a freshly made head. `tokenizer` is needed for the data of a
    masked language model and is exported with the model. `batch` is sequences per step (fwsvd),
    `dtype` bf16 says that you train under autocast (safe), and `seed` draws what a method
    initialises.

    Raises BadInput for a wrong or missing word, Unsupported where the stack does not fit the model.
    """
    if not isinstance(model, PreTrainedModel):
        raise BadInput(f"leantune.apply takes a transformers model, not {type(model).__name__}")
    kind = _kind(model)
    plugins = _stack(stack, kind, model, settings)
    if steps is not None and steps < 1:
        raise BadInput(f"steps is {steps}; give the number of optimizer steps, 1 or more")
    if steps is None and plugins.overrides("on_progress"):
        raise BadInput(f"'{stack}' follows a schedule over the whole run; give {STEPS}")
    examples: Any = _NoData(stack) if data is None else _examples(data, kind, model, tokenizer)
    plain = data is not None and "input_ids" in examples.train.column_names
    lengths = [len(ids) for ids in examples.train["input_ids"]] if plain else [0]
    ctx = Context(
        kind=kind,
        family=model.config.model_type,
        steps=steps or 0,
        head_lr=head_lr,
        seed=seed,
        device=model.device.type,
        batch=batch,
        length=max(lengths, default=0),
        dtype=dtype,
        cache=cache_folder() / "derived" / "applied",
    )
    mark_head(model, kind)
    with torch.random.fork_rng(devices=[model.device] if ctx.device == "cuda" else []):
        torch.manual_seed(seed)
        attached, changed = plugins.attach(model, examples, ctx)
    if changed is not None and changed is not examples:  # a method changed them
        data = _as_given(data, changed)
    return Handle(attached, data, plugins, ctx, tokenizer)


def _as_given(data: Any, changed: Data) -> Any:
    """Changed examples, one split or several as the caller gave them."""
    if isinstance(data, Mapping):
        from datasets import DatasetDict

        return DatasetDict({name: getattr(changed, name) for name in SPLITS if name in data})
    return changed.train


class Handle:
    """A model with its stack attached. `details` are what the methods report (ranks, rows kept,
    checks)."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        stack: Stack,
        ctx: Context,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        self.model = cast(PreTrainedModel, model)
        self.data = data  # as it was given, unless a method changed it
        self.details = ctx.details
        self.steps_taken = 0
        self._stack, self._ctx, self._tokenizer = stack, ctx, tokenizer
        self._name = stack_name(stack.parts)
        self._checks = step_fractions(ctx.steps, CHECKS)
        self._optimizer: torch.optim.Optimizer | None = None
        self._schedulers: list[LambdaLR] = []
        self._exported = False
        self._hooks: list[Any] = []
        if stack.overrides("penalty"):
            self._hooks.append(model.register_forward_hook(self._add_penalty, with_kwargs=True))

    def optimizer(self) -> torch.optim.Optimizer:
        """The stack's optimizer over what is trained, always the same one. Its steps drive the
        methods' schedules."""
        if self._optimizer is None:
            groups = self._stack.parameter_groups(self.model, self._ctx)
            self._optimizer = self._stack.optimizer(groups, self._ctx)
            self._hooks.append(self._optimizer.register_step_post_hook(self._after_step))
        return self._optimizer

    def scheduler(self, schedule: str = "linear", warmup: float = 0.1) -> LambdaLR:
        """A learning-rate schedule of `transformers` over all steps, `warmup` being a fraction of
        them.

        Stacks that change what is trained on the way need this one, or the Trainer's. Raises
        BadInput without steps.
        """
        steps = self._ctx.steps
        if not steps:
            raise BadInput(f"a schedule runs over all steps; give leantune.apply {STEPS}")
        made = get_scheduler(schedule, self.optimizer(), round(warmup * steps), steps)
        if not isinstance(made, LambdaLR):
            raise BadInput(
                f"schedule '{schedule}' does not follow from the step alone; "
                "use linear, cosine or constant"
            )
        self._schedulers.append(made)
        return made

    def callbacks(self) -> list[TrainerCallback]:
        """For the `callbacks` of a Trainer that has `optimizers=(handle.optimizer(), None)`."""
        return [_Callback(self)]

    def export(self, folder: Path | str) -> PreTrainedModel:
        """End training: write the model that a user deploys, in eval mode, for
        `leantune.load(folder)`; return it."""
        if not self._exported:
            for hook in self._hooks:
                hook.remove()
            self.model = cast(PreTrainedModel, self._stack.export(self.model, self._ctx).eval())
            self._exported = True
        save(self.model, folder)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)
        return self.model

    # ---------------------------------------------------------- inside the user's own loop

    def _add_penalty(self, model: nn.Module, _: Any, inputs: dict[str, Any], output: Any) -> Any:
        """After a forward pass of training: the methods' penalty joins the loss."""
        training = model.training and torch.is_grad_enabled()
        penalty = self._stack.penalty(model) if training else None
        if penalty is None:
            return output
        if getattr(output, "loss", None) is None:
            raise BadInput(
                f"'{self._name}' adds a penalty to the model's loss; "
                "pass labels, so that it returns one"
            )
        if (items := inputs.get("num_items_in_batch")) is not None:
            # The Trainer sums the losses of accumulated batches: each has its share of the penalty.
            labels = inputs["labels"]
            labels = labels[..., 1:] if self._ctx.kind == "causal_lm" else labels
            penalty = penalty * (labels.ne(-100).sum() / items)
        output.loss = output.loss + penalty
        return output

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After every `optimizer.step()`: the methods' hooks, and at fixed fractions of the steps
        their checks."""
        self.steps_taken += 1
        scheduled = any("initial_lr" in group for group in optimizer.param_groups)
        if scheduled and not self._schedulers and self._stack.overrides("on_progress"):
            raise BadInput(
                f"'{self._name}' may change what is trained on the way, and this learning-rate "
                "schedule would not follow; take it from handle.scheduler(), or give the Trainer "
                "callbacks=handle.callbacks()"
            )
        self._stack.on_step(self.model, self.steps_taken, self._ctx)
        if self.steps_taken not in self._checks:
            return
        progress = self._checks[self.steps_taken]
        change = self._stack.on_progress(self.model, optimizer, progress, self._ctx)
        if change is not None and change.model is not self.model:
            raise Unsupported(
                f"'{self._name}' replaces the model while it is trained, "
                "which only `leantune run` follows"
            )
        if change is not None and change.new_optimizer:
            self._rebuild(optimizer)

    def _rebuild(self, optimizer: torch.optim.Optimizer) -> None:
        """New groups and states inside the optimizer that the loop holds; schedules keep their
        position."""
        groups = self._stack.parameter_groups(self.model, self._ctx)
        fresh = self._stack.optimizer(groups, self._ctx)
        optimizer.state.clear()
        optimizer.param_groups[:] = fresh.param_groups
        rates = [group["lr"] for group in fresh.param_groups]
        for scheduler in self._schedulers:
            scheduler.base_lrs[:] = rates
            scheduler.lr_lambdas = [scheduler.lr_lambdas[0]] * len(rates)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["initial_lr"] = rate


class _Callback(TrainerCallback):
    """Checks that the Trainer does what the stack was told, and lets its schedule follow the
    stack's changes."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        if getattr(optimizer, "optimizer", optimizer) is not self.handle.optimizer():
            raise BadInput(
                "the Trainer made an optimizer of its own; "
                "give it optimizers=(handle.optimizer(), None)"
            )
        steps = self.handle._ctx.steps
        if steps and steps != state.max_steps:
            raise BadInput(
                f"the Trainer takes {state.max_steps} steps and leantune.apply was told {steps}; "
                "make them equal"
            )
        scheduler = getattr(kwargs["lr_scheduler"], "scheduler", kwargs["lr_scheduler"])
        if isinstance(scheduler, LambdaLR) and scheduler not in self.handle._schedulers:
            self.handle._schedulers.append(scheduler)


class _NoData:
    """Stands for data that were not given: whoever looks at them hears of it."""

    def __init__(self, stack: str) -> None:
        self._stack = stack

    def __getattr__(self, name: str) -> Any:
        raise BadInput(
            f"'{self._stack}' looks at the data; give leantune.apply data=, tokenized examples"
        )


def _kind(model: PreTrainedModel) -> str:
    """The kind of task that the model's class is made for."""
    name = type(model).__name__
    kinds = [kind for kind, names in CLASSES.items() if name in names.values()]
    if "seq2seq_lm" in kinds and not model.config.is_encoder_decoder:
        kinds.remove("seq2seq_lm")  # decoders that read speech stand in that list too
    kind = next(iter(kinds), None)
    if kind is None:
        known = (
            "sequence classification, question answering, causal, masked or sequence-to-sequence LM"
        )
        raise Unsupported(f"{name} is made for no kind of task known here: {known}")
    one_value = model.config.problem_type == "regression" or model.config.num_labels == 1
    return "regression" if kind == "classification" and one_value else kind


def _stack(
    name: str, kind: str, model: PreTrainedModel, settings: Mapping[str, Any] | None
) -> Stack:
    """The methods of the stack, which fit the model and train it."""
    parts = parse_stack(name, kind, settings)
    if parts[0].slot == "control":
        raise BadInput(
            f"'{name}' is a control without a model; leantune.apply takes methods that train one"
        )
    facts = ModelFile.model_construct(
        family=model.config.model_type, kinds=[kind], has=architectures.has(model)
    )
    plugin = Plugin("models", f"this {type(model).__name__}", Path(), facts, {})
    if reason := unsupported_reason(parts, plugin, kind, model.device.type):
        raise Unsupported(reason)
    stack = Stack(parts)
    if not stack.trains:
        raise BadInput(
            f"'{name}' trains nothing, so there is nothing to apply; use the model as it is"
        )
    return stack


def _examples(
    data: Any, kind: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> Data:
    """The caller's examples as the methods see them; splits that were not given are empty."""
    given = data if isinstance(data, Mapping) else {"train": data}
    if "train" not in given or not set(given) <= set(SPLITS):
        names = ", ".join(map(str, given))
        raise BadInput(f"data has the splits {names}; give train, and validation and test if any")
    if kind == "masked_lm" and tokenizer is None:
        raise BadInput("the data of a masked language model need tokenizer=, which knows the mask")
    with naming_extras("leantune.apply with data"):
        from datasets import Dataset  # not at the top: most methods need no data
    splits = {name: _rows(given.get(name, Dataset.from_dict({"input_ids": []}))) for name in SPLITS}
    if kind == "seq2seq_lm" and "labels" not in splits["train"].column_names:
        raise BadInput(
            "data of an encoder-decoder model have two sequences, input_ids and labels; "
            "labels are missing in train"
        )
    return Data(kind=kind, tokenizer=tokenizer, collate=_collate(kind, model, tokenizer), **splits)


def _rows(split: Any) -> Dataset:
    """A split as a Dataset; raises BadInput where it cannot be read again, or has no tokens."""
    if isinstance(split, Iterator) or not hasattr(split, "__getitem__"):
        raise BadInput(
            "data can be read once only; "
            "give a datasets.Dataset or a list, which methods may read again"
        )
    from datasets import Dataset

    if not isinstance(split, Dataset):
        split = Dataset.from_list([dict(split[i]) for i in range(len(split))])
    if not any(name.endswith("input_ids") for name in split.column_names):  # chosen_input_ids, too
        names = ", ".join(split.column_names)
        raise BadInput(f"data has the columns {names} and no input_ids; tokenize it first")
    return split


def _collate(
    kind: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> Callable[[list[dict[str, Any]]], Batch]:
    """Pads examples as the harness does; their label is as `transformers` names it, or `label`."""
    if tokenizer is not None and kind == "masked_lm":
        made = Collate.of(kind, tokenizer)
    else:
        made = Collate(kind, (tokenizer or model.config).pad_token_id or 0)

    def labelled(row: dict[str, Any]) -> dict[str, Any]:
        if "start_positions" in row:
            return {**row, "label": (row["start_positions"], row["end_positions"])}
        return {**row, "label": row["labels"]} if "labels" in row else row

    return lambda rows: made([labelled(row) for row in rows])
