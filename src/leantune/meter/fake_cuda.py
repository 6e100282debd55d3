"""Fake tensors that take the CUDA path: the same allocations as on a GPU, with no GPU and no
memory.

A fake tensor on the `cpu` device runs the CPU's choice of implementations. `cuda_path` swaps those
whose memory differs on CUDA: dropout (a mask of 1 byte an element, not a float one), attention (a
fused kernel that saves no probabilities), Mamba's scan (fake_mamba.py) and the autocast policy
(ATen/autocast_mode.h: CUDA runs more operators in float32). Operators with an autocast policy on
the CPU already have CUDA's, float32. `fake_copies` makes the copy of a model that a probe trains in
place of the model.
"""

import contextlib
import copy
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from leantune.errors import Unsupported
from leantune.meter import fake_mamba
from leantune.meter.tensors import plain_attributes, tensors_in

aten = torch.ops.aten
HALF = (torch.bfloat16, torch.float16)

# AT_FORALL_FP32 of ATen/autocast_mode.h: on CUDA their half inputs are cast to float32.
CAST_TO_FP32: tuple[str, ...] = tuple(
    name
    for name in [
        "acos",
        "asin",
        "cosh",
        "erfinv",
        "exp",
        "expm1",
        "log",
        "log10",
        "log2",
        "log1p",
        "reciprocal",
        "rsqrt",
        "sinh",
        "tan",
        "pow.Tensor_Scalar",
        "pow.Tensor_Tensor",
        "pow.Scalar",
        "softplus",
        "layer_norm",
        "native_layer_norm",
        "rms_norm",
        "group_norm",
        "frobenius_norm.dim",
        "nuclear_norm",
        "nuclear_norm.dim",
        "cosine_similarity",
        "poisson_nll_loss",
        "cosine_embedding_loss",
        "nll_loss",
        "nll_loss2d",
        "hinge_embedding_loss",
        "kl_div",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "mse_loss",
        "margin_ranking_loss",
        "multilabel_margin_loss",
        "soft_margin_loss",
        "triplet_margin_loss",
        "multi_margin_loss",
        "binary_cross_entropy_with_logits",
        "dist",
        "pdist",
        "cdist",
        "renorm",
        "logsumexp",
        "upsample_nearest1d",
        "_upsample_nearest_exact1d",
        "upsample_nearest2d",
        "_upsample_nearest_exact2d",
        "upsample_nearest3d",
        "_upsample_nearest_exact3d",
        "upsample_linear1d",
        "upsample_bilinear2d",
        "_upsample_bilinear2d_aa",
        "upsample_trilinear3d",
        "upsample_bicubic2d",
        "_upsample_bicubic2d_aa",
    ]
    if name != "rms_norm" or torch.__version__ >= "2.12"  # which added it
)
# AT_FORALL_FP32_SET_OPT_DTYPE: the input stays as it is, the result is float32.
RESULT_IN_FP32: tuple[str, ...] = tuple(
    """
prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
linalg_matrix_norm.str_ord sum sum.dim_IntList
""".split()  # noqa: SIM905  a list of names reads better without quotes
)


