"""Predictions: what they say, what they leave alone, and the search for what fits."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import small_model
from torch._subclasses.fake_tensor import FakeTensorMode

from leantune.api import Context
from leantune.cli import parser
from leantune.errors import BadInput, Unsupported
from leantune.files import record
from leantune.files.record import BYTE_KINDS
from leantune.prediction import cards, metered_step, one
from leantune.prediction.ask import Ask
from leantune.prediction.metered_step import Probe
from leantune.results.load import is_stale
from leantune.spec import plugins
from leantune.spec.stacks import parse_stack
from leantune.training.loop import Schedule
from leantune.training.stack import Stack

GIB = 2**30
MIB = 2**20


def probe_for(
    method: str, shape: tuple[int, int] = (4, 16), kind: str = "classification", dtype: str = "fp32"
) -> Probe:
    stack = Stack(parse_stack(method, kind))
    ctx = Context(
        kind=kind,
        family="bert",
        steps=8,
        head_lr=1e-3,
        seed=0,
        device="cpu",
        batch=shape[0],
        length=shape[1],
        cache=Path("."),
        probe=True,
    )
    return Probe(stack, Schedule(steps=8), ctx, shape)


def attached(probe: Probe, **config: int) -> torch.nn.Module:
    model = small_model("bert", "classification", **config)
    return probe.stack.attach(model, None, probe.ctx)[0]


@pytest.mark.parametrize("method", ["full", "lora", "bitfit", "svfit", "safe", "head+came"])
def test_a_probe_leaves_weights_states_methods_and_generators_alone(method: str) -> None:
    probe = probe_for(method)
    model = attached(probe)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = probe.stack.optimizer(probe.stack.parameter_groups(model, probe.ctx), probe.ctx)
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    methods = {slot: set(vars(m)) for slot, m in probe.stack.methods.items()}
    generators = torch.get_rng_state(), random.getstate()
    training = model.training
    reading = probe(model)
    assert reading["peak_bytes"] > 0
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert model.training == training
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), before[0].values(), strict=True)
    )
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in trained)
    states = zip(optimizer.state_dict()["state"].values(), before[1]["state"].values(), strict=True)
    for now, then in states:
        assert all(torch.equal(torch.as_tensor(now[k]), torch.as_tensor(then[k])) for k in then)
    assert {slot: set(vars(m)) for slot, m in probe.stack.methods.items()} == methods


def test_a_probe_reads_the_same_twice_and_from_the_meta_device() -> None:
    model = attached(probe_for("lora"))
    assert (
        probe_for("lora")(model) == probe_for("lora")(model) == probe_for("lora")(model.to("meta"))
    )


def test_a_structure_is_measured_once_and_another_again() -> None:
    probe = probe_for("full")
    model = attached(probe)
    first = probe(model)
    assert probe(model) is first
    for p in model.bert.encoder.layer[:2].parameters():
        p.requires_grad_(False)
    frozen = probe(model)
    assert frozen["peak_bytes"] < first["peak_bytes"]
    assert probe_for("full")(model) == frozen


@pytest.mark.parametrize("method", ["full", "lora", "came", "adafactor", "sm3"])
def test_the_steady_step_says_what_many_steps_say(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = probe_for(method)(attached(probe_for(method)))
    monkeypatch.setattr(metered_step, "STEPS", 6)
    monkeypatch.setattr(metered_step.MeterWatch, "step", _count_only)
    long = probe_for(method)(attached(probe_for(method)))
    assert long["events"] > 2 * early["events"]  # six steps against two
    for number in (
        "peak_bytes",
        "by_kind",
        "by_phase",
        "reserved_bytes",
        "allocated_bytes",
        "flops_per_step",
    ):
        assert early[number] == long[number], number


@pytest.mark.parametrize("method", ["full", "lora", "svfit+came", "safe"])
def test_the_quick_cache_changes_no_event(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = probe_for(method)(attached(probe_for(method)))
    monkeypatch.setattr(
        metered_step, "QuickFakeMode", lambda: FakeTensorMode(allow_non_fake_inputs=True)
    )
    monkeypatch.setattr(FakeTensorMode, "cache", {})
    assert probe_for(method)(attached(probe_for(method))) == quick


def _count_only(self: metered_step.MeterWatch, step: int, seconds: float, loss: float) -> None:
    self.steps = step


def test_an_optimizer_that_grows_later_is_followed_to_the_third_step() -> None:
    class Late(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                count = self.state[p].get("count", 0) + 1
                self.state[p] = {
                    "count": count,
                    **({"late": torch.zeros_like(p)} if count > 1 else {}),
                }

    probe = probe_for("full")
    # stands in for a method that is added late
    probe.stack.methods["adaptation"].optimizer = lambda groups, ctx: Late(groups)  # type: ignore[method-assign]
    model = attached(probe)
    trained = sum(
        p.nbytes for g in probe.stack.parameter_groups(model, probe.ctx)[:1] for p in g["params"]
    )
    assert probe(model)["by_kind"]["optimizer"] == trained


def test_a_probe_counts_states_and_operations_of_one_step() -> None:
    shape, width, layers, vocabulary = (4, 16), 16, 4, 64
    probe = probe_for("full", shape)
    model = attached(probe)
    reading = probe(model)
    assert reading["optimizer_state_bytes"] == 2 * 4 * sum(p.numel() for p in model.parameters())
    tokens = math.prod(shape)
    per_layer = (
        2 * tokens * (4 * width * width + 2 * width * 32) + 2 * 2 * tokens * shape[1] * width
    )
    forward = layers * per_layer + 2 * shape[0] * (width * width + width * 2)
    assert (
        forward * 2.9 < reading["flops_per_step"] < forward * 3.5
    )  # attention's backward pass is 2.5 times its forward
    assert vocabulary == model.config.vocab_size


def test_autocast_and_accumulation_change_the_activations_only() -> None:
    readings = {}
    for name, schedule in {
        "fp32": Schedule(steps=8),
        "bf16": Schedule(steps=8, dtype="bf16"),
        "accumulate": Schedule(steps=8, accumulate=2),
    }.items():
        probe = probe_for("full", (16, 32))
        probe = Probe(probe.stack, schedule, probe.ctx, probe.shape)
        readings[name] = probe(attached(probe))
    kinds = {name: reading["by_kind"] for name, reading in readings.items()}
    assert kinds["bf16"]["optimizer"] == kinds["fp32"]["optimizer"]
    assert kinds["bf16"]["activations"] < kinds["fp32"]["activations"]
    assert kinds["accumulate"]["activations"] < 0.7 * kinds["fp32"]["activations"]


def test_a_forward_pass_needs_less_than_a_step() -> None:
    probe = probe_for("full")
    model = attached(probe)
    forward = probe.forward_only(model)
    assert forward["peak_bytes"] < probe(model)["peak_bytes"]
    assert forward["by_kind"]["optimizer"] == forward["by_kind"]["gradients"] == 0


class NeedsValues(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, **_: torch.Tensor) -> object:
        return input_ids.nonzero()


def test_a_model_that_needs_values_is_unsupported_by_name() -> None:
    with pytest.raises(
        Unsupported, match=r"'lora' does not run on tensors without values: .*nonzero"
    ):
        probe_for("lora").forward_only(NeedsValues())


def test_names_to_a_prediction() -> None:
    result = one.predict(Ask("minilm-l6", "lora", batch=2, length=16))
    assert list(result)[:12] == [
        "model",
        "method",
        "point",
        "batch",
        "seq",
        "dtype",
        "path",
        "peak_bytes",
        "peak_phase",
        "by_kind",
        "parameters",
        "optimizer_state_bytes",
    ]
    assert set(result["by_kind"]) == set(BYTE_KINDS)
    assert (
        sum(result["by_kind"].values())
        == result["peak_bytes"]
        <= result["allocated_bytes"]
        <= result["reserved_bytes"]
    )
    assert result["parameters"]["trainable"] == 6 * 2 * 8 * (
        384 + 384
    )  # 6 layers, query and value, r 8
    assert result["parameters"]["head"] == 384 * 384 + 384 + 2 * 384 + 2  # pooler and classifier
    assert result["fits"]["8GB"]
    assert json.dumps(result)
    half = one.predict(Ask("minilm-l6", "lora", batch=2, length=16, dtype="bf16"))
    assert half["optimizer_state_bytes"] * 2 == result["optimizer_state_bytes"]
    assert "LoRA" not in one.describe(result)
    assert f"{result['peak_bytes'] / MIB:.1f} MiB" in one.describe(result)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "nope", "--method", "lora", "--batch", "1", "--seq", "8"],
            "unknown model 'nope'",
        ),
        (
            ["--model", "minilm-l6", "--method", "nope", "--batch", "1", "--seq", "8"],
            "unknown method 'nope'",
        ),
        (["--model", "minilm-l6", "--method", "lora", "--batch", "0", "--seq", "8"], "batch 0"),
        (["--model", "minilm-l6", "--method", "lora", "--batch", "1", "--seq", "0"], "length 0"),
        (
            ["--model", "minilm-l6", "--method", "lora", "--batch", "1", "--seq", "513"],
            "512 positions",
        ),
        (
            ["--model", "bert-base", "--method", "lora", "--batch", "1", "--seq", "513"],
            "512 positions",
        ),
        (
            ["--model", "gpt2", "--method", "full", "--batch", "1", "--seq", "1025"],
            "1024 positions",
        ),
        (
            ["--model", "roberta-base", "--method", "full", "--batch", "1", "--seq", "513"],
            "512 positions",
        ),
        (["--model", "minilm-l6", "--method", "lora", "--batch", "1"], "--seq"),
        (
            ["--model", "minilm-l6", "--method", "tfidf", "--batch", "1", "--seq", "8"],
            "nothing to predict",
        ),
        (
            [
                "--model",
                "minilm-l6",
                "--method",
                "lora",
                "--batch",
                "1",
                "--seq",
                "8",
                "--head",
                "causal-lm",
            ],
            "causal-lm",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parser.main(["predict", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def one_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model plugin that predicts fast."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "one-layer.yaml").write_text(
        "{name: one-layer, summary: A GPT-2 of one layer., family: gpt2, source: {none: true}, "
        "kinds: [causal_lm], traits: [from_scratch], parameters: 1, "
        "architecture: {model_type: gpt2, vocab_size: 512, n_positions: 64, n_embd: 128, "
        "n_layer: 1, n_head: 4, bos_token_id: 0, eos_token_id: 0, pad_token_id: 0}}"
    )
    monkeypatch.setenv("LEANTUNE_PLUGINS", str(tmp_path))
    return "one-layer"


def test_the_largest_batch_stays_within_the_budget_and_the_next_does_not(one_layer: str) -> None:
    def reserved(batch: int) -> int:
        return int(one.predict(Ask(one_layer, "full", batch=batch, length=32))["reserved_bytes"])

    budget = 24 * MIB
    found = one.largest_shapes(budget, Ask(one_layer, "full", length=32))
    assert found.keys() == {"budget_bytes", "largest_batch"}
    assert reserved(found["largest_batch"]) <= budget < reserved(found["largest_batch"] + 1)


def test_the_longest_sequence_ends_at_the_models_positions(one_layer: str) -> None:
    found = one.largest_shapes(8 * GIB, Ask(one_layer, "full", batch=1))
    assert found == {"budget_bytes": 8 * GIB, "longest_seq": 64}


def test_a_budget_below_the_smallest_shape_is_refused() -> None:
    with pytest.raises(BadInput, match=r"with length 1 and batch 2 reserves .* too small"):
        one.largest_shapes(10 * MIB, Ask("minilm-l6", "head", batch=2))


@given(
    st.integers(1, 10**9),
    st.integers(1, 10**7),
    st.integers(0, 3),
    st.integers(10**6, 10**11),
    st.one_of(st.none(), st.integers(1, 5000)),
)
def test_largest_finds_the_edge_in_few_steps(
    fixed: int, each: int, square: int, budget: int, limit: int | None
) -> None:
    calls: list[int] = []

    def size(n: int) -> int:
        calls.append(n)
        return fixed + each * n + square * n * n

    found = one.largest(size, budget, limit)
    assert len(calls) == len(set(calls)) <= 45
    if found is None:
        assert size(1) > budget
        return
    assert size(found) <= budget
    assert found == limit or size(found + 1) > budget


def test_largest_takes_few_predictions_on_segments_of_20_mib() -> None:
    calls: list[int] = []

    def size(n: int) -> int:
        calls.append(n)
        return 400 * MIB + -(-7 * n // 20) * 20 * MIB

    assert one.largest(size, 8 * GIB) == 1111
    assert len(calls) <= 12


def test_largest_looks_past_a_dip() -> None:
    sizes = {1: 10, 2: 20, 3: 31, 4: 29, 5: 35}
    assert one.largest(lambda n: sizes.get(n, 10 * n), 30) == 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * GIB),
        ("512MiB", 512 * MIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("8GB", int(cards.USABLE_GIB["8GB"] * GIB) - GIB),  # a card's name
        ("9GB", 9 * 10**9),
        ("1000", 1000),
    ],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert cards.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0GiB", "-1GiB", "8 gigs", "GiB", "nan"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="no amount of memory"):
        cards.parse_bytes(text)


def test_a_card_fits_what_leaves_room_for_the_context() -> None:
    room = int(14.56 * GIB) - GIB
    assert cards.fits(room)["T4"]
    assert not cards.fits(room + 1)["T4"]
    assert list(cards.USABLE_GIB.values()) == sorted(cards.USABLE_GIB.values())


def test_the_published_peak_of_a_task_is_predicted_again() -> None:
    files = (plugins.roots()[0] / "results" / "records").glob("*/minilm-l6/sentiment/full/0.json")
    published = [r for r in map(record.read_record, files) if not is_stale(r)]
    predicted = one.predict(Ask("minilm-l6", "full", task="sentiment"))
    assert predicted["dtype"] == "bf16-autocast"
    assert {r["memory"]["peak_bytes"] for r in published} == {predicted["peak_bytes"]}
