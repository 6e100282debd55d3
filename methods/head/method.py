"""Linear probing: the body is frozen, the head learns."""

from __future__ import annotations

from torch import nn

from leantune.api import Context, Data, Groups, Method, Unsupported, freeze_body, is_head


class Head(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        if not any(is_head(p) for p in model.parameters()):
            raise Unsupported(f"'head' trains the task's head, and a {ctx.kind} model has none; use another method")
        freeze_body(model)
        return model, data

    def parameter_groups(self, model: nn.Module, ctx: Context) -> Groups:
        return [{"params": [p for p in model.parameters() if is_head(p)], "lr": ctx.head_lr}]