class QuickFakeMode(FakeTensorMode):
    """A mode under which operators compute shapes and no values; real tensors may take part. It is
    FakeTensorMode with a shorter way through its cache of results.

    A training step is thousands of operators on a few shapes, so nearly all of its time is the
    cache's. The key here has what a dense tensor's result can depend on, and leaves out sparse,
    conjugated and symbolic ones; a result that is known is made without the checks that its first
    making passed.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._attributes: dict[torch.device, dict[str, Any]] = {}  # of a new fake tensor there

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._grouped_mm.default:
            return _grouped_mm(*args, **(kwargs or {}))
        with contextlib.suppress(fake_tensor._BypassDispatchCache):
            known = FakeTensorMode.cache.get(self._cache_key(None, func, args, kwargs or {}))
            if isinstance(known, fake_tensor._DispatchCacheValidEntry):
                made = [self._made(one, func, args) for one in known.output_infos]
                return tuple(made) if known.is_output_tuple else made[0]
        return super().__torch_dispatch__(func, types, args, kwargs or {})

    @property
    def avoid_device_init(self) -> bool:
        return True  # values that are known are known on the host

    def _cache_key(self, state: Any, func: Any, args: Any, kwargs: Any) -> Any:
        key = [func, torch.get_default_dtype(), torch.is_inference_mode_enabled()]
        self._describe(key, args)
        self._describe(key, kwargs)
        self._describe(key, kwargs.values())
        return fake_tensor._DispatchCacheKey(tuple(key))

    def _describe(self, key: list[Any], values: Any) -> None:
        key.append(len(values))
        for value in values:
            kind = type(value)
            if kind is FakeTensor:
                plain = value.layout is torch.strided and not (value.is_conj() or value.is_neg())
                if value.constant is not None or value.fake_mode is not self or not plain:
                    raise fake_tensor._BypassDispatchCache("not a plain fake tensor")
                key += (
                    value.shape,
                    value.stride(),
                    value.storage_offset(),
                    value.dtype,
                    value.requires_grad,
                )
                key.append(value.fake_device)
            elif kind is list or kind is tuple:
                self._describe(key, value)
            elif isinstance(value, Tensor):
                raise fake_tensor._BypassDispatchCache("not a plain fake tensor")
            else:
                key += (kind, value)

    def _made(self, entry: Any, func: Any, args: Any) -> Any:
        """The result of an operator that the cache knows: the argument that it wrote to, a
        constant, or a tensor."""
        if entry.inplace_idx is not None:
            return args[entry.inplace_idx]
        seen = entry.metadata
        if seen is None:
            return entry.constant_value
        out = torch.empty_strided(seen.shape, seen.stride, dtype=seen.dtype, device="meta")
        if func.is_view:
            out.set_(
                args[entry.view_idx].untyped_storage(), seen.storage_offset, seen.shape, seen.stride
            )
        if seen.device not in self._attributes:
            self._attributes[seen.device] = dict(vars(FakeTensor(self, out, seen.device)))
        fake = Tensor._make_subclass(
            FakeTensor,
            out,
            seen.requires_grad,
            dispatch_device=True,
            device_for_backend_keys=seen.device,
        )
        torch._C._set_throw_on_mutable_data_ptr(fake)
        fake.__dict__.update(self._attributes[seen.device])
        return fake


@contextlib.contextmanager
def cuda_path() -> Iterator[None]:
    """Make fake CPU tensors allocate as CUDA ones do. For use inside a fake mode only: nothing is
    computed."""
    library = torch.library.Library("aten", "IMPL")
    for names, policy in ((CAST_TO_FP32, _cast_inputs), (RESULT_IN_FP32, _set_dtype)):
        for name in names:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCPU"):
                library.impl(name, policy(_overload(name)), "AutocastCPU")
    swaps: list[tuple[Any, str, Any]] = [
        (F, "dropout", _dropout),
        (F, "scaled_dot_product_attention", _attention),
        (torch, "rand", _rand),
    ]
    if fake_mamba.MODELLING in sys.modules:  # else this process has no Mamba
        swaps.append((sys.modules[fake_mamba.MODELLING], "mamba_inner_fn", fake_mamba.kernel))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in swaps]
    try:
        for swap in swaps:
            setattr(*swap)
        yield
    finally:
        for swap in before:
            setattr(*swap)
        library._destroy()


def fake_copies(
    model: nn.Module, companion: Any = None, device: str = "cpu", host: str = "cpu"
) -> tuple[nn.Module, Any]:
    """The model with empty fake tensors in place of its parameters, buffers and plain tensor
    attributes, and a copy of an object that may refer to them, such as a method's state.

    Enter `QuickFakeMode()` first. The model may be real or on the meta device; its values are
    neither read nor copied. Ties, views of one storage, `requires_grad` and attributes of
    parameters stay. Tensors that the companion holds and the model does not (a method's own
    examples) are shared, not copied. Tensors on the meta device get their fakes on `device`, all
    others on `host`. Raises Unsupported for tensor subclasses (quantised weights), which have no
    fake form here.
    """
    tensors = list(_own_tensors(model))
    users = Counter(t.untyped_storage()._cdata for t in tensors)
    bases: dict[int, Tensor] = {}
    memo: dict[int, Any] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        place = device if tensor.is_meta else host
        shape = tensor.size(), tensor.stride()
        whole = storage.nbytes() == tensor.nbytes and tensor.storage_offset() == 0
        if whole and users[storage._cdata] == 1:
            data = torch.empty_strided(*shape, dtype=tensor.dtype, device=place)
        else:
            if storage._cdata not in bases:
                empty = torch.empty(storage.nbytes(), dtype=torch.uint8, device=place)
                bases[storage._cdata] = empty
            typed = bases[storage._cdata].view(tensor.dtype)
            data = typed.as_strided(*shape, tensor.storage_offset())
        if isinstance(tensor, nn.Parameter):
            data = nn.Parameter(data, requires_grad=tensor.requires_grad)
        data.__dict__.update({k: v for k, v in vars(tensor).items() if k not in vars(data)})
        memo[id(tensor)] = data
    for tensor in tensors_of(companion):
        memo.setdefault(id(tensor), tensor)
    copies = copy.deepcopy((model, companion), memo)
    for tensor in tensors:
        for hook in (tensor._backward_hooks or {}).values():  # a method may work on its gradients
            memo[id(tensor)].register_hook(copy.deepcopy(hook, memo))
    return copies


def tensors_of(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors that an object holds in its attributes and containers, modules left out."""
    if isinstance(value, Tensor):
        yield value
    elif depth and not isinstance(value, (nn.Module, type)):
        items = value.values() if isinstance(value, dict) else value
        listed = items if isinstance(value, (dict, list, tuple)) else ()
        for item in [*listed, *getattr(value, "__dict__", {}).values()]:
            yield from tensors_of(item, depth - 1)


