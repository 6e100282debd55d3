"""The one training loop: plain PyTorch, the same on a CPU, a GPU and fake tensors."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from leantune.api import Batch, Context
from leantune.errors import Diverged, Unsupported
from leantune.training.resume import (
    Preempted,
    State,
    capture,
    restore,
    restore_random,
    structure,
)
from leantune.training.stack import Stack

CHECKS = 10  # on_progress calls a run


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. Warm-up is a fraction of the steps; clip 0 clips nothing."""

    steps: int
    dtype: str = "fp32"
    warmup: float = 0.1
    schedule: str = "linear"
    clip: float = 0.0
    accumulate: int = 1
    checks: int = CHECKS
    evaluations: int = 0

    @classmethod
    def from_training(cls, training: dict[str, Any]) -> Schedule:
        """From a task's resolved `training` settings."""
        return cls(**{k: training[k] for k in cls.__dataclass_fields__ if k in training})


class Watch:
    """What an observer may follow; the meter, the progress bar and the clock are watches. All hooks
    do nothing."""

    def mark(self, phase: str) -> None:
        """Entering `forward`, `backward`, `optimizer` or `other` within a step."""

    def prepared(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer was built, at the start or after a method asked for a new one."""

    def step(self, step: int, seconds: float, loss: float) -> None:
        """Step `step` (1-based) took `seconds` with the device synchronised."""

    def changed(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """A method changed what is trained, so memory from here on differs."""


@dataclass
class Training:
    """What a run leaves: the trained model, seconds and loss of every step, the curve, how many of
    the seconds went into the method's own hooks, and after which steps it was resumed."""

    model: nn.Module
    step_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    hook_seconds: float = 0.0
    resumed_after: tuple[int, ...] = ()


def train(
    model: nn.Module,
    stack: Stack,
    batches: Iterator[Batch],
    schedule: Schedule,
    ctx: Context,
    watch: Watch | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    stop: Callable[[], bool] = lambda: False,
    resume: State | None = None,
) -> Training:
    """Train the attached `model` for `schedule.steps` optimizer steps. `evaluate` runs outside the
    clock, `schedule.evaluations` times. `stop` is asked after every step but the last: a yes raises
    Preempted with the state that `resume` takes. `batches` start at the first, also to resume.
    Raises Diverged with the step where the loss is not finite."""
    run, watch = Training(model), watch or Watch()
    done = resume["step"] if resume else 0
    optimizer, scheduler = _prepare(model, stack, schedule, ctx, done)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    begun = structure(model, optimizer)
    if resume:
        run = _go_on(resume, model, optimizer, batches, schedule)
    watch.prepared(model, optimizer)
    checks = step_fractions(schedule.steps, schedule.checks)
    evaluations = step_fractions(schedule.steps, schedule.evaluations)
    model.train()
    for step in range(done + 1, schedule.steps + 1):
        micro_batches = [to_device(next(batches), ctx.device) for _ in range(schedule.accumulate)]
        started = now(ctx.device)
        loss = _forward_backward(model, stack, micro_batches, schedule, ctx, watch, step)
        watch.mark("optimizer")
        if schedule.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        scheduler.step()
        stepped = now(ctx.device)
        stack.on_step(model, step, ctx)  # the gradients are still there
        hook_seconds = now(ctx.device) - stepped
        optimizer.zero_grad(set_to_none=True)
        watch.mark("other")
        checked = now(ctx.device)
        if step in checks and (change := stack.on_progress(model, optimizer, checks[step], ctx)):
            model = change.model
            if change.new_optimizer:
                optimizer, scheduler = _prepare(model, stack, schedule, ctx, step)
                watch.prepared(model, optimizer)
            watch.changed(model, optimizer, step)
        ended = now(ctx.device)
        run.losses.append(loss)
        run.step_seconds.append(ended - started)
        run.hook_seconds += hook_seconds + ended - checked
        watch.step(step, ended - started, loss)
        if evaluate and step in evaluations:
            score, seconds = evaluate(model), sum(run.step_seconds)
            run.curve.append({"step": step, "seconds": seconds, "value": score, "loss": loss})
            model.train()
        if step < schedule.steps and stop():
            same = stack.resumable and structure(model, optimizer) == begun
            raise Preempted(step, _state(run, step, model, optimizer, trained) if same else None)
    return replace(run, model=model)


def _forward_backward(
    model: nn.Module,
    stack: Stack,
    micro_batches: list[Batch],
    schedule: Schedule,
    ctx: Context,
    watch: Watch,
    step: int,
) -> float:
    """Gradients of one optimizer step, and its loss: the task's and the methods' penalty."""
    total = 0.0
    for batch in micro_batches:
        watch.mark("forward")
        with autocast(ctx.device, schedule.dtype):
            loss = model(**batch).loss
            extra = stack.penalty(model)
            if extra is not None:
                loss = loss + extra
            if schedule.accumulate > 1:
                loss = loss / schedule.accumulate
        watch.mark("backward")
        loss.backward()
        total += loss.item()
        del loss, extra  # else both live on in the next forward pass, and in the peak
    if not math.isfinite(total):
        where = f"step {step} of {schedule.steps}"
        raise Diverged(f"the loss is {total} at {where}; try a lower learning rate")
    return total


def _prepare(
    model: nn.Module, stack: Stack, schedule: Schedule, ctx: Context, done: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer and learning-rate scheduler, the latter at the position of `done` steps."""
    optimizer = stack.optimizer(stack.parameter_groups(model, ctx), ctx)
    if getattr(optimizer, "in_backward", False) and (schedule.clip or schedule.accumulate > 1):
        clip, accumulate = f"clip {schedule.clip:g}", f"accumulate {schedule.accumulate}"
        raise Unsupported(
            f"{type(optimizer).__name__} steps within the backward pass, so no gradients are left "
            f"for {clip if schedule.clip else accumulate}; set task.clip=0 and task.accumulate=1 "
            "or take another optimizer"
        )
    warmup = round(schedule.warmup * schedule.steps)
    scheduler = get_scheduler(schedule.schedule, optimizer, warmup, schedule.steps)
    for _ in range(done):
        # torch warns where the schedule moves first, but the former optimizer took these steps
        optimizer._opt_called = True  # type: ignore[attr-defined]  # torch sets it, untyped
        scheduler.step()
    return optimizer, scheduler


def _state(
    run: Training,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    trained: set[str],
) -> State:
    """What `_go_on` needs: what training has changed, and what was measured so far."""
    measured = {name: value for name, value in vars(run).items() if name != "model"}
    return {**capture(model, optimizer, trained), "step": step, "measured": measured}


def _go_on(
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    schedule: Schedule,
) -> Training:
    """Put a state back, pass over the batches that were trained on, and take up its numbers."""
    restore(state, model, optimizer)
    for _ in range(state["step"] * schedule.accumulate):
        next(batches)
    restore_random(state)  # last: nothing may be drawn between here and the next step
    run = Training(model, **state["measured"])
    return replace(run, resumed_after=(*run.resumed_after, state["step"]))


def step_fractions(steps: int, count: int) -> dict[int, float]:
    """Step to progress for `count` even fractions of the run; several that fall on one step are
    one."""
    return {max(1, round(steps * k / count)): k / count for k in range(1, count + 1)}


def autocast(device: str, dtype: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()


def to_device(batch: Batch, device: str) -> Batch:
    if device == "cpu":
        return batch
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
