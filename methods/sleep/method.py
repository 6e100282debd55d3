"""A control of the clock: `head`, which sleeps for a known time after every step."""

from __future__ import annotations

import time

from leantune_plugins.head.method import Head
from torch import nn

from leantune.api import Context


class Sleep(Head):
    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        if not ctx.probe:  # a step that is only measured for its memory has no clock
            time.sleep(self.params["seconds"])
