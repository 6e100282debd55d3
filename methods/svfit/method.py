"""SVFit (arXiv 2409.05926): fine-tune only the top-r singular values of each adapted weight.

W = U_r diag(s_r) V_r^T + W_e. Only s_r trains. The residual W_e is never stored: the frozen W is applied as it
is and the change of the singular values is added, so step 0 is bitwise the base model.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from leantune.api import Context, Data, Groups, Method, freeze_body, is_head
from leantune.architectures import WHAT, places
from leantune.errors import BadInput, Unsupported
from leantune.svd import SVD, cached_svd, weight_of


class SVFitLinear(nn.Module):
    """y = x W^T + b + ((x Vh^T) * (sigma - S)) U^T with sigma [r] trainable, x [..., in], y [..., out].

    Backward keeps x Vh^T [..., r] and not x: autograd saves the input of a product with a frozen matrix nowhere.
    Without the residual y = ((x Vh^T) * sigma) U^T + b.
    """

    U: Tensor  # [out, r]
    S: Tensor  # [r]
    Vh: Tensor  # [r, in]

    def __init__(self, base: nn.Module, svd: SVD, rank: int, residual: bool = True) -> None:
        super().__init__()
        self.base = base
        self.residual = residual
        dtype = weight_of(base).dtype
        # The vectors depend on the frozen weight alone, so no checkpoint carries them.
        self.register_buffer("U", svd.U[:, :rank].to(dtype).contiguous(), persistent=False)
        self.register_buffer("S", svd.S[:rank].clone(), persistent=False)
        self.register_buffer("Vh", svd.Vh[:rank].to(dtype).contiguous(), persistent=False)
        self.sigma = nn.Parameter(self.S.clone())

    @property
    def weight(self) -> Tensor:
        """The frozen pre-trained weight, in the layout of the wrapped module (T5 and others look at it)."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        projected = F.linear(x, self.Vh)
        if not self.residual:
            return F.linear(projected * self.sigma.to(projected.dtype), self.U, self.bias)
        change = (self.sigma - self.S).to(projected.dtype)
        return self.base(x) + F.linear(projected * change, self.U)

    def merged(self) -> nn.Module:
        """The wrapped module with W + (U * (sigma - S)) Vh as its weight, or (U * sigma) Vh without residual."""
        weight = weight_of(self.base)
        values = (self.sigma - self.S if self.residual else self.sigma).detach()
        update = (self.U.to(values.dtype) * values) @ self.Vh.to(values.dtype)
        weight.data.copy_(weight.data.to(update.dtype) + update if self.residual else update)
        return self.base


class SVFit(Method):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        freeze_body(model)
        where = places(model)
        known = {"query_value": where.role("query", "value"), "linears": where.linears}
        if self.params["targets"] not in known:
            raise BadInput(f"svfit.targets is '{self.params['targets']}'; choose query_value or linears")
        if not known[self.params["targets"]]:
            missing = WHAT["linears" if self.params["targets"] == "linears" else "query"]
            raise Unsupported(f"this model has no {missing}; use another method")
        ranks, shares = {}, []
        for name in known[self.params["targets"]]:
            linear = model.get_submodule(name)
            weight = weight_of(linear)
            if ctx.probe and self._needs_values():
                raise BadInput(
                    f"svfit.rank = {self.params['rank']} is a share of energy, which needs the weights' values; "
                    "to predict, give the rank as an integer: --set svfit.rank=64"
                )
            svd = cached_svd(weight, None if ctx.probe else ctx.cache)
            rank = self._rank(svd.S)
            model.set_submodule(name, SVFitLinear(linear, svd, rank, bool(self.params["residual"])))
            ranks[name] = rank
            if not ctx.probe:
                shares.append(energy_share(svd.S, rank))
        ctx.details["ranks"] = ranks
        ctx.details["energy_share"] = min(shares, default=None)  # of the matrix that keeps the least
        return model, data

    def _needs_values(self) -> bool:
        return isinstance(self.params["rank"], float)

    def _rank(self, S: Tensor) -> int:
        """r from the setting: an integer (at most k), "full", or the smallest r with the wanted share of energy."""
        wanted = self.params["rank"]
        if wanted == "full":
            return len(S)
        if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 1:
            return min(wanted, len(S))
        if isinstance(wanted, float) and 0 < wanted < 1:
            return energy_rank(S, wanted)
        raise BadInput(f"svfit.rank is {wanted!r}; give an integer of 1 or more, full, or a share between 0 and 1")

    def parameter_groups(self, model: nn.Module, ctx: Context) -> Groups:
        """Singular values are never decayed: 0.01 at lr 5e-2 shrinks them to 0.88 in 250 steps."""
        sigma = [m.sigma for m in model.modules() if isinstance(m, SVFitLinear)]
        head = [p for p in model.parameters() if is_head(p) and p.requires_grad]
        groups = [
            {"params": sigma, "lr": self.params["lr"], "weight_decay": 0.0},
            {"params": head, "lr": ctx.head_lr},
        ]
        return [g for g in groups if g["params"]]

    def export(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The original architecture with the change of the singular values merged into its weights."""
        for parent in list(model.modules()):
            for attribute, child in list(parent.named_children()):
                if isinstance(child, SVFitLinear):
                    setattr(parent, attribute, child.merged())
        return model


def energy_share(S: Tensor, rank: int) -> float:
    """sum(S[:r]^2) / sum(S^2), the information that r singular values hold, for S [k] descending."""
    energy = S.double().square().cumsum(0)
    return float(energy[rank - 1] / energy[-1])


def energy_rank(S: Tensor, share: float) -> int:
    """The smallest r with sum(S[:r]^2) / sum(S^2) >= share, for S [k] descending."""
    energy = S.double().square().cumsum(0)
    return int((energy < share * energy[-1]).sum()) + 1
