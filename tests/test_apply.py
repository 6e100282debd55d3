"""`leantune.apply` in a plain loop, under the Trainer and under accelerate: the same weights as the
harness's own loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from small import batch_of, narrow_settings, small_context, small_data, small_model
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments

import leantune
from leantune.api import BadInput, Batch, Data, Unsupported
from leantune.spec.stacks import parse_stack
from leantune.testing import ARCHITECTURES
from leantune.training.loop import Schedule, train
from leantune.training.stack import Stack

STEPS = 20
STACKS = ["vocab_pruning+svfit+came", "lora", "safe", "softlms", "vocab_pruning+softlms+came"]
STILL = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # loops draw at different moments


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANTUNE_CACHE", str(tmp_path / "cache"))


def applied(model: PreTrainedModel, stack: str, data: Data | None, **words: Any) -> Any:
    given = None if data is None else data.train
    return leantune.apply(
        model, stack, **{"data": given, "steps": STEPS, "settings": narrow_settings(stack), **words}
    )


def by_the_harness(
    stack: str, data: Data, folder: Path, family: str = "bert", **config: Any
) -> PreTrainedModel:
    """Trained with the harness's own loop, and exported."""
    model, ctx = (
        small_model(family, data.kind, **config),
        small_context(folder, family, data.kind, steps=STEPS),
    )
    plugins = Stack(parse_stack(stack, data.kind, narrow_settings(stack)))
    torch.manual_seed(0)
    attached, changed = plugins.attach(model, data, ctx)
    assert changed is not None
    torch.manual_seed(7)
    train(attached, plugins, batches(changed), Schedule(steps=STEPS), ctx)
    return plugins.export(attached, ctx).eval()


def batches(data: Data) -> Iterator[Batch]:
    return (batch_of(data, step) for step in range(STEPS))


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        output = model(torch.tensor([[2, 9, 17, 33, 3], [2, 8, 8, 60, 3]]))
    return (
        output.logits
        if "logits" in output
        else torch.stack([output.start_logits, output.end_logits])
    )


def loop(handle: Any, data: Data) -> None:
    optimizer, scheduler = handle.optimizer(), handle.scheduler("linear", warmup=0.1)
    handle.model.train()
    torch.manual_seed(7)
    for batch in batches(data):
        handle.model(**batch).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("family", "kind"), [("bert", "classification"), ("llama", "causal_lm"), ("roberta", "span")]
)
@pytest.mark.parametrize("stack", STACKS)
def test_a_plain_loop_ends_with_the_weights_of_leantune_run(
    stack: str, family: str, kind: str, tmp_path: Path
) -> None:
    data = small_data(tmp_path, kind)
    handle = applied(small_model(family, kind), stack, data)
    loop(handle, data)
    exported = handle.export(tmp_path / "out")
    assert same(exported, by_the_harness(stack, data, tmp_path, family))
    assert not exported.training
    assert not exported._forward_hooks
    loaded = leantune.load(str(tmp_path / "out"))
    assert torch.equal(logits(loaded), logits(exported))
    assert logits(loaded).shape == logits(small_model(family, kind)).shape  # the whole vocabulary
    if "softlms" in stack:
        assert handle.details["budget"] == "met"
        assert handle.details["stage2_from"] < 1
    if stack == "safe":
        assert handle.details["checks"][-1]["frozen"]


