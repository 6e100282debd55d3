"""The methods of the peft library: counts, what learns, what a step keeps, what is exported."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from small import batch_of, method, run, small_context, small_data, small_model, stack, trainable
from test_baselines import on_meta

from leantune.api import BadInput, Unsupported, is_head
from leantune.models.load import enable_checkpointing
from leantune.prediction import one
from leantune.prediction.ask import Ask
from leantune.spec import plugins
from leantune.spec.stacks import parse_stack

NAMES = ["peft", "dora", "rslora", "pissa", "olora", "vera", "ia3", "velora", "lora_fa", "adalora"]
FAMILIES = ("bert", "llama", "gpt2")
PAIRS = [
    (name, family)
    for name in NAMES
    for family in FAMILIES
    if (supports := plugins.get("methods", name).spec.supports) is None
    or (family, supports.needs) != ("gpt2", ["plain_linears"])
]
DECOMPOSED = ("pissa", "olora")  # the base weights change when the factors are taken out of them


def steps(tmp_path: Path, name: str, family: str = "bert", checkpointing: bool = False) -> tuple:
    kind = "classification" if family == "bert" else "causal_lm"
    data, ctx, model = (
        small_data(tmp_path, kind),
        small_context(tmp_path, family, kind),
        small_model(family, kind),
    )
    if checkpointing:
        enable_checkpointing(model)
    used = stack(name, kind)
    run(model, used, data, ctx)
    return data, ctx, model, used


def test_olora_alone_leaves_a_family_out() -> None:
    assert {
        (name, family) for name in NAMES for family in FAMILIES if (name, family) not in PAIRS
    } == {("olora", "gpt2")}


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_the_export_is_a_plain_model_that_computes_the_same(
    tmp_path: Path, name: str, family: str
) -> None:
    data, ctx, model, used = steps(tmp_path, name, family)
    plain = small_model(family, data.kind)
    trained = model.eval()(**batch_of(data)).logits
    exported = used.export(model, ctx)
    assert [type(m) for m in exported.modules()] == [type(m) for m in plain.modules()]
    exported.save_pretrained(tmp_path / "out")
    loaded = type(plain).from_pretrained(tmp_path / "out")
    assert torch.allclose(loaded(**batch_of(data)).logits, trained, atol=1e-5)
    assert not torch.allclose(plain.eval()(**batch_of(data)).logits, trained, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_the_base_model(tmp_path: Path, name: str) -> None:
    data, model = small_data(tmp_path), small_model().eval()
    before = model(**batch_of(data)).logits
    method(name).attach(model, data, small_context(tmp_path))
    assert torch.allclose(model.eval()(**batch_of(data)).logits, before, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_its_own_parameters_and_the_head_learn(tmp_path: Path, name: str) -> None:
    model = small_model()
    method(name).attach(model, small_data(tmp_path), small_context(tmp_path))
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(
        any(part in n for part in ("lora_", "vera_lambda", "ia3_l"))
        or is_head(model.get_parameter(n))
        for n in learns
    )
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= learns


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_memory_and_not_the_steps(tmp_path: Path, name: str) -> None:
    plain, saving = (steps(tmp_path, name, checkpointing=c)[2] for c in (False, True))
    assert all(
        torch.allclose(p, q, atol=1e-6)
        for p, q in zip(plain.parameters(), saving.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("model", "stack_name", "count"),
    [
        ("roberta-base", "vera", 43_008),
        ("roberta-large", "vera@r256", 61_440),
        ("bert-base", "dora", 313_344),
        ("bert-base", "peft", 294_912),
        ("roberta-base", "ia3", 55_296),
        ("bert-base", "lora_fa", 147_456),
        ("bert-base", "pissa", 294_912),
        ("bert-base", "adalora", 442_656),
        ("deberta-v3-base", "adalora@all", 1_991_520),
    ],
)
def test_counts(tmp_path: Path, model: str, stack_name: str, count: int) -> None:
    built = on_meta(model)
    family = plugins.get("models", model).spec.family
    with torch.device("meta"):
        method(stack_name).attach(built, None, small_context(tmp_path, family, probe=True))
    assert trainable(built) == count
    assert all(
        t.is_meta for t in built.state_dict().values()
    )  # so that it is predicted at any size


def test_the_default_tuner_is_lora(tmp_path: Path) -> None:
    assert all(
        torch.equal(p, q)
        for p, q in zip(
            steps(tmp_path, "peft")[2].parameters(),
            steps(tmp_path, "lora")[2].parameters(),
            strict=True,
        )
    )


def test_settings_reach_the_tuner(tmp_path: Path) -> None:
    parts = parse_stack("dora", "classification", {"dora.rank": 4})
    assert parts[0].params["config"] == {"use_dora": True}
    model = small_model()
    method("dora", rank=4).attach(model, None, small_context(tmp_path))
    layer = model.bert.encoder.layer[0].attention.self.query
    assert (layer.r["default"], layer.use_dora["default"], layer.scaling["default"]) == (
        4,
        True,
        4.0,
    )
    model = small_model()
    method("ia3").attach(model, None, small_context(tmp_path))
    found = {
        n.rpartition(".ia3_l")[0]
        for n, p in model.named_parameters()
        if ".ia3_l" in n and ".layer.0." in n
    }
    assert {n.partition(".layer.0.")[2] for n in found} == {
        "attention.self.key",
        "attention.self.value",
        "output.dense",
    }


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"tuner": "Lora"}, BadInput, "no config class of peft"),
        ({"tuner": "IA3Config"}, BadInput, "has no field"),
        ({"config": {"velora_config": {"num_groups": 0}}}, BadInput, "refuses"),
        ({"targets": "some"}, BadInput, "query_value, all"),
        ({"tuner": "PromptTuningConfig"}, Unsupported, "adds tokens to the input"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, settings: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        method("peft", **settings).attach(small_model(), None, small_context(tmp_path))


def test_a_tuner_that_does_not_know_a_layer_is_unsupported(tmp_path: Path) -> None:
    model, ctx = small_model("gpt2", "causal_lm"), small_context(tmp_path, "gpt2", "causal_lm")
    with pytest.raises(Unsupported, match="does not fit family 'gpt2'"):
        method("peft@hra", "causal_lm").attach(model, None, ctx)


@pytest.mark.process
def test_activations_that_are_not_kept() -> None:
    """LoRA-FA keeps r numbers a token in place of A's input, VeLoRA one a group of features."""
    kept = {
        n: one.predict(Ask("bert-base", n, batch=8, length=128))
        for n in ("lora", "lora_fa", "velora")
    }
    activations = {n: r["by_kind"]["activations"] for n, r in kept.items()}
    assert activations["lora_fa"] < activations["lora"]
    assert activations["velora"] < activations["lora"]
    assert kept["lora_fa"]["optimizer_state_bytes"] < kept["lora"]["optimizer_state_bytes"]


