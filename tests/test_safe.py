"""SAFE: the exact checks of the paper's parts, the run as a whole, and each trap."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import batch_of, method, run, small_context, small_data, small_model, stack, trainable
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

import leantune
from leantune.api import BadInput, Change, Unsupported
from leantune.modules import adapters
from leantune.training.stack import load_method

load_method("safe")  # makes the plugin's own modules importable
from leantune_plugins.safe.cka import cka  # noqa: E402  the path is set above
from leantune_plugins.safe.method import freeze, importances  # noqa: E402  the path is set above


def probe_of(data: Any) -> dict[str, Tensor]:
    return {k: v for k, v in batch_of(data, size=16).items() if k != "labels"}


def stir(model: nn.Module) -> None:
    """Adapters as if trained: the first three change their representation a little, the others
    much."""
    torch.manual_seed(3)
    for i, adapter in enumerate(adapters(model)):
        for p in adapter.own_parameters():
            nn.init.normal_(p, std=0.03 if i < 3 else 0.3)


# ------------------------------------------------------------------ schedule


def test_the_threshold_is_cubic_between_warm_up_and_end() -> None:
    plugin = method("safe", tau=0.4, warm_up=0.2, end=0.8)
    assert [plugin.threshold(t) for t in (0.0, 0.1, 0.2)] == [0, 0, 0]
    assert plugin.threshold(0.5) == pytest.approx(0.4 * (1 - 0.5**3))
    assert plugin.threshold(0.8) == plugin.threshold(1.0) == 0.4


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_threshold_is_monotone(first: float, second: float) -> None:
    plugin = method("safe", tau=0.4)
    low, high = sorted((first, second))
    assert 0 <= plugin.threshold(low) <= plugin.threshold(high) <= 0.4


# ------------------------------------------------------------------ freezing


def three_steps_and_gradients(
    tmp_path: Path,
) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Tensor]]:
    """A model with adapters, its optimizer after three steps, the gradients of a fourth batch."""
    data, ctx = small_data(tmp_path), small_context(tmp_path)
    model, plugin = (
        small_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        method("safe"),
    )
    plugin.attach(model, data, ctx)
    optimizer = plugin.optimizer(plugin.parameter_groups(model, ctx), ctx)
    for step in range(3):
        optimizer.zero_grad()
        model(**batch_of(data, step)).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    model(**batch_of(data, 3)).loss.backward()
    return (
        model,
        optimizer,
        {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
    )


def test_a_freeze_leaves_the_gradients_of_the_others_unchanged(tmp_path: Path) -> None:
    model, optimizer, before = three_steps_and_gradients(tmp_path)
    freeze([adapters(model)[i] for i in (0, 1, 4)], optimizer)
    optimizer.zero_grad()
    model(**batch_of(small_data(tmp_path), 3)).loss.backward()
    after = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(before) - len(after) == 3 * 4
    assert all(torch.equal(before[n], g) for n, g in after.items())


def test_optimizer_state_is_twice_the_trainable_numbers(tmp_path: Path) -> None:
    model, optimizer, _ = three_steps_and_gradients(tmp_path)

    def held() -> int:
        return sum(v.numel() for s in optimizer.state.values() for v in s.values() if v.dim() > 0)

    assert held() == 2 * trainable(model, head=True)
    freeze(adapters(model)[:5], optimizer)
    listed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert listed == {id(p) for p in model.parameters() if p.requires_grad}
    assert held() == 2 * trainable(model, head=True)
    optimizer.step()
    assert held() == 2 * trainable(model, head=True)
    freeze(adapters(model), optimizer)  # an empty group is no error
    optimizer.step()
    assert trainable(model) == 0


@pytest.mark.parametrize("stale", ["left", "zeroed"])
def test_a_frozen_adapter_does_not_move_by_a_stale_gradient(tmp_path: Path, stale: str) -> None:
    """With requires_grad alone it does: AdamW steps wherever a gradient exists, zeros included."""
    for properly in (False, True):
        model, optimizer, _ = three_steps_and_gradients(tmp_path)
        adapter = adapters(model)[0]
        if properly:
            freeze([adapter], optimizer)
        else:
            for p in adapter.own_parameters():
                p.requires_grad_(False)
        before = adapter.down.weight.clone()
        if stale == "zeroed":
            optimizer.zero_grad(set_to_none=False)
        optimizer.step()
        assert torch.equal(adapter.down.weight, before) is properly


def test_frozen_adapters_are_bit_identical_to_the_end(tmp_path: Path) -> None:
    data, ctx = small_data(tmp_path), small_context(tmp_path, steps=20)
    model, safe = small_model(), stack("safe", tau=3e-5, lr=1e-2)
    plugin = safe.methods["adaptation"]
    seen: dict[int, list[Tensor]] = {}
    original = plugin.on_progress

    def watch(model: nn.Module, optimizer: Any, progress: float, ctx: Any) -> Change | None:
        change = original(model, optimizer, progress, ctx)
        for i in ctx.details["checks"][-1]["frozen"] if "checks" in ctx.details else []:
            seen.setdefault(i, [p.clone() for p in adapters(model)[i].own_parameters()])
        return change

    plugin.on_progress = watch  # type: ignore[method-assign]  # watched
    run(model, safe, data, ctx)
    assert 0 < len(seen) < 8
    for i, kept in seen.items():
        assert all(
            torch.equal(p, k)
            for p, k in zip(adapters(model)[i].own_parameters(), kept, strict=True)
        )


def test_with_tau_zero_it_is_adapter_tuning_bit_for_bit(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    results = []
    for name in ("adapter", "safe@plain"):
        model, ctx = (
            small_model(),
            small_context(tmp_path),
        )  # dropout is on: the RNG must be undisturbed too
        run(model, stack(name), data, ctx)
        results.append((model.state_dict(), torch.get_rng_state(), ctx.details))
    (first, first_rng, _), (second, second_rng, details) = results
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(first_rng, second_rng)
    assert [c["frozen"] for c in details["checks"]] == [[]] * 7


def test_frozen_adapters_never_thaw_and_the_checks_are_reported(tmp_path: Path) -> None:
    data, ctx = small_data(tmp_path), small_context(tmp_path)
    run(small_model(), stack("safe", tau=0.5), data, ctx)
    checks = ctx.details["checks"]
    assert [c["progress"] for c in checks] == [
        k / 10 for k in range(3, 10)
    ]  # after the warm-up, before the end
    assert all(set(a["frozen"]) <= set(b["frozen"]) for a, b in itertools.pairwise(checks))
    assert checks[-1]["frozen"] == list(range(8))
    assert checks[-1]["first_trainable_layer"] is None
    assert checks[-1]["importance"] == [None] * 8


def test_a_check_freezes_exactly_what_is_under_the_threshold(tmp_path: Path) -> None:
    data, ctx = small_data(tmp_path), small_context(tmp_path)
    model, plugin = small_model(), method("safe")
    plugin.attach(model, data, ctx)
    stir(model)
    values = importances(model, plugin.probe)
    highest, lowest = max(values[i] for i in range(3)), min(values[i] for i in range(3, 8))
    assert 0 < highest < lowest
    plugin.params["tau"] = (highest + lowest) / 2
    optimizer = plugin.optimizer(plugin.parameter_groups(model, ctx), ctx)
    assert plugin.on_progress(model, optimizer, 0.2, ctx) is None
    assert plugin.on_progress(model, optimizer, 0.8, ctx) == Change(model)
    check = ctx.details["checks"][-1]
    assert check["frozen"] == [0, 1, 2]
    assert (
        check["first_trainable_layer"] == 1
    )  # the attention adapter of layer 1 is frozen, the other is not
    assert check["importance"] == list(values.values())
    assert plugin.on_progress(model, optimizer, 0.9, ctx) is None  # nothing new
    assert ctx.details["checks"][-1]["importance"] == [None] * 3 + list(values.values())[3:]


def test_a_language_model_keeps_its_most_important_adapter(tmp_path: Path) -> None:
    data, ctx = small_data(tmp_path, "causal_lm"), small_context(tmp_path, "llama", "causal_lm")
    model = small_model("llama", "causal_lm")
    run(model, stack("safe", "causal_lm", tau=0.9), data, ctx)
    last = ctx.details["checks"][-1]
    assert len(last["frozen"]) == 7
    assert trainable(model) > 0


# ------------------------------------------------------------------ the probe


def test_importance_is_one_minus_cka_of_the_adapters_output_and_input(tmp_path: Path) -> None:
    data, model = small_data(tmp_path), small_model()
    method("safe").attach(model, data, small_context(tmp_path))
    stir(model)
    probe, before, after = probe_of(data), {}, {}
    mask = probe["attention_mask"].bool()
    for i, a in enumerate(adapters(model)):
        a.base.register_forward_hook(lambda _m, _i, out, i=i: before.__setitem__(i, out[mask]))
        a.register_forward_hook(lambda _m, _i, out, i=i: after.__setitem__(i, out[mask]))
    values = importances(model, probe)
    with torch.no_grad():
        model.eval()(**probe)
    assert values == pytest.approx({i: 1 - cka(after[i], before[i]) for i in range(8)}, abs=1e-6)
    assert len(before[0]) == int(mask.sum()) < mask.numel()  # padding is left out
    assert max(values.values()) > 0.1


def test_a_bf16_probe_sees_what_bf16_training_sees_and_compares_it_in_fp32(tmp_path: Path) -> None:
    data, ctx = small_data(tmp_path), small_context(tmp_path, dtype="bf16")
    model, plugin = small_model(), method("safe", tau=0.0)
    plugin.attach(model, data, ctx)
    stir(model)
    before, after, seen = {}, {}, set()
    mask = plugin.probe["attention_mask"].bool()
    hooks = []
    for i, a in enumerate(adapters(model)):
        hooks.append(
            a.base.register_forward_hook(lambda _m, _i, out, i=i: before.__setitem__(i, out[mask]))
        )
        hooks.append(
            a.register_forward_hook(lambda _m, _i, out, i=i: after.__setitem__(i, out[mask]))
        )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.eval()(**plugin.probe)
    for hook in hooks:
        hook.remove()
    adapters(model)[0].base.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    optimizer = plugin.optimizer(plugin.parameter_groups(model, ctx), ctx)
    plugin.on_progress(model, optimizer, 0.5, ctx)
    assert before[0].dtype == after[0].dtype == torch.bfloat16
    assert seen == {torch.bfloat16}
    expected = {i: 1 - cka(after[i], before[i]) for i in range(8)}
    assert dict(enumerate(ctx.details["checks"][-1]["importance"])) == pytest.approx(
        expected, abs=1e-6
    )
    assert importances(model, plugin.probe) != pytest.approx(
        expected, rel=0.05
    )  # rounding is part of what is seen


def test_a_probe_leaves_training_undisturbed(tmp_path: Path) -> None:
    data, model = small_data(tmp_path), small_model()
    method("safe").attach(model, data, small_context(tmp_path))
    model.train()
    model.bert.pooler.eval()  # someone's choice, to be kept
    model(**batch_of(data)).loss.backward()
    modes = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    rng = torch.get_rng_state()
    first = importances(model, probe_of(data))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(
        torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters() if p.grad is not None
    )
    assert not any(m._forward_hooks for m in model.modules())
    assert importances(model, probe_of(data)) == first  # eval mode: no dropout in the probe


def test_attaching_draws_no_more_random_numbers_than_adapter(tmp_path: Path) -> None:
    states = []
    for name in ("adapter", "safe"):
        model, data = small_model(), small_data(tmp_path)
        torch.manual_seed(0)
        method(name).attach(model, data, small_context(tmp_path))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_the_probe_holds_enough_tokens(tmp_path: Path) -> None:
    ctx, plugin = small_context(tmp_path), method("safe")
    plugin.attach(small_model(), small_data(tmp_path, examples=200), ctx)
    assert 4 * 16 <= ctx.details["probe_tokens"] < 4 * 16 + 14
    assert int(plugin.probe["attention_mask"].sum()) == ctx.details["probe_tokens"]
    assert "labels" not in plugin.probe
    assert bool(
        plugin.probe["attention_mask"].all()
    )  # the longest examples, so no time goes into padding


def test_fresh_adapters_have_no_importance_so_the_warm_up_must_be_real(tmp_path: Path) -> None:
    data, ctx = small_data(tmp_path), small_context(tmp_path)
    model, plugin = small_model(), method("safe", tau=1e-3)
    plugin.attach(model, data, ctx)
    assert max(importances(model, plugin.probe).values()) < 1e-4
    optimizer = plugin.optimizer(plugin.parameter_groups(model, ctx), ctx)
    assert plugin.on_progress(model, optimizer, 0.2, ctx) is None
    plugin.on_progress(model, optimizer, 0.3, ctx)
    assert len(ctx.details["checks"][-1]["frozen"]) == 8
    for warm_up, end in ((0.0, 0.8), (0.5, 0.5), (0.2, 1.2)):
        with pytest.raises(BadInput, match=r"safe\.warm_up"):
            method("safe", warm_up=warm_up, end=end).attach(small_model(), data, ctx)


# ------------------------------------------------------------------ prefix and prediction


def test_a_declared_prefix_is_frozen_from_the_start(tmp_path: Path) -> None:
    data, ctx, model = small_data(tmp_path), small_context(tmp_path), small_model()
    plugin = method("safe@prefix3")
    plugin.attach(model, data, ctx)
    learning = [a.down.weight.requires_grad for a in adapters(model)]
    assert learning == [False] * 6 + [True] * 2
    assert trainable(model) == sum(
        p.numel() for a in adapters(model)[6:] for p in a.own_parameters()
    )
    optimizer = plugin.optimizer(plugin.parameter_groups(model, ctx), ctx)
    plugin.on_progress(model, optimizer, 0.9, ctx)
    assert ctx.details["checks"][-1]["first_trainable_layer"] == 3


def test_a_prefix_longer_than_the_model_is_unsupported(tmp_path: Path) -> None:
    data, ctx = small_data(tmp_path), small_context(tmp_path)
    method("safe", prefix=4).attach(small_model(), data, ctx)  # all of it: the head still learns
    with pytest.raises(Unsupported, match=r"safe\.prefix is 5, and this model has 4 layers"):
        method("safe", prefix=5).attach(small_model(), data, ctx)
    lm = small_context(tmp_path, "llama", "causal_lm")
    with pytest.raises(Unsupported, match=r"safe\.prefix is 4"):
        method("safe", "causal_lm", prefix=4).attach(small_model("llama", "causal_lm"), data, lm)


def test_prediction_needs_no_data_and_checks_nothing(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = small_model()
    ctx, plugin = small_context(tmp_path, probe=True), method("safe@prefix3")
    plugin.attach(model, None, ctx)
    optimizer = plugin.optimizer(plugin.parameter_groups(model, ctx), ctx)
    assert plugin.on_progress(model, optimizer, 0.8, ctx) is None
    assert ctx.details == {}


def test_without_data_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="data="):
        method("safe").attach(small_model(), None, small_context(tmp_path))


def test_blocks_that_put_sequences_and_tokens_in_one_dimension_are_probed_too() -> None:
    """OPT's do; the probe's padding is left out there as elsewhere."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OPTConfig(**sizes, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=32)
    model = leantune.apply(OPTForCausalLM(config), "adapter").model
    stir(model)
    ids, mask = torch.arange(4, 14).view(2, 5), torch.ones(2, 5, dtype=torch.long)
    whole = importances(model, {"input_ids": ids, "attention_mask": mask})
    padded = torch.nn.functional.pad(ids, (0, 3), value=1)
    probe = {"input_ids": padded, "attention_mask": torch.nn.functional.pad(mask, (0, 3))}
    assert importances(model, probe) == pytest.approx(whole, rel=1e-3)
    assert len(whole) == 4
