"""Peaks of CUDA memory per phase, as PyTorch's allocator and the driver count them."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

COUNTS = {  # ours -> the key of torch.cuda.memory_stats
    "allocated_peak_bytes": "allocated_bytes.all.peak",
    "active_peak_bytes": "active_bytes.all.peak",
    "reserved_peak_bytes": "reserved_bytes.all.peak",
}
SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING")


class CudaMemory:
    """`with cuda.phase("load"): ...`; phases come one after another and may repeat. On a machine
    without CUDA it does nothing and `result()` is None, since there torch answers 0 to every
    question."""

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self.available = torch.version.cuda is not None and torch.cuda.is_available()
        self.peaks: dict[str, dict[str, int]] = {}
        if self.available:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch gives it no types
            self.used_before = self._used()
            self.baseline = torch.cuda.memory_allocated(device)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase; the peaks of a phase that comes again are its highest."""
        if not self.available:
            yield
            return
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            yield
        finally:
            torch.cuda.synchronize(self.device)
            stats = torch.cuda.memory_stats(self.device)
            self.carry({name: {count: stats.get(key, 0) for count, key in COUNTS.items()}})

    def carry(self, before: Mapping[str, Mapping[str, int]]) -> None:
        """Count these peaks too, such as those of an earlier attempt."""
        for name, counts in before.items():
            mine = self.peaks.setdefault(name, {})
            mine.update({count: max(peak, mine.get(count, 0)) for count, peak in counts.items()})

    def result(self) -> dict[str, Any] | None:
        """Bytes at the peak over all phases and of each, what the device held before, retries and
        settings.

        `device_used_*` counts every process and the CUDA context; `nvml_used_bytes` is the same
        from NVML, None without its Python package.
        """
        if not self.available:
            return None
        stats = torch.cuda.memory_stats(self.device)
        nvml_used = None
        with contextlib.suppress(ImportError, RuntimeError):
            nvml_used = int(torch.cuda.device_memory_used(self.device))
        return {
            **{
                count: max((counts[count] for counts in self.peaks.values()), default=0)
                for count in COUNTS
            },
            "by_phase": {name: dict(counts) for name, counts in self.peaks.items()},
            "baseline_allocated_bytes": self.baseline,
            "device_used_before_bytes": self.used_before,
            "device_used_after_bytes": self._used(),
            "nvml_used_bytes": nvml_used,
            "retries": stats.get("num_alloc_retries", 0),
            "out_of_memory": stats.get("num_ooms", 0),
            "allocator": {
                "backend": torch.cuda.get_allocator_backend(),
                "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
            },
        }

    def _used(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free
