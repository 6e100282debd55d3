"""SoftLMs (arXiv 2411.10543): per-layer learnable thresholds on singular values, then low-rank fine-tuning.

Stage 1 trains one threshold per linear map, and the singular values, until the parameter budget is met; stage 2
fixes the ranks, replaces each map by its factors and fine-tunes those. Both share the step budget: the change
happens at the first `on_progress` that finds the budget met. Thresholds that have not met it by the share
`stage1` of the steps end the cell as unsupported, `budget not met`: nothing of another size is exported.
"""

import torch
from leantune_plugins.softlms.budget import (
    allowed_parameters,
    fitted_ranks,
    same_rank,
    soft_share,
    total_cost,
    uniform_rank,
)
from leantune_plugins.softlms.layers import SoftLinear, dense_module, factored_module, saves, soft, truncated_factors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D

from leantune.api import Change, Context, Data, Groups, Method, freeze_body, is_head
from leantune.architectures import WHAT, places
from leantune.errors import BadInput, Unsupported
from leantune.modules import FactoredLinear, factored_ranks
from leantune.svd import cached_svd, decompose, weight_of

TOLERANCE = 0.02  # thresholds hover about the budget; this near to it counts as met, and ranks are then fitted


class SoftLMs(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        paths = [p for p in places(model).linears if p.rpartition(".")[2] not in self.params["exclude"]]
        if not paths:
            raise Unsupported(f"this model has no {WHAT['linears']} that are not excluded; use another method")
        maps = {path: model.get_submodule(path) for path in paths}
        self.conv1d = {name for name, linear in maps.items() if isinstance(linear, Conv1D)}
        self.shapes = {name: tuple(weight_of(linear).shape) for name, linear in maps.items()}
        self.dense = sum(m * n for m, n in self.shapes.values())
        size = sum(p.numel() for p in model.parameters())
        self.allowed = allowed_parameters(self.params["budget"], self.params["of"], self.shapes, size)
        importance = self.importance(model, maps, data, ctx)
        freeze_body(model)
        ranks = self._declared_ranks()
        for name, linear in maps.items():
            weight = weight_of(linear).detach()
            if name in importance:
                svd = decompose(weight * importance[name])
            else:
                svd = cached_svd(weight, None if ctx.probe else ctx.cache)
            if ranks is None:
                args = self.params["threshold"], self.params["alpha"], self.params["temperature"]
                model.set_submodule(name, SoftLinear(linear, svd, *args))
            elif saves(ranks[name], *self.shapes[name]):
                up, down = truncated_factors(weight, svd.U, ranks[name])
                model.set_submodule(name, factored_module(up.to(weight.dtype), down.to(weight.dtype), linear.bias))
        if ranks is not None:
            self._unfreeze(model)
            self._report(ranks, ctx)
        return model, data

    def importance(
        self, model: nn.Module, maps: dict[str, nn.Module], data: Data | None, ctx: Context
    ) -> dict[str, Tensor]:
        """Weights [in] of the rows of x W^T before the decomposition, by map; none for the plain SVD."""
        return {}

    def _declared_ranks(self) -> dict[str, int] | None:
        wanted, multiple = self.params["ranks"], self.params["multiple"]
        if wanted == "learned":
            return None
        if wanted == "uniform":
            return {n: uniform_rank(self.allowed, self.dense, s, multiple) for n, s in self.shapes.items()}
        if wanted == "same":
            wanted = same_rank(self.allowed, self.shapes, multiple)
        if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 1:
            return {name: min(wanted, *shape) for name, shape in self.shapes.items()}
        raise BadInput(f"the setting ranks is {wanted!r}; give learned, uniform, same or an integer of 1 or more")

    # ------------------------------------------------------------------ training

    def parameter_groups(self, model: nn.Module, ctx: Context) -> Groups:
        """Thresholds and singular values have their own rates and are never decayed.

        Adam moves a parameter by about its rate a step, so the thresholds' is reach / (steps of stage 1).
        """
        soft_layers = _soft_layers(model)
        head = [p for p in model.parameters() if is_head(p) and p.requires_grad]
        body = [p for n in self.shapes for p in model.get_submodule(n).parameters() if p.requires_grad]
        if soft_layers:
            alphas, values = [m.alpha for m in soft_layers.values()], [m.S for m in soft_layers.values()]
            alpha_lr = self.params["alpha_reach"] / (self.params["stage1"] * ctx.steps)
            groups = [
                {"params": alphas, "lr": alpha_lr, "weight_decay": 0.0, "own_rate": True},
                {"params": values, "lr": self.params["values_lr"], "weight_decay": 0.0},
            ]
        else:
            groups = [{"params": body, "lr": self.params["lr"]}]
        groups.append({"params": head, "lr": ctx.head_lr})
        return [g for g in groups if g["params"]]

    def penalty(self, model: nn.Module) -> Tensor | None:
        """lambda R while more parameters are kept than allowed; only the thresholds feel it, not the values."""
        layers = _soft_layers(model)
        if not layers or (_have_values(layers) and self._kept(layers) <= self.allowed):
            return None
        values = {n: soft(m.S.detach(), m.alpha * m.scale) for n, m in layers.items()}
        sums = {n: m.S.detach().sum() for n, m in layers.items()}
        return self.params["strength"] * soft_share(values, sums, self.shapes)

    @torch.no_grad()
    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        for layer in _soft_layers(model).values():
            layer.alpha.clamp_(min=0)  # a negative threshold would raise the values

    def on_progress(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: float, ctx: Context
    ) -> Change | None:
        layers = _soft_layers(model)
        if not layers or ctx.probe:
            return None
        kept = self._kept(layers)
        if kept > self.allowed * (1 + TOLERANCE):
            if progress < self.params["stage1"]:
                return None
            ctx.details["budget"] = "not met"
            raise Unsupported(
                f"budget not met: after {progress:.0%} of the steps the thresholds keep {kept:,} parameters in the "
                f"linear maps, allowed are {self.allowed:,}; raise softlms.alpha_reach or softlms.strength"
            )
        self.factor(model)
        ctx.details["stage2_from"] = progress
        ctx.details["budget"] = "met"
        self._report(self.ranks, ctx)
        return Change(model, new_optimizer=True)

    def factor(self, model: nn.Module) -> None:
        """End stage 1: fit the ranks to the budget and put the factors (or a dense layer) in each map's place."""
        layers = _soft_layers(model)
        spectra = {n: m.S.detach().double() / m.scale.double() for n, m in layers.items()}
        alphas = {n: m.alpha.item() for n, m in layers.items()}
        fitted = fitted_ranks(spectra, alphas, self.shapes, self.allowed, self.params["multiple"])
        self.ranks: dict[str, int] = {}
        for name, layer in layers.items():
            layer.set_rank(fitted[name])
            self.ranks[name] = int(layer.kept())
            model.set_submodule(name, layer.exported())

    # ------------------------------------------------------------------ export

    def export(self, model: nn.Module, ctx: Context, dense: bool = False) -> nn.Module:
        """The factored model as trained; `dense=True` multiplies the factors back into the original layers."""
        if _soft_layers(model):
            ctx.details["budget"] = "not met"
            raise Unsupported("budget not met: training ended in the first stage, so there are no ranks to export")
        if dense:
            for name in factored_ranks(model):
                module = model.get_submodule(name)
                assert isinstance(module, FactoredLinear)
                model.set_submodule(name, dense_module(module.weight.detach(), module.bias, name in self.conv1d))
        return model

    def _kept(self, layers: dict[str, SoftLinear]) -> int:
        counts = torch.stack([m.kept() for m in layers.values()]).tolist()
        return total_cost(dict(zip(layers, counts, strict=True)), self.shapes)

    def _unfreeze(self, model: nn.Module) -> None:
        for name in self.shapes:
            model.get_submodule(name).requires_grad_(True)

    def _report(self, ranks: dict[str, int], ctx: Context) -> None:
        ctx.details["ranks"] = ranks
        ctx.details["linear_parameters"] = {
            "dense": self.dense,
            "allowed": self.allowed,
            "kept": total_cost(ranks, self.shapes),
        }


def _soft_layers(model: nn.Module) -> dict[str, SoftLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, SoftLinear)}


def _have_values(layers: dict[str, SoftLinear]) -> bool:
    """False while memory is predicted or probed: then the penalty is on, which is the larger case."""
    S = next(iter(layers.values())).S
    return not (S.is_meta or isinstance(S, FakeTensor) or isinstance(S.data, FakeTensor))
