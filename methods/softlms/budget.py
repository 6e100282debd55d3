"""Parameter accounting: what ranks cost, and which ranks meet a budget."""

from collections.abc import Mapping

import torch
from torch import Tensor

from leantune.errors import BadInput

Shape = tuple[int, int]  # (out, in) of a linear map


def cost(rank: int, shape: Shape) -> int:
    """Parameters of a map of this rank: two factors, or the dense matrix where that is not more."""
    out_features, in_features = shape
    return min(rank * (out_features + in_features), out_features * in_features)


def total_cost(ranks: Mapping[str, int], shapes: Mapping[str, Shape]) -> int:
    return sum(cost(ranks[name], shape) for name, shape in shapes.items())


def allowed_parameters(budget: float, of: str, shapes: Mapping[str, Shape], model_parameters: int) -> int:
    """How many parameters the linear maps may keep so that `budget` of the linears, or of the model, is left."""
    dense = sum(m * n for m, n in shapes.values())
    if not 0 < budget <= 1 or of not in ("linears", "total"):
        raise BadInput(f"softlms.budget {budget!r} of '{of}': give a share in (0, 1] of linears or total")
    allowed = int(budget * dense) if of == "linears" else dense - int((1 - budget) * model_parameters)
    if allowed <= sum(cost(1, shape) for shape in shapes.values()):
        raise BadInput(
            f"softlms.budget {budget} of {of}: the linear maps are {dense:,} of the model's {model_parameters:,} "
            "parameters, so they cannot shrink by that much; raise softlms.budget or count softlms.of=linears"
        )
    return allowed


def rounded(rank: int, multiple: int, shape: Shape) -> int:
    """The nearest multiple, at least one of them and at most the full rank."""
    return max(1, min(max(multiple, multiple * round(rank / multiple)), *shape))


def uniform_rank(allowed: int, dense: int, shape: Shape, multiple: int) -> int:
    """The largest multiple with which this matrix keeps at most the share allowed / dense of its parameters."""
    out_features, in_features = shape
    rank = allowed * out_features * in_features // (dense * (out_features + in_features))
    return max(1, min(max(multiple, rank // multiple * multiple), *shape))


def same_rank(allowed: int, shapes: Mapping[str, Shape], multiple: int) -> int:
    """The largest multiple that, as the rank of every matrix, keeps within the allowed parameters."""
    rank = multiple
    while rank < max(map(min, shapes.values())) and (
        total_cost(dict.fromkeys(shapes, rank + multiple), shapes) <= allowed
    ):
        rank += multiple
    return rank


def fitted_ranks(
    spectra: Mapping[str, Tensor], alphas: Mapping[str, float], shapes: Mapping[str, Shape], allowed: int, multiple: int
) -> dict[str, int]:
    """The ranks that spend the budget: all learned thresholds moved by the same amount, the smallest that fits.

    `spectra` [k] and `alphas` are in units of each layer's largest singular value.
    """

    def ranks(shift: float) -> dict[str, int]:
        return {
            name: rounded(int((spectrum > max(0.0, alphas[name] + shift)).sum()), multiple, shapes[name])
            for name, spectrum in spectra.items()
        }

    top = max(float(s.max()) for s in spectra.values())
    low, high = -max(alphas.values()) - 1e-6, top - min(alphas.values())
    for _ in range(40):  # the cost never rises with the shift
        middle = (low + high) / 2
        low, high = (low, middle) if total_cost(ranks(middle), shapes) <= allowed else (middle, high)
    return ranks(high)


def soft_share(values: Mapping[str, Tensor], sums: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> Tensor:
    """A differentiable stand-in for the share of parameters kept: sum relu(S - alpha) / sum S, weighted by size.

    Unlike the count, whose gradient is 0, it pulls on every threshold that keeps something, also at alpha = 0.
    """
    dense = sum(m * n for m, n in shapes.values())
    terms = [values[name].sum() / sums[name] * (m * n / dense) for name, (m, n) in shapes.items()]
    return torch.stack(terms).sum()
