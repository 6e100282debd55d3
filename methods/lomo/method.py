"""LOMO (arXiv 2306.09782, algorithm 1): the update fused into the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from leantune.api import Context, Groups, Method, scale_rates


class InBackward(torch.optim.Optimizer):
    """SGD whose step happens in the backward pass: a parameter moves, and its gradient is freed, once it is complete.

    So at most the gradients of one operator are live. `step` has nothing left to do but count.
    """

    in_backward = True

    def __init__(self, groups: Groups, **settings: Any) -> None:
        super().__init__(groups, {"lr": 0.0, "step": 1, **settings})
        self.handles = [
            p.register_post_accumulate_grad_hook(self._hook(group))
            for group in self.param_groups
            for p in group["params"]
        ]

    def _hook(self, group: dict[str, Any]) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def use(p: Tensor) -> None:
            grad, p.grad = p.grad, None
            assert grad is not None
            self.update(p, grad, group)

        return use

    def update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if group["clip"] is not None:
            grad = grad.clamp_(-group["clip"], group["clip"])
        p.add_(grad, alpha=-group["lr"])

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] += 1


class Lomo(Method):
    """LOMO at `lr_scale` times the rates that the other plugins chose for AdamW."""

    made = InBackward
    handles: list[RemovableHandle] = []

    def optimizer(self, groups: Groups, ctx: Context) -> torch.optim.Optimizer:
        for handle in self.handles:  # of an optimizer before this one, whose parameters may be trained on
            handle.remove()
        settings = {name: value for name, value in self.params.items() if name != "lr_scale"}
        optimizer = self.made(scale_rates(groups, self.params["lr_scale"]), **settings)
        self.handles = optimizer.handles
        return optimizer
