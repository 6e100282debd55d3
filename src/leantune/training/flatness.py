"""How flat a trained model's minimum is: the loss after small random changes of the tensors that
were trained.

The changes are filter-normalised (Li et al. 2018, arXiv 1712.09913, section 4): each row of a
weight matrix gets a random direction of `norm` times the row's own length, biases and scales none.
Two methods that train the same tensors get the same directions, so their losses can be compared
draw by draw.
"""

import statistics
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

NORMS = {"half_percent": 0.005, "one_percent": 0.01, "two_percent": 0.02}


@torch.no_grad()
def flatness(
    model: nn.Module,
    names: Collection[str],
    loss: Callable[[nn.Module], float],
    draws: int,
    seed: int,
) -> dict[str, Any] | None:
    """Loss of the model as it is, and for each norm its increase: of every draw, and their mean.
    The model is left as it was. `names` are the parameters to change, of which only those of two or
    more dimensions are; None without any."""
    tensors = [p for name, p in model.named_parameters() if name in names and p.dim() > 1]
    if not tensors:
        return None
    kept = [p.clone() for p in tensors]
    found: dict[str, Any] = {
        "loss": loss(model),
        "draws": draws,
        "parameters": sum(p.numel() for p in tensors),
    }
    for name, norm in NORMS.items():
        increase = []
        for draw in range(draws):
            generator = torch.Generator().manual_seed(1_000_003 * seed + draw)
            for parameter, weight in zip(tensors, kept, strict=True):
                parameter.copy_(weight + norm * _direction(weight, generator))
            increase.append(loss(model) - found["loss"])
        found[name] = {"norm": norm, "mean": statistics.fmean(increase), "increase": increase}
    for parameter, weight in zip(tensors, kept, strict=True):
        parameter.copy_(weight)
    return found


def _direction(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction whose rows are as long as those of `weight` (rows, ...)."""
    drawn = torch.randn(weight.shape, generator=generator).to(weight)
    lengths = weight.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)
    return drawn * lengths.view(-1, *[1] * (weight.dim() - 1))
