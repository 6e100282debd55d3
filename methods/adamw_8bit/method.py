"""AdamW with block-wise 8-bit states (arXiv 2110.02861), bitsandbytes' implementation; it runs on a CPU too."""

from __future__ import annotations

import torch
from bitsandbytes.optim import AdamW8bit as LibraryAdamW8bit

from leantune.api import Context, Groups, Method, scale_rates


class AdamW8bit(Method):
    """AdamW at `lr_scale` times the rates that the other plugins chose for it, its states in 8 bits."""

    def optimizer(self, groups: Groups, ctx: Context) -> torch.optim.Optimizer:
        return LibraryAdamW8bit(
            scale_rates(groups, self.params["lr_scale"]),
            weight_decay=self.params["weight_decay"],
            min_8bit_size=self.params["smallest"],
        )
