"""A control that changes no weight, not even the head's."""

from __future__ import annotations

from torch import nn

from leantune.api import Context, Data, Groups, Method


class TrainNothing(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        return model.requires_grad_(False), data

    def parameter_groups(self, model: nn.Module, ctx: Context) -> Groups:
        return []