# ------------------------------------------------------------------ AdaLoRA


def ranks(model: torch.nn.Module) -> list[int]:
    return [int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n]


def test_ranks_move_within_the_budget(tmp_path: Path) -> None:
    data, ctx, model = small_data(tmp_path), small_context(tmp_path, steps=20), small_model()
    used = stack("adalora", rank=4, start_rank=6)
    run(model, used, data, ctx)
    found = ranks(model)
    assert sum(found) == 4 * 8  # query and value of four layers
    assert len(set(found)) > 1
    assert max(found) <= 6
    used.export(model, ctx)
    assert list(ctx.details["ranks"].values()) == found


def test_before_the_warm_up_ends_ranks_stay(tmp_path: Path) -> None:
    data, ctx, model = small_data(tmp_path), small_context(tmp_path, steps=10), small_model()
    used = stack("adalora", start_rank=12, warm_up=0.9, last=0.0)
    torch.manual_seed(0)
    used.attach(model, data, ctx)
    for step in range(1, 4):
        model(**batch_of(data)).loss.backward()
        with torch.no_grad():
            for n, p in model.named_parameters():
                if "lora_E" in n:
                    p.fill_(1.0)
        used.on_step(model, step, ctx)
    assert set(ranks(model)) == {12}


def test_the_term_for_orthogonality(tmp_path: Path) -> None:
    model, ctx = small_model(), small_context(tmp_path)
    plugin = method("adalora")
    plugin.attach(model, None, ctx)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_A" in n or "lora_B" in n:
                torch.nn.init.orthogonal_(p)
    assert plugin.penalty(model).item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_A" in n:
                p.mul_(2)  # Q Q^T is 4 I, so |3 I| = 3 sqrt(12) in half of the terms
    assert plugin.penalty(model).item() == pytest.approx(0.5 * 3 * 12**0.5 / 2, rel=1e-4)


def test_ranks_only_fall(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ranks only fall"):
        method("adalora", rank=12).attach(small_model(), None, small_context(tmp_path))


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
