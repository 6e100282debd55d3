"""A control that trains nothing: what the pre-trained language model scores."""

from __future__ import annotations

from torch import nn

from leantune.api import LANGUAGE_MODELS, Context, Data, Groups, Method, Unsupported


class ZeroShot(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        if ctx.kind not in LANGUAGE_MODELS:
            raise Unsupported(f"'zero_shot' needs a language-modelling task; on {ctx.kind} the head would be random")
        return model.requires_grad_(False), data

    def parameter_groups(self, model: nn.Module, ctx: Context) -> Groups:
        return []
