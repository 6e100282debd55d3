"""Peaks of CUDA memory per phase, as PyTorch's allocator and the driver count them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

COUNTS = {  # ours -> the key of torch.cuda.memory_stats
    "allocated": "allocated_bytes.all.peak",
    "active": "active_bytes.all.peak",
    "reserved": "reserved_bytes.all.peak",
}
SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING")


class CudaMemory:
    """`with cuda.phase("load"): ...`; phases may nest and repeat. On a machine without CUDA it does
    nothing and `result()` is None, since there torch answers 0 to every question."""

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self.available = torch.version.cuda is not None and torch.cuda.is_available()
        self._open: list[str] = []
        self.peaks: dict[str, dict[str, int]] = {}
        if self.available:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            self.used_before = self._used()
            self.baseline = torch.cuda.memory_allocated(device)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase; the peaks of a phase that comes again are its highest."""
        if not self.available:
            yield
            return
        self._note()
        torch.cuda.reset_peak_memory_stats(self.device)
        self._open.append(name)
        try:
            yield
        finally:
            self._note()
            self._open.pop()

    def result(self) -> dict[str, Any] | None:
        """Bytes at the peak over all phases and of each, what the device held before, retries and
        settings.

        `device_used_*` counts every process and the CUDA context; `nvml_used_bytes` is the same
        from NVML, None without its Python package.
        """
        if not self.available:
            return None
        stats = torch.cuda.memory_stats(self.device)
        peaks = {
            f"{count}_peak_bytes": max(
                (p[f"{count}_peak_bytes"] for p in self.peaks.values()), default=0
            )
            for count in COUNTS
        }
        return {
            **peaks,
            "by_phase": {name: dict(counts) for name, counts in self.peaks.items()},
            "baseline_allocated_bytes": self.baseline,
            "device_used_before_bytes": self.used_before,
            "device_used_after_bytes": self._used(),
            "nvml_used_bytes": _nvml_used(self.device),
            "retries": stats.get("num_alloc_retries", 0),
            "out_of_memory": stats.get("num_ooms", 0),
            "allocator": {
                "backend": torch.cuda.get_allocator_backend(),
                "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
            },
        }

    def carry(self, before: Mapping[str, Mapping[str, int]]) -> None:
        """Count the peaks of an earlier attempt too."""
        for name, counts in before.items():
            mine = self.peaks.setdefault(name, {})
            mine.update({field: max(peak, mine.get(field, 0)) for field, peak in counts.items()})

    def _note(self) -> None:
        torch.cuda.synchronize(self.device)
        stats = torch.cuda.memory_stats(self.device)
        for name in self._open:
            counts = self.peaks.setdefault(name, {})
            for count, key in COUNTS.items():
                field = f"{count}_peak_bytes"
                counts[field] = max(counts.get(field, 0), stats.get(key, 0))

    def _used(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free


def _nvml_used(device: int) -> int | None:
    try:
        return int(torch.cuda.device_memory_used(device))
    except (ImportError, RuntimeError):
        return None
