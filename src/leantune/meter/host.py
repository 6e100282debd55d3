"""The highest resident memory of this process, per phase, from Linux itself.

Resident memory holds libraries, allocator slack and page cache mappings too: a secondary number.
The kernel keeps the high-water mark (VmHWM) and resets it on request, so nothing is sampled and no
short peak is missed. `ru_maxrss` is not used: it cannot be reset and is inherited from the parent
process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class HostMemory:
    """`with host.phase("load"): ...`; phases may nest and repeat. Bytes are None where the system
    has no mark."""

    def __init__(self) -> None:
        self.supported = _reset()
        self._open: list[str] = []
        self.peaks: dict[str, int | None] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase; the peak of a phase that comes again is its highest."""
        self._note()
        _reset()
        self._open.append(name)
        try:
            yield
        finally:
            self._note()
            self._open.pop()

    def result(self) -> dict[str, Any]:
        """`peak_bytes` over all phases and `by_phase`."""
        known = [peak for peak in self.peaks.values() if peak is not None]
        return {"peak_bytes": max(known, default=None), "by_phase": dict(self.peaks)}

    def carry(self, before: Mapping[str, int | None]) -> None:
        """Count the peaks of an earlier attempt too."""
        for name, peak in before.items():
            both = [p for p in (peak, self.peaks.get(name)) if p is not None]
            self.peaks[name] = max(both, default=None)

    def _note(self) -> None:
        mark = resident_bytes("VmHWM") if self.supported else None
        for name in self._open:
            before = self.peaks.get(name)
            self.peaks[name] = mark if mark is None or before is None else max(mark, before)


def resident_bytes(field: str = "VmRSS") -> int | None:
    """VmRSS (now) or VmHWM (highest since the last reset) of this process, None where /proc has
    none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return int(kibibytes[0]) * 1024 if kibibytes else None


def _reset() -> bool:
    """Set VmHWM to the present resident memory ("5", see proc_pid_clear_refs(5)); False where that
    is refused."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return resident_bytes("VmHWM") is not None
