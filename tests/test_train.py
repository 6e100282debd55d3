"""The training loop against a hand-written one, and what it promises to methods."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, get_scheduler

from leantune.api import Change, Context, mark_head
from leantune.errors import Diverged
from leantune.spec.stacks import parse_stack
from leantune.training.loop import Schedule, Watch, train
from leantune.training.stack import Stack


def tiny(seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    model = BertForSequenceClassification(config)
    mark_head(model, "classification")
    return model


def some_batches(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        ids = torch.randint(5, 50, (4, 9), generator=generator)
        yield {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.randint(3, (4,), generator=generator),
        }


def context(steps=6):
    return Context("classification", "bert", steps, 1e-3, 0, "cpu", 4, 9, Path())


def stack(method="full"):
    return Stack(parse_stack(method, "classification"))


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_the_loop_equals_a_hand_written_one_bit_for_bit():
    ours, theirs = tiny(), tiny()
    torch.manual_seed(7)
    done = train(ours, stack(), some_batches(6), Schedule(steps=6, warmup=0.5), context())
    torch.manual_seed(7)
    head = [p for p in theirs.parameters() if getattr(p, "leantune_head", False)]
    body = [p for p in theirs.parameters() if not getattr(p, "leantune_head", False)]
    assert len(head) == 4  # pooler and classifier
    groups = [{"params": body, "lr": 2e-4}, {"params": head, "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=3, num_training_steps=6)
    losses = []
    theirs.train()
    for batch in some_batches(6):
        loss = theirs(**batch).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert done.losses == losses
    assert same(ours, theirs)


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    model = tiny().double().eval()
    model.train = lambda mode=True: model  # dropout off, so that the two runs see the same function
    other = tiny().double().eval()
    other.train = lambda mode=True: other
    small = list(some_batches(2))
    whole = {k: torch.cat([b[k] for b in small]) for k in small[0]}
    train(model, stack(), iter(small), Schedule(steps=1, accumulate=2, warmup=0), context(1))
    train(other, stack(), iter([whole]), Schedule(steps=1, warmup=0), context(1))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step():
    model = tiny()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(Diverged, match="step 1 of 6"):
        train(model, stack(), some_batches(6), Schedule(steps=6), context())


def test_clipping_bounds_the_gradient_that_the_optimizer_sees():
    norms = []

    class Norms(Watch):
        def mark(self, phase):
            if phase == "other":
                norms.append(None)

    class Clipped(type(stack().methods["adaptation"])):
        def optimizer(self, groups, ctx):
            optimizer = super().optimizer(groups, ctx)
            optimizer.register_step_pre_hook(
                lambda o, *_: norms.append(
                    torch.nn.utils.get_total_norm(
                        [p.grad for g in o.param_groups for p in g["params"] if p.grad is not None]
                    )
                )
            )
            return optimizer

    clipped = stack()
    clipped.methods["adaptation"] = Clipped(clipped.methods["adaptation"].params)
    train(tiny(), clipped, some_batches(3), Schedule(steps=3, clip=0.01), context(3), Norms())
    assert [round(float(n), 4) for n in norms if n is not None] == [0.01] * 3


def test_progress_is_called_at_fixed_fractions_and_a_new_optimizer_keeps_the_schedule():
    seen, rates = [], []

    class Probe(type(stack().methods["adaptation"])):
        def on_progress(self, model, optimizer, progress, ctx):
            seen.append(progress)
            return Change(model, new_optimizer=True) if progress == 0.5 else None

        def on_step(self, model, step, ctx):
            rates.append(step)

    probing = stack()
    probing.methods["adaptation"] = Probe(probing.methods["adaptation"].params)
    optimizers = []

    class Watching(Watch):
        def prepared(self, model, optimizer):
            optimizers.append(optimizer)

    train(
        tiny(), probing, some_batches(20), Schedule(steps=20, warmup=0.0), context(20), Watching()
    )
    assert seen == [k / 10 for k in range(1, 11)]
    assert rates == list(range(1, 21))
    assert len(optimizers) == 2
    plain = []

    class Plain(Watch):
        def prepared(self, model, optimizer):
            plain.append(optimizer)

    train(tiny(), stack(), some_batches(20), Schedule(steps=20, warmup=0.0), context(20), Plain())
    assert optimizers[1].param_groups[0]["lr"] == plain[0].param_groups[0]["lr"]


def test_evaluation_is_outside_the_clock_and_does_not_change_training():
    import time

    def slow(model):
        model.eval()
        time.sleep(0.2)
        return 1.0

    ours, plain = tiny(), tiny()
    torch.manual_seed(3)
    done = train(
        ours, stack(), some_batches(4), Schedule(steps=4, evaluations=2), context(4), evaluate=slow
    )
    torch.manual_seed(3)
    train(plain, stack(), some_batches(4), Schedule(steps=4), context(4))
    assert [p["step"] for p in done.curve] == [2, 4]
    assert max(done.step_seconds[2:]) < 0.2
    assert same(ours, plain)