class Ordered(Trainer):
    """The Trainer on batches in the order of `batches`."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # sized, as given


def trainer(handle: Any, data: Data, folder: Path, **words: Any) -> Trainer:
    steps, accumulate = words.pop("steps", STEPS), words.get("gradient_accumulation_steps", 1)
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=4 // accumulate,
        max_grad_norm=0.0,
        warmup_steps=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        **words,
    )
    return Ordered(
        handle.model,
        arguments,
        data_collator=data.collate,
        train_dataset=handle.data,
        callbacks=handle.callbacks(),
        optimizers=(handle.optimizer(), None),
    )


@pytest.mark.parametrize("kind", ["classification", "span"])
@pytest.mark.parametrize("stack", STACKS)
def test_the_trainer_ends_with_the_weights_of_leantune_run(
    stack: str, kind: str, tmp_path: Path
) -> None:
    data = small_data(tmp_path, kind)
    handle = applied(small_model("bert", kind, **STILL), stack, data)
    trainer(handle, data, tmp_path).train()
    assert handle.steps_taken == STEPS
    assert same(handle.export(tmp_path / "out"), by_the_harness(stack, data, tmp_path, **STILL))


@pytest.mark.parametrize("stack", STACKS)
def test_accelerate_ends_with_the_weights_of_leantune_run(stack: str, tmp_path: Path) -> None:
    data = small_data(tmp_path)
    handle = applied(small_model(**STILL), stack, data)
    accelerator = Accelerator(cpu=True)
    model, optimizer, scheduler, loader = accelerator.prepare(
        handle.model,
        handle.optimizer(),
        handle.scheduler(),
        DataLoader(data.train, 4, collate_fn=data.collate),
    )
    model.train()
    for _ in range(STEPS // len(loader) + 1):
        for batch in loader:
            if handle.steps_taken < STEPS:
                accelerator.backward(model(**batch).loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert same(handle.export(tmp_path / "out"), by_the_harness(stack, data, tmp_path, **STILL))


@pytest.mark.parametrize("kind", ["classification", "causal_lm", "span"])
def test_accumulated_batches_of_the_trainer_share_one_penalty(kind: str, tmp_path: Path) -> None:
    """The gradient of the thresholds, whose penalty dwarfs the task's loss, is that of the whole
    batch."""
    data, gradients = small_data(tmp_path, kind), []
    for accumulate in (1, 2):
        model = small_model("llama" if kind == "causal_lm" else "bert", kind, **STILL)
        words = {**narrow_settings("softlms"), "softlms.strength": 1e6}
        handle = applied(model, "softlms", data, steps=1, settings=words)
        seen: list[Tensor] = []
        handle.optimizer().register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.append(
                torch.stack([p.grad for p in optimizer.param_groups[0]["params"]])
            )
        )
        with pytest.raises(Unsupported, match="budget not met"):  # one step cannot
            trainer(handle, data, tmp_path, steps=1, gradient_accumulation_steps=accumulate).train()
        gradients.append(seen[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-2)
    assert gradients[0].abs().max() > 10


# ------------------------------------------------------------------ data


def test_data_come_as_a_dataset_a_list_or_splits_and_leave_as_they_came(tmp_path: Path) -> None:
    train_split = small_data(tmp_path).train
    other = Dataset.from_list([{"input_ids": [2, 63, 3], "labels": 1}])
    kept = []
    for data in (
        train_split,
        train_split.to_list(),
        DatasetDict({"train": train_split, "test": other}),
    ):
        handle = leantune.apply(small_model(), "vocab_pruning", data=data)
        assert handle.data is data
        kept.append(handle.details["vocabulary"]["kept"])
    used = {i for row in train_split["input_ids"] for i in row}
    assert kept[0] == kept[1] == len(used | {0})
    assert kept[2] == len(used | {0, 63})


def test_labels_may_be_called_label_or_labels(tmp_path: Path) -> None:
    split = small_data(tmp_path).train
    one, two = (
        leantune.apply(small_model(), "fwsvd", data=rows, steps=4).model
        for rows in (split, split.rename_column("label", "labels"))
    )
    assert same(one, two)
    other = split.remove_columns("label").add_column("label", [0] * len(split))
    assert not same(
        one, leantune.apply(small_model(), "fwsvd", data=other, steps=4).model
    )  # labels do weigh


def test_answers_may_be_start_and_end_positions(tmp_path: Path) -> None:
    split = small_data(tmp_path, "span").train
    words = split.remove_columns("label")
    one, two, other = (
        leantune.apply(small_model(kind="span"), "fwsvd", data=rows, steps=4).model
        for rows in (
            split,
            words.add_column("start_positions", [1] * len(split)).add_column(
                "end_positions", [2] * len(split)
            ),
            words.add_column("start_positions", [3] * len(split)).add_column(
                "end_positions", [3] * len(split)
            ),
        )
    )
    assert same(one, two)
    assert not same(one, other)


@pytest.mark.parametrize("stack", ["vocab_pruning", "safe", "fwsvd"])
def test_methods_that_look_at_data_ask_for_them(stack: str) -> None:
    with pytest.raises(BadInput, match=rf"'{stack}' looks at the data; give leantune.apply data="):
        leantune.apply(small_model(), stack, steps=4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"text": "no tokens"}], "tokenize it first"),
        (iter([{"input_ids": [1]}]), "read once only"),
        ({"validation": [{"input_ids": [1]}]}, "give train"),
        ({"train": [{"input_ids": [1]}], "dev": [{"input_ids": [1]}]}, "splits train, dev"),
    ],
)
def test_data_that_cannot_be_used_are_refused(data: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        leantune.apply(small_model(), "vocab_pruning", data=data)


# ------------------------------------------------------------------ what cannot be forgotten


def test_words_that_are_wrong_are_refused() -> None:
    with pytest.raises(BadInput, match="takes a transformers model, not Linear"):
        leantune.apply(torch.nn.Linear(2, 2), "lora")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(BadInput, match="unknown method 'loora'"):
        leantune.apply(small_model(), "loora")
    with pytest.raises(BadInput, match="has no setting 'rang'"):
        leantune.apply(small_model(), "lora", settings={"lora.rang": 4})
    with pytest.raises(BadInput, match="control without a model"):
        leantune.apply(small_model(), "tfidf")
    with pytest.raises(BadInput, match="trains nothing"):
        leantune.apply(small_model(), "train_nothing")
    with pytest.raises(BadInput, match="give steps="):
        leantune.apply(small_model(), "softlms")
    with pytest.raises(BadInput, match="1 or more"):
        leantune.apply(small_model(), "lora", steps=0)
    with pytest.raises(
        Unsupported,
        match="supports tasks causal_lm, masked_lm, generation, seq2seq_lm; this is classification",
    ):
        leantune.apply(small_model(), "zero_shot")
    with pytest.raises(Unsupported, match="BertModel is made for no kind of task"):
        leantune.apply(small_model().base_model, "lora")


def test_a_family_without_a_row_takes_methods_too() -> None:
    config = transformers.ElectraConfig(**ARCHITECTURES["bert"], embedding_size=16)
    model = transformers.ElectraForSequenceClassification(config)
    adapted = leantune.apply(copy.deepcopy(model), "lora").model
    found = {name for name, _ in adapted.named_modules() if name.endswith("lora_A")}
    assert {name.split(".")[-2] for name in found} == {"query", "value"}
    handle = leantune.apply(model, "came")
    assert type(handle.optimizer()).__name__ == "CAME"
    assert handle.optimizer() is handle.optimizer()


def test_the_head_has_its_own_rate_and_the_caller_keeps_the_generator(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = transformers.BertForSequenceClassification(small_model().config)  # no head is marked
    after_model = torch.get_rng_state()
    handle = leantune.apply(model, "lora", head_lr=0.25)
    assert torch.equal(torch.get_rng_state(), after_model)
    assert not torch.equal(before, after_model)
    assert handle.optimizer().param_groups[-1]["lr"] == 0.25
    one, two, other = (leantune.apply(small_model(), "lora", seed=seed).model for seed in (0, 0, 1))
    assert same(one, two)
    assert not same(one, other)


def test_hooks_of_every_step_are_called_once_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    data = small_data(tmp_path)
    handle = leantune.apply(small_model(), "sleep", steps=STEPS, settings={"sleep.seconds": 0.5})
    loop(handle, data)
    assert slept == [0.5] * STEPS == [0.5] * handle.steps_taken


def test_a_schedule_of_the_callers_own_is_refused_where_it_could_not_follow(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    handle = applied(small_model(), "softlms", data)
    optimizer = handle.optimizer()
    torch.optim.lr_scheduler.StepLR(optimizer, 5)
    handle.model(**batch_of(data)).loss.backward()
    with pytest.raises(BadInput, match=r"take it from handle\.scheduler\(\)"):
        optimizer.step()
    plain = applied(small_model(), "lora", data, steps=None)
    torch.optim.lr_scheduler.StepLR(plain.optimizer(), 5)
    plain.model(**batch_of(data)).loss.backward()
    plain.optimizer().step()
    with pytest.raises(BadInput, match="a schedule runs over all steps"):
        plain.scheduler()
    with pytest.raises(BadInput, match="does not follow from the step alone"):
        applied(small_model(), "lora", data).scheduler("reduce_lr_on_plateau")


def test_a_penalty_without_a_loss_to_join_is_refused_in_training_only(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    handle = applied(small_model(), "softlms", data)
    inputs = {k: v for k, v in batch_of(data).items() if k != "labels"}
    handle.model.eval()
    handle.model(**inputs)
    handle.model.train()
    with torch.no_grad():
        handle.model(**inputs)
    with pytest.raises(BadInput, match="'softlms' adds a penalty to the model's loss; pass labels"):
        handle.model(**inputs)


def test_the_trainer_is_told_what_it_does_otherwise(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    handle = applied(small_model(), "lora", data)
    with pytest.raises(
        BadInput, match=r"the Trainer takes 3 steps and leantune\.apply was told 20"
    ):
        trainer(handle, data, tmp_path, steps=3).train()
    other = applied(small_model(), "lora", data)
    wrong = trainer(other, data, tmp_path)
    wrong.optimizer = None
    with pytest.raises(BadInput, match="made an optimizer of its own"):
        wrong.train()


def test_export_ends_training_and_may_be_asked_twice(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    handle = applied(small_model(), "vocab_pruning+svfit", data, tokenizer=data.tokenizer)
    loop(handle, data)
    one, two = handle.export(tmp_path / "one"), handle.export(tmp_path / "two")
    assert one is two
    assert torch.equal(logits(leantune.load(str(tmp_path / "two"))), logits(one))
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "one")("w5 w7")["input_ids"]
    assert ids == [2, 10, 12, 3]


def test_a_name_that_leantune_has_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        # wrong on purpose
        leantune.nonsense  # type: ignore[attr-defined]  # noqa: B018
