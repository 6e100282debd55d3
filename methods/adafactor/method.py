"""Adafactor, transformers' implementation of the fairseq code, with its own rate schedule turned off."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Adafactor as TransformersAdafactor

from leantune.api import Context, Data, Groups, Method, scale_rates


class Adafactor(Method):
    """Adafactor with momentum at `lr_scale` times the rates that the other plugins chose for AdamW."""

    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        return model, data

    def optimizer(self, groups: Groups, ctx: Context) -> torch.optim.Optimizer:
        return TransformersAdafactor(
            scale_rates(groups, self.params["lr_scale"]),
            beta1=self.params["beta1"],
            decay_rate=self.params["decay_rate"],
            clip_threshold=self.params["clip"],
            weight_decay=self.params["weight_decay"],
            relative_step=False,
            scale_parameter=False,
        )
