"""CAME, confidence-guided adaptive memory-efficient optimization (arXiv 2307.02047, algorithm 2).

The update is that of came-pytorch 0.1.3. Large matrices are stepped in blocks of rows that stay in the cache, so the
step's scratch is one block (two for low-precision weights), whatever the tensor's size; small tensors are batched with
`torch._foreach_*`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from leantune.errors import BadInput

BLOCK = {"cpu": 98_304, "cuda": 524_288}  # elements: a CPU wants its cache, a GPU few launches
LOW_PRECISION = (torch.bfloat16, torch.float16)


class CAME(torch.optim.Optimizer):
    """CAME with fp32 states (fp64 for fp64 weights) that survive `load_state_dict` unchanged.

    State of a parameter of two or more dimensions [..., n, k]: `exp_avg` of its shape, `exp_avg_sq_row` and
    `exp_avg_res_row` [..., n], `exp_avg_sq_col` and `exp_avg_res_col` [..., k]. Fewer dimensions: `exp_avg` and
    `exp_avg_sq` of its shape. There is no step count, since nothing is bias-corrected.

    A parameter with an attribute `full_numel` holds the used rows of a matrix of that many elements, whose other
    rows have zero gradient; with `full_matrix` every mean and the clip are those of that whole matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip: float = 1.0,
        weight_decay: float = 0.0,
        block: int = 0,
        stochastic_rounding: bool = False,
        full_matrix: bool = True,
    ) -> None:
        """`block` is the elements stepped at a time, 0 for the device's default. Raises BadInput for a bad setting."""
        groups: list[dict[str, Any]] = [g if isinstance(g, dict) else {"params": [g]} for g in params]
        for group in groups:
            rate = group.get("lr", lr)
            if rate is None or not float(rate) >= 0.0:
                raise BadInput(
                    f"CAME needs a learning rate of 0 or more, got {rate}; pass lr=... (there is no default)"
                )
        if len(betas) != 3 or not all(0.0 <= b < 1.0 for b in betas):
            raise BadInput(f"CAME needs three betas in [0, 1), got {tuple(betas)}")
        if min(eps) < 0.0 or clip <= 0.0 or weight_decay < 0.0 or block < 0:
            raise BadInput("CAME needs eps, weight_decay and block of 0 or more and a clip above 0")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": tuple(eps),
            "clip": clip,
            "weight_decay": weight_decay,
            "block": block,
            "stochastic_rounding": stochastic_rounding,
            "full_matrix": full_matrix,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update. Raises BadInput for sparse or complex gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scratch: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}
        predicted: set[tuple[Any, ...]] = set()  # without values, tensors of one shape allocate alike: one is enough
        for group in self.param_groups:
            small: dict[tuple[Any, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is None or p.numel() == 0:
                    continue
                state = self._state(p)
                block = group["block"] or BLOCK.get(p.device.type, BLOCK["cpu"])
                matrix = p.dim() >= 2
                if matrix and (p.numel() > block or _full_numel(p, group) != p.numel()):
                    buffers = 1 if p.dtype == state["exp_avg"].dtype else 2
                    key = (state["exp_avg"].dtype, p.device, max(block, p.shape[-1]), buffers)
                    if key not in scratch:
                        scratch[key] = tuple(p.new_empty(key[2], dtype=key[0]) for _ in range(buffers))
                    kind = (p.shape, p.stride(), _full_numel(p, group), *key)
                    if kind not in predicted:
                        _step_blocks(p, state, group, block, scratch[key])
                    if isinstance(p, FakeTensor):
                        predicted.add(kind)
                else:
                    small.setdefault((p.dtype, p.device, matrix, block), []).append(p)
            for (_, _, matrix, block), params in small.items():
                for batch in _batches(params, block):
                    states = [self.state[p] for p in batch]
                    (_step_small_matrices if matrix else _step_vectors)(batch, states, group)
        return loss

    def _state(self, p: Tensor) -> dict[str, Any]:
        """The parameter's state, made at its first gradient."""
        assert p.grad is not None
        if p.grad.is_sparse:
            raise BadInput(
                f"CAME does not take sparse gradients (shape {tuple(p.shape)}); use nn.Embedding(sparse=False)"
            )
        if p.is_complex():
            raise BadInput(f"CAME does not take complex parameters (shape {tuple(p.shape)}); train their real view")
        state = self.state[p]
        if not state:
            dtype = torch.float32 if p.dtype in LOW_PRECISION else p.dtype
            shapes: dict[str, Iterable[int]] = {"exp_avg": p.shape}
            if p.dim() < 2:
                shapes["exp_avg_sq"] = p.shape
            else:
                for moment in ("sq", "res"):
                    shapes[f"exp_avg_{moment}_row"] = p.shape[:-1]
                    shapes[f"exp_avg_{moment}_col"] = (*p.shape[:-2], p.shape[-1])
            state.update({k: torch.zeros(tuple(s), dtype=dtype, device=p.device) for k, s in shapes.items()})
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their dtype: torch would cast them to that of bf16 weights."""
        super().load_state_dict(state_dict)
        saved = [i for g in state_dict["param_groups"] for i in g["params"]]
        own = [p for g in self.param_groups for p in g["params"]]
        for i, p in zip(saved, own, strict=True):
            if i in state_dict["state"]:
                self.state[p] = {
                    k: v.to(p.device, copy=True) if isinstance(v, Tensor) else v
                    for k, v in state_dict["state"][i].items()
                }


# ------------------------------------------------------------------ large matrices, in blocks of rows


def _step_blocks(
    p: Tensor, state: dict[str, Any], group: dict[str, Any], block: int, scratch: tuple[Tensor, ...]
) -> None:
    """The factored update of one tensor [..., n, k], in three passes over blocks of at most `block` elements.

    The passes go back and forth, so that each begins with what the one before left in the cache.
    """
    (b1, b2, b3), (eps1, eps2) = group["betas"], group["eps"]
    assert p.grad is not None
    n, k = p.shape[-2:]
    viewable = p.dim() <= 3 or p.is_contiguous()  # else (channels last) the step is made on a copy
    weight = p.view(-1, n, k) if viewable else p.contiguous().view(-1, n, k)
    row, res_row = (state[f"exp_avg_{x}_row"].view(-1, n) for x in ("sq", "res"))
    col, res_col = (state[f"exp_avg_{x}_col"].view(-1, k) for x in ("sq", "res"))
    full_numel = _full_numel(p, group)
    unused = full_numel // k - n if full_numel != p.numel() else 0  # rows that were pruned away

    whole = n * k <= block  # then a block is some whole matrices [b, n, k], else rows of one [h, k]
    count = max(1, block // (n * k if whole else k))
    valueless = isinstance(p, FakeTensor)  # memory is being predicted: two blocks allocate what all of them do
    height = min(n, 2 * count) if valueless else n

    def in_blocks(x: Tensor, per_row: bool = True) -> list[Tensor]:
        """Views of [batch, n, ...] (or of [batch, ...]) block by block."""
        if whole:
            return list((x[: 2 * count] if valueless else x).split(count))
        matrices = (x[:1] if valueless else x).unbind()
        if not per_row:
            return [one for one in matrices for _ in range(-(-height // count))]
        return [rows for one in matrices for rows in one[:height].split(count)]

    weights, grads = in_blocks(weight), in_blocks(p.grad.reshape(-1, n, k))
    moments = in_blocks(state["exp_avg"].view(-1, n, k))
    views = {g.shape: [buffer[: g.numel()].view(g.shape) for buffer in scratch] for g in grads}

    # With row_i final after its own block, q_j = sum_i g_ij^2 / row_i needs no second pass: the squared norm of
    # u = g rsqrt(row / mean) rsqrt(col) is sum_j q_j mean / col_j.
    _decay((row, col), b2, eps1, state, "sq", unused)
    # One product of y with [1, 1 / row] gives the columns' sums and q, in the time of either.
    by_row, sums = row.new_empty(*row.shape, 2), col.new_zeros(len(col), 2, k)
    by_row[..., 0] = (1.0 - b2) / (n + unused)
    rows_sums = zip(in_blocks(row), in_blocks(by_row), in_blocks(sums, False), strict=True)
    ones = list(zip(in_blocks(torch.ones_like(row)), in_blocks(torch.ones_like(col), False), strict=True))
    for g, (one_row, one_by_row, one_sum), (_, to_cols) in zip(grads, rows_sums, ones, strict=True):
        y = views[g.shape][0]
        g = _as(g, y)
        torch.mul(g, g, out=y)
        _add_product(one_row, y, to_cols, (1.0 - b2) / k)
        torch.reciprocal(one_row, out=one_by_row[..., 1])
        (one_sum.addmm_ if y.dim() == 2 else one_sum.baddbmm_)(one_by_row.mT, y)
    col, q = col.add_(sums[:, 0]), sums[:, 1]
    mean = _mean(row, state.get("unused_sq", 0.0), unused)
    square = torch.dot(q.reshape(-1), (mean / col).view(-1)).div_(full_numel * group["clip"] ** 2)  # (RMS / clip)^2
    r, c = (row / mean).mul_(square.clamp_(min=1.0)).rsqrt_(), col.rsqrt()

    _decay((res_row, res_col), b3, eps2, state, "res", unused)
    rs, cs = in_blocks(r.unsqueeze(-1)), in_blocks(c.unsqueeze(-2), False)
    sums = zip(in_blocks(res_row), in_blocks(res_col, False), strict=True)
    second = list(zip(grads, moments, rs, cs, sums, ones, strict=True))
    for g, m, one_r, one_c, (one_row, one_col), (to_rows, to_cols) in reversed(second):
        y = views[g.shape][0]
        torch.mul(_as(g, y), one_c, out=y)
        torch.addcmul(m, y, one_r, value=-1.0, out=y)  # m_old - u; and u - m_new = b1 (u - m_old)
        m.add_(y, alpha=b1 - 1.0)
        y.mul_(y)
        _add_product(one_row, y, to_cols, (1.0 - b3) * b1 * b1 / k)
        _add_product(one_col, y.mT, to_rows, (1.0 - b3) * b1 * b1 / (n + unused))
    r, c = (res_row / _mean(res_row, state.get("unused_res", 0.0), unused)).rsqrt_(), res_col.rsqrt()

    lr, decay = float(group["lr"]), float(group["lr"]) * group["weight_decay"]
    rs, cs = in_blocks(r.unsqueeze(-1)), in_blocks(c.unsqueeze(-2), False)
    for w, m, one_r, one_c in zip(weights, moments, rs, cs, strict=True):
        y, *spare = views[w.shape]
        exact = _as(w, spare[0]) if spare else w
        if decay:
            exact.mul_(1.0 - decay)
        torch.mul(m, one_c, out=y)
        exact.addcmul_(y, one_r, value=-lr)
        if exact is not w:
            _round_into(w, exact, group["stochastic_rounding"], y)
    if not viewable:
        p.copy_(weight.view(p.shape))


def _as(x: Tensor, buffer: Tensor) -> Tensor:
    """`x` itself where it has the state's dtype, else a copy of it in `buffer`."""
    return x if x.dtype == buffer.dtype else buffer.copy_(x)


def _add_product(total: Tensor, matrix: Tensor, vector: Tensor, factor: float) -> None:
    """total [h] += factor matrix [h, k] vector [k], or the same for a batch of each."""
    if matrix.dim() == 2:
        total.addmv_(matrix, vector, alpha=factor)
    else:
        total.unsqueeze(-1).baddbmm_(matrix, vector.unsqueeze(-1), alpha=factor)


def _decay(
    averages: tuple[Tensor, Tensor], beta: float, eps: float, state: dict[str, Any], moment: str, unused: int
) -> None:
    """EMAs of squares + eps before the squares are added. A pruned row's would be that of eps alone."""
    torch._foreach_mul_(averages, beta)
    torch._foreach_add_(averages, (1.0 - beta) * eps)
    if unused:
        state[f"unused_{moment}"] = beta * state.get(f"unused_{moment}", 0.0) + (1.0 - beta) * eps


def _mean(row: Tensor, unused_row: float, unused: int) -> Tensor:
    """The mean [..., 1] of a row EMA, taken over the pruned rows too."""
    if not unused:
        return row.mean(-1, keepdim=True)
    return (row.sum(-1, keepdim=True) + unused * unused_row) / (row.shape[-1] + unused)


def _full_numel(p: Tensor, group: dict[str, Any]) -> int:
    return getattr(p, "full_numel", p.numel()) if group["full_matrix"] else p.numel()


# ------------------------------------------------------------------ small tensors, batched


def _batches(params: list[Tensor], block: int) -> Iterator[list[Tensor]]:
    """Consecutive parameters with at most `block` elements together, or one parameter."""
    batch: list[Tensor] = []
    for p in params:
        if batch and sum(q.numel() for q in batch) + p.numel() > block:
            yield batch
            batch = []
        batch.append(p)
    yield batch


def _step_vectors(params: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    """Parameters of one or no dimension: a full second moment, and no confidence term."""
    (b1, b2, _), (eps1, _) = group["betas"], group["eps"]
    m, v = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
    g = [p.grad.to(s.dtype) for p, s in zip(params, m, strict=True)]  # type: ignore[union-attr]
    u = list(torch._foreach_mul(g, g))
    torch._foreach_add_(u, eps1)
    torch._foreach_mul_(v, b2)
    torch._foreach_add_(v, u, alpha=1.0 - b2)
    torch._foreach_copy_(u, v)
    torch._foreach_rsqrt_(u)
    torch._foreach_mul_(u, g)
    _clip(u, params, group)
    torch._foreach_lerp_(m, u, 1.0 - b1)
    _apply(params, m, group)


def _step_small_matrices(params: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    """The factored update of several small tensors at once."""
    (b1, b2, b3), (eps1, eps2) = group["betas"], group["eps"]
    m = [s["exp_avg"] for s in states]
    g = [p.grad.to(s.dtype) for p, s in zip(params, m, strict=True)]  # type: ignore[union-attr]
    u = list(torch._foreach_mul(g, g))
    _factors_into(u, states, "sq", b2, eps1)
    torch._foreach_mul_(u, g)
    _clip(u, params, group)
    torch._foreach_lerp_(m, u, 1.0 - b1)
    torch._foreach_sub_(u, m)
    torch._foreach_mul_(u, u)
    _factors_into(u, states, "res", b3, eps2)
    torch._foreach_mul_(u, m)
    _apply(params, u, group)


def _factors_into(squares: list[Tensor], states: list[dict[str, Any]], moment: str, beta: float, eps: float) -> None:
    """Update the row and column EMAs by `squares` and overwrite these with rsqrt(row / mean(row)) rsqrt(col)."""
    rows, cols = ([s[f"exp_avg_{moment}_{x}"] for s in states] for x in ("row", "col"))
    for averages, dim in ((rows, -1), (cols, -2)):
        means = [q.mean(dim) for q in squares]
        torch._foreach_add_(means, eps)
        torch._foreach_mul_(averages, beta)
        torch._foreach_add_(averages, means, alpha=1.0 - beta)
    for row, col, out in zip(rows, cols, squares, strict=True):
        r = (row / row.mean(-1, keepdim=True)).rsqrt_()
        torch.mul(r.unsqueeze(-1), col.rsqrt().unsqueeze(-2), out=out)


def _clip(updates: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> None:
    """Divide each update by max(1, RMS / clip)."""
    norms = list(torch._foreach_norm(updates))
    torch._foreach_div_(norms, [math.sqrt(_full_numel(p, group)) * group["clip"] for p in params])
    torch._foreach_clamp_min_(norms, 1.0)
    torch._foreach_div_(updates, norms)


def _apply(params: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
    """Decoupled weight decay, then the step."""
    lr, decay = float(group["lr"]), float(group["lr"]) * group["weight_decay"]
    exact = params[0].dtype == updates[0].dtype
    weights = params if exact else [p.to(u.dtype) for p, u in zip(params, updates, strict=True)]
    if decay:
        torch._foreach_mul_(weights, 1.0 - decay)
    torch._foreach_add_(weights, updates, alpha=-lr)
    if not exact:
        for p, w in zip(params, weights, strict=True):
            _round_into(p, w, group["stochastic_rounding"], torch.empty_like(w))


def _round_into(weight: Tensor, exact: Tensor, stochastic: bool, spare: Tensor) -> None:
    """Write fp32 `exact` into bf16 or fp16 `weight`, to nearest, or (bf16 only) up with probability of the remainder."""
    if stochastic and weight.dtype == torch.bfloat16:
        bits = exact.view(torch.int32)
        bits.add_(spare.view(torch.int32).random_(0, 1 << 16)).bitwise_and_(-1 << 16)
    weight.copy_(exact)
