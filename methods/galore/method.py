"""GaLore (arXiv 2403.03507, algorithm 2), pytorch-optimizer's implementation."""

from __future__ import annotations

import torch
from pytorch_optimizer import GaLore as LibraryGaLore

from leantune.api import Context, Groups, Method, is_head, scale_rates


class GaLore(Method):
    """GaLore on the body's matrices larger than the rank, plain AdamW on all else, at `lr_scale` times the rates."""

    def optimizer(self, groups: Groups, ctx: Context) -> torch.optim.Optimizer:
        rank = self.params["rank"]
        projection = {
            "rank": rank, "update_proj_gap": self.params["gap"], "scale": self.params["scale"], "projection_type": "std",
        }  # fmt: skip
        split = []
        for group in scale_rates(groups, self.params["lr_scale"]):
            large = [p for p in group["params"] if p.dim() == 2 and min(p.shape) > rank and not is_head(p)]
            ids = {id(p) for p in large}
            split += [
                {**group, **projection, "params": large},
                {**group, "params": [p for p in group["params"] if id(p) not in ids]},
            ]
        filled = [group for group in split if group["params"]]
        return LibraryGaLore(filled, weight_decay=self.params["weight_decay"], foreach=False)
