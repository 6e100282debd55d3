"""A training run that was asked to stop goes on from its checkpoint and ends bit-equal to one that
never stopped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.small import batch_of, small_context, small_data, small_model, stack

from leantune.errors import BadInput
from leantune.training.loop import Schedule, Training, train
from leantune.training.resume import Preempted, capture, read, restore, write
from leantune.training.stack import Stack

pytestmark = pytest.mark.faults
STEPS = 10
STACKS = [
    ("full", {}),
    ("lora", {"dropout": 0.1}),
    ("adapter", {}),
    ("svfit", {}),
    ("vocab_pruning+came", {}),
    ("adafactor", {}),
    ("sm3", {}),
    ("safe", {"tau": 0.5}),  # freezes at the third check
    ("softlms", {"alpha_reach": 1e-3, "stage1": 1.0, "budget": 1.0}),
]


class Run:
    """One small cell's training, as often as asked, always from the same start."""

    def __init__(self, folder, name, params):
        self.folder, self.name, self.params = folder, name, params

    def go(self, stop_after=None, resume=None) -> tuple[Training, dict]:
        """The outcome and the details; `stop_after`: the step after which it is asked to stop."""
        data, ctx, stacked = (
            small_data(self.folder),
            small_context(self.folder, steps=STEPS),
            self.stack(),
        )
        model = small_model(seed=3)
        torch.manual_seed(0)
        model, data = stacked.attach(model, data, ctx)
        taken = [resume["state"]["step"] if resume else 0]
        if resume:
            ctx.details.update(resume["measured"]["details"])

        def stop():
            taken[0] += 1
            return taken[0] == stop_after

        def batches():
            yield from (batch_of(data, step) for step in range(STEPS))

        def score(model):
            return float(sum(p.detach().double().sum() for p in model.parameters()))

        schedule = Schedule(steps=STEPS, evaluations=2, warmup=0.2)
        try:
            done = train(
                model,
                stacked,
                batches(),
                schedule,
                ctx,
                None,
                score,
                stop,
                resume and resume["state"],
            )
        except Preempted as stopped:
            stopped.details = ctx.details
            raise
        return done, ctx.details

    def stack(self) -> Stack:
        return stack(self.name, **self.params)

    def stopped(self, step, resume=None) -> dict | None:
        """The checkpoint after a step, written to a file and read again."""
        with pytest.raises(Preempted) as caught:
            self.go(step, resume)
        assert caught.value.step == step
        if caught.value.state is None:
            return None
        file = self.folder / "kept.checkpoint"
        assert write(file, "x", caught.value.state, {"details": caught.value.details})
        state, measured = read(file, "x")
        return {"state": state, "measured": measured}


def weights(outcome):
    return {name: p.detach() for name, p in outcome.model.named_parameters()}


def assert_same(one, other):
    (a, told), (b, told_again) = one, other
    assert a.losses == b.losses
    assert [(p["step"], p["value"]) for p in a.curve] == [(p["step"], p["value"]) for p in b.curve]
    assert told == told_again
    mine, theirs = weights(a), weights(b)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.parametrize(("name", "params"), STACKS, ids=[name for name, _ in STACKS])
def test_a_stopped_run_ends_bit_equal_to_one_that_never_stopped(tmp_path, name, params):
    run = Run(tmp_path, name, params)
    whole = run.go()
    for step in (1, 4, 7):
        torch.manual_seed(99)  # whatever was drawn since
        assert_same(whole, run.go(resume=run.stopped(step)))


def test_a_run_that_is_stopped_again_and_again_ends_bit_equal_and_counts_every_step_once(tmp_path):
    run = Run(tmp_path, "safe", {"tau": 0.5})
    whole = run.go()
    assert any(check["frozen"] for check in whole[1]["checks"])  # the set that has to survive
    state = None
    for step in (2, 4, 8):
        state = run.stopped(step, state)
    pieces = run.go(resume=state)
    assert_same(whole, pieces)
    assert pieces[0].resumed_after == (2, 4, 8)
    assert len(pieces[0].step_seconds) == STEPS
    assert whole[0].resumed_after == ()


def test_what_a_method_has_rebuilt_cannot_be_resumed_and_says_so(tmp_path):
    run = Run(
        tmp_path, "softlms", {"alpha": 0.9, "budget": 0.9}
    )  # the first check meets the budget
    assert run.stopped(7) is None


def test_a_method_that_promises_nothing_about_its_hooks_is_not_resumed(tmp_path, monkeypatch):
    from leantune.spec import plugins

    monkeypatch.setattr(plugins.get("methods", "safe").spec, "resumable", False)
    assert Run(tmp_path, "safe", {}).stopped(4) is None


def test_the_optimizer_keeps_its_own_precision(tmp_path):
    """`Optimizer.load_state_dict` would cast the states to the parameters' precision."""
    weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    module = torch.nn.Module()
    module.weight = weight

    def optimizer():
        return stack("came").optimizer([{"params": [weight], "lr": 1e-2}], small_context(tmp_path))

    first = optimizer()
    weight.grad = torch.full_like(weight, 0.1)
    first.step()
    state = capture(module, first, {"weight"})
    second = optimizer()
    restore(state, module, second)
    assert second.state[weight]["exp_avg"].dtype == torch.float32
    assert torch.equal(second.state[weight]["exp_avg"], first.state[weight]["exp_avg"])


def test_a_state_of_another_structure_is_refused_and_changes_nothing(tmp_path):
    state = Run(tmp_path, "adapter", {}).stopped(4)["state"]
    model = small_model(seed=3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(BadInput, match="another structure"):
        restore(state, model, optimizer)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "another cell"])
def test_a_damaged_or_foreign_checkpoint_is_named_removed_and_not_used(tmp_path, capsys, damage):
    file = tmp_path / "0.json.checkpoint"
    assert write(file, "mine", {"weights": torch.randn(1000)}, {})
    whole = file.read_bytes()
    if damage == "another cell":
        assert read(file, "mine") is not None
    else:
        file.write_bytes(
            {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no checkpoint"}[damage]
        )
    assert read(file, "other" if damage == "another cell" else "mine") is None
    assert not file.exists()
    said = capsys.readouterr().err
    assert "0.json.checkpoint is not used" in said
    assert ("other code" in said) == (damage == "another cell")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (SimpleNamespace, ())

    file = tmp_path / "kept"
    torch.save({"cell": "x", "state": Evil(), "measured": {}}, file)
    assert read(file, "x") is None
