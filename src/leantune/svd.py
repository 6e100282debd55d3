"""Singular value decompositions of a model's linear maps, computed once per weight and cached by
its hash."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class SVD(NamedTuple):
    """W = U diag(S) Vh: U [out, k], S [k] descending, Vh [k, in], k = min(out, in)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def weight_of(linear: nn.Module) -> Tensor:
    """The map's weight as [out, in], a view: GPT-2's Conv1D keeps it transposed, nn.Linear does
    not."""
    weight: Tensor = linear.weight  # type: ignore[assignment]  # nn.Module says Tensor or Module
    return weight.T if isinstance(linear, Conv1D) else weight


def decompose(weight: Tensor) -> SVD:
    """The SVD of `weight` [out, in] in fp32 (fp64 stays fp64), with canonical signs.

    The largest entry of every right singular vector is positive, so the same weight gives the same
    vectors. Works on meta tensors.
    """
    W = weight.detach()
    U, S, Vh = torch.linalg.svd(W if W.dtype == torch.float64 else W.float(), full_matrices=False)
    peak = Vh.abs().argmax(dim=1, keepdim=True)
    sign = torch.where(Vh.gather(1, peak) < 0, -1.0, 1.0).to(Vh.dtype)  # [k, 1]
    return SVD(U * sign.T, S, Vh * sign)


def cached_svd(weight: Tensor, cache: Path | None) -> SVD:
    """`decompose(weight)`, kept as `<cache>/svd/<hash of the weight>.safetensors`; None computes it
    anew.

    The file appears by a rename, so that cells which run side by side never read half of one.
    """
    if cache is None:
        return decompose(weight)
    file = cache / "svd" / f"{_digest(weight)}.safetensors"
    if file.is_file():
        try:
            return SVD(**load_file(file, device=str(weight.device)))
        except (SafetensorError, TypeError):  # damaged: made again below
            pass
    svd = decompose(weight)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in svd._asdict().items()}, draft)
    draft.replace(file)
    return svd


def _digest(weight: Tensor) -> str:
    W = weight.detach().cpu().contiguous()
    sha = hashlib.sha256(f"{W.dtype} {tuple(W.shape)}".encode())
    sha.update(W.view(torch.uint8).numpy().data)
    return sha.hexdigest()
