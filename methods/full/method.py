"""Full fine-tuning: nothing is frozen and nothing is added."""

from leantune.api import Context, Data, Method
from torch import nn


class Full(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        return model, data
