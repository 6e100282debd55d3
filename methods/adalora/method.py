"""AdaLoRA (arXiv 2303.10512) by the peft library: W x + P diag(e) Q x; entries of e of little importance are zeroed."""

from __future__ import annotations

from typing import Any

import torch
from leantune_plugins.peft.method import Peft
from peft.tuners.adalora.layer import AdaLoraLayer
from torch import Tensor, nn

from leantune.api import BadInput, Context, Unsupported


class AdaLora(Peft):
    def settings(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        if not 0 < self.params["rank"] < self.params["start_rank"]:
            raise BadInput(
                f"adalora.rank is {self.params['rank']} and adalora.start_rank {self.params['start_rank']}; "
                "needed: 0 < rank < start_rank, since ranks only fall"
            )
        settings = super().settings(model, ctx)
        del settings["r"]
        return {
            **settings,
            "target_r": self.params["rank"],
            "init_r": self.params["start_rank"],
            "tinit": round(self.params["warm_up"] * ctx.steps),
            "tfinal": round(self.params["last"] * ctx.steps),
            "deltaT": self.params["every"],
            "total_step": ctx.steps,
        }

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Equation 4: the mean over all P and Q of |P^T P - I| and |Q Q^T - I| (Frobenius), times a weight."""
        terms = []
        for layer in _layers(model).values():
            p, q = layer.lora_B["default"], layer.lora_A["default"]
            one = torch.eye(q.shape[0], device=q.device, dtype=q.dtype)
            terms += [torch.linalg.norm(p.T @ p - one), torch.linalg.norm(q @ q.T - one)]
        return self.params["orthogonality"] * torch.stack(terms).mean()

    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Importance from weights and gradients (section 3.2), then the budget of this step (section 3.3)."""
        layer = next(iter(_layers(model).values()))
        if layer.lora_A["default"].grad is None:
            raise Unsupported("'adalora' reads the gradients after a step; take an optimizer that leaves them")
        self.tuner.update_and_allocate(step)

    def export(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The update merged into the weights; `details` say which rank each matrix has got."""
        ctx.details["ranks"] = {name: int((m.lora_E["default"] != 0).sum()) for name, m in _layers(model).items()}
        return super().export(model, ctx)


def _layers(model: nn.Module) -> dict[str, AdaLoraLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaLoraLayer)}