def _own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that the model's modules hold, once."""
    seen: set[int] = set()
    for module in model.modules():
        held = (module._parameters.values(), module._buffers.values())
        for tensor in (*itertools.chain(*held), *tensors_in(plain_attributes(module))):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer, FakeTensor):
                raise Unsupported(
                    f"{type(module).__name__} holds a {type(tensor).__name__}, which has no fake "
                    "copy; measure this model on a real device instead"
                )
            yield tensor


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    if inplace or p == 1:
        return (aten.dropout_ if inplace else aten.dropout)(input, p, training)
    return torch.native_dropout(input, p, True)[0]


def _grouped_mm(a: Tensor, b: Tensor, offs: Tensor, **_: Any) -> Tensor:
    """One product for each expert of a layer, of rows (2-d by 3-d) or for the weights' gradient
    (2-d by 2-d). Torch's fake kernel takes bfloat16 only, the real ones float32 too."""
    groups = [offs.size(0)] if b.dim() == 2 else []
    return a.new_empty([*groups, a.size(0), b.size(-1)])


_torch_rand = torch.rand


def _rand(*size: Any, **settings: Any) -> Tensor:
    """A single draw, by which a method drops a whole module, is its mean: the module stays."""
    shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
    return (
        torch.tensor(0.5).reshape(shape)
        if shape in ((), (1,)) and not settings
        else _torch_rand(*size, **settings)
    )


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `scaled_dot_product_attention` runs on CUDA: flash for half precision without a mask,
    else memory-efficient attention. q, k, v: (batch, heads, length, head size)."""
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        query, key, value = (
            t.to(low) if t.dtype is torch.float32 else t for t in (query, key, value)
        )
        if attn_mask is not None and attn_mask.dtype is torch.float32:
            attn_mask = attn_mask.to(low)
    with _without_autocast():
        if (
            attn_mask is None
            and query.dtype in HALF
            and query.size(-1) <= 256
            and query.size(-1) % 8 == 0
        ):
            out = aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )
            return out[0]
        if enable_gqa and key.size(1) != query.size(1):  # only flash shares key and value heads
            groups = query.size(1) // key.size(1)
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        bias = None if attn_mask is None else _attention_bias(attn_mask, query, key)
        saves = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, saves, dropout_p, is_causal, scale=scale
        )[0]


def _attention_bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask as an additive bias with strides that are multiples of 8
    (native/transformers/attention.cpp)."""
    if mask.dtype is torch.bool:
        mask = torch.where(mask, 0.0, torch.full((), float("-inf"), dtype=query.dtype))
    if mask.stride(-1) != 1 or any(stride % 8 for stride in mask.stride()[:-1]):
        length = mask.size(-1)
        mask = F.pad(mask, (0, 8 - length % 8))[..., :length]
    return mask.expand(query.size(0), query.size(1), query.size(2), key.size(2))


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def _cast_inputs(op: Any) -> Any:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            return op(*(_float(a) for a in args), **{k: _float(v) for k, v in kwargs.items()})

    return kernel


def _set_dtype(op: Any) -> Any:
    def kernel(input: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        with _without_autocast():
            if dtype is None and input.dtype in HALF:
                dtype = torch.float32
            return op(input, *args, dtype=dtype, **kwargs)

    def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
        with _without_autocast():
            if input.dtype in HALF and dtype in (
                None,
                torch.float32,
            ):  # one kernel on CUDA, no float32 input
                return aten._softmax(input, dim, True)
            return op(input, dim, dtype)

    return softmax if op is aten.softmax.int else kernel


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def _without_autocast() -> Any:
    return torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    )
