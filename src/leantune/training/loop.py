"""The one training loop: plain PyTorch, the same on a CPU, a GPU and fake tensors."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from leantune.api import Batch, Context
from leantune.errors import Diverged, Unsupported
from leantune.training import resume as checkpoint
from leantune.training.stack import Stack

CHECKS = 10  # on_progress calls a run


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. Warm-up is a fraction of the steps; clip 0 means no clipping."""

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

    def gradients(self, model: nn.Module) -> None:
        """Gradients are complete and not yet used."""

    def step(self, step: int, seconds: float, loss: float) -> None:
        """Step `step` (1-based) took `seconds` with the device synchronised."""

    def changed(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """A method changed what is trained, so memory from here on differs."""


@dataclass(frozen=True)
class Training:
    """What a run leaves: the trained model, seconds and loss of every step, the curve, how many of
    the seconds went into the method's own hooks, and after which steps it was resumed."""

    model: nn.Module
    step_seconds: list[float]
    losses: list[float]
    curve: list[dict[str, float]]
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
    resume: checkpoint.State | None = None,
) -> Training:
    """Train for `schedule.steps` optimizer steps. `evaluate` runs outside the clock,
    `schedule.evaluations` times.

    `stop` is asked after every step but the last; where it says yes, Preempted is raised with the
    state that `resume` takes, or with None where the method has changed the model's structure.
    `model` is the attached one, `batches` start at the first, also to resume. Raises Diverged with
    the step where the loss is not finite.
    """
    watch = watch or Watch()
    done = resume["step"] if resume else 0
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    attached = checkpoint.shapes(model)
    optimizer, scheduler = _prepare(model, stack, schedule, ctx, done)
    groups = len(optimizer.param_groups)
    if resume:
        checkpoint.restore(resume, model, optimizer)
    watch.prepared(model, optimizer)
    check_steps = step_fractions(schedule.steps, schedule.checks)
    evaluation_steps = step_fractions(schedule.steps, schedule.evaluations if evaluate else 0)
    seconds: list[float] = list(resume["seconds"]) if resume else []
    losses: list[float] = list(resume["losses"]) if resume else []
    curve: list[dict[str, float]] = list(resume["curve"]) if resume else []
    in_hooks: float = resume["in_hooks"] if resume else 0.0
    resumed_after: tuple[int, ...] = (*resume["resumed_after"], done) if resume else ()
    model.train()
    for _ in range(done * schedule.accumulate):
        next(batches)
    if resume:
        checkpoint.restore_random(resume)
    for step in range(done + 1, schedule.steps + 1):
        micro_batches = [to_device(next(batches), ctx.device) for _ in range(schedule.accumulate)]
        started = now(ctx.device)
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
            del loss, extra
        if not math.isfinite(total):
            raise Diverged(
                f"the loss is {total} at step {step} of {schedule.steps}; try a lower learning rate"
            )
        watch.gradients(model)
        watch.mark("optimizer")
        if schedule.clip:
            torch.nn.utils.clip_grad_norm_(
                (p for p in model.parameters() if p.grad is not None), schedule.clip
            )
        optimizer.step()
        scheduler.step()
        stepped = now(ctx.device)
        stack.on_step(model, step, ctx)
        in_hooks += now(ctx.device) - stepped
        optimizer.zero_grad(set_to_none=True)
        watch.mark("other")
        stepped = now(ctx.device)
        if step in check_steps:
            change = stack.on_progress(model, optimizer, check_steps[step], ctx)
            if change is not None:
                model = change.model
                if change.new_optimizer:
                    optimizer, scheduler = _prepare(model, stack, schedule, ctx, done=step)
                    watch.prepared(model, optimizer)
                watch.changed(model, optimizer, step)
        ended = now(ctx.device)
        seconds.append(ended - started)
        in_hooks += ended - stepped
        losses.append(total)
        watch.step(step, seconds[-1], total)
        if step in evaluation_steps and evaluate is not None:
            value = evaluate(model)
            curve.append({"step": step, "seconds": sum(seconds), "value": value, "loss": total})
            model.train()
        if step < schedule.steps and stop():
            same = checkpoint.shapes(model) == attached and len(optimizer.param_groups) == groups
            if not (stack.resumable and same):
                raise checkpoint.Preempted(step, None)
            so_far = {"seconds": seconds, "losses": losses, "curve": curve, "in_hooks": in_hooks}
            state = checkpoint.capture(model, optimizer, trained)
            raise checkpoint.Preempted(
                step, {**state, **so_far, "step": step, "resumed_after": resumed_after}
            )
    return Training(model, seconds, losses, curve, in_hooks, resumed_after)


def _prepare(
    model: nn.Module, stack: Stack, schedule: Schedule, ctx: Context, done: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer and learning-rate scheduler, the latter at the position of `done` steps."""
    optimizer = stack.optimizer(stack.parameter_groups(model, ctx), ctx)
    if getattr(optimizer, "in_backward", False) and (schedule.clip or schedule.accumulate > 1):
        setting = (
            f"clip {schedule.clip:g}" if schedule.clip else f"accumulate {schedule.accumulate}"
        )
        raise Unsupported(
            f"{type(optimizer).__name__} steps within the backward pass, so no gradients are left for {setting}; "
            "set task.clip=0 and task.accumulate=1 or take another optimizer"
        )
    warmup = round(schedule.warmup * schedule.steps)
    scheduler = get_scheduler(
        schedule.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=schedule.steps
    )
    for _ in range(done):
        optimizer._opt_called = True  # type: ignore[attr-defined]  # the steps were taken by the former optimizer
        scheduler.step()
    return optimizer, scheduler


def step_fractions(steps: int, count: int) -> dict[int, float]:
    """Step to progress for `count` even fractions of the run; several that fall on one step are
    one."""
    return {max(1, round(steps * k / count)): k / count for k in range(1, count + 1)}


def autocast(device: str, dtype: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()


def to_device(batch: Batch, device: str) -> Batch:
    return (
        batch if device == "cpu" else {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    )


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
