"""A device for fake tensors that is not the host, and a fake mode in which masks select all."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from leantune.meter.fake_cuda import QuickFakeMode

GPU = "gpu"
nonzero = torch.ops.aten.nonzero.default


class AllSelected(QuickFakeMode):
    """What a mask selects depends on values. Here it is everything, the most that it can be."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nonzero:
            return super().dispatch(func, types, args, kwargs)
        (mask,) = args
        with self:
            return torch.empty(mask.numel(), mask.dim(), dtype=torch.long, device=mask.fake_device)


def fake_gpu() -> str:
    """A device for fake tensors that is not the host, so that a copy from the host takes memory on
    it; its name.

    Torch's hook for backends written in Python serves: nothing ever runs there. Optimizers take it
    for a GPU.
    """
    if torch._C._get_privateuse1_backend_name() != GPU:
        _setup_privateuseone_for_python_backend(GPU, _NoDevice(), _NoHooks())
    return GPU


class _NoDevice:
    """What torch asks of a device's module. It is not available: nothing chooses it by default."""

    def is_available(self) -> bool:
        return False

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def device(self, index: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self) -> Tensor:  # checkpointing keeps it
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor) -> None:
        pass


class _NoHooks(torch._C._acc.PrivateUse1Hooks):  # type: ignore[name-defined, misc]
    def is_available(self) -> bool:
        return False

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True
