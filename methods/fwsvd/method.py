"""FWSVD (arXiv 2207.00112): truncated SVD after weighting each row of W by its Fisher information.

In the paper's Z = X W + b a row of W belongs to an input feature. I_i = sum over the row of squared gradients,
W is decomposed as diag(sqrt(I)) W = U S V^T, and the factors are diag(sqrt(I))^-1 U_r S_r = W V_r and V_r^T.
The second form needs no division, so features without any gradient are harmless.
"""

import torch
from leantune_plugins.softlms.method import SoftLMs
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from leantune.api import Batch, Context, Data


class FWSVD(SoftLMs):
    def importance(
        self, model: nn.Module, maps: dict[str, nn.Module], data: Data | None, ctx: Context
    ) -> dict[str, Tensor]:
        """sqrt of the squared gradients, summed over outputs and the first training batches: [in] by map."""
        if ctx.probe or data is None or data.collate is None:
            return {}  # shapes do not depend on it
        was_training = model.training
        squares = {name: torch.zeros_like(linear.weight) for name, linear in maps.items()}
        model.requires_grad_(False).eval()
        for linear in maps.values():
            linear.weight.requires_grad_(True)
        for start in range(0, self.params["fisher_batches"] * ctx.batch, ctx.batch):
            rows = [data.train[i] for i in range(start, min(start + ctx.batch, len(data.train)))]
            if not rows:
                break
            batch: Batch = {k: v.to(ctx.device) for k, v in data.collate(rows).items()}
            model(**batch).loss.backward()
            for name, linear in maps.items():
                squares[name] += linear.weight.grad.square()
                linear.weight.grad = None
        model.train(was_training).requires_grad_(True)
        return {name: row_weights(square, maps[name]) for name, square in squares.items()}


def row_weights(squares: Tensor, linear: nn.Module) -> Tensor:
    """sqrt of the Fisher information [in], from squared gradients in the layout of the map's weight."""
    return squares.sum(dim=1 if isinstance(linear, Conv1D) else 0).sqrt()
