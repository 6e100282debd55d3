"""Whether a GPU kept its clock while it trained: nvidia-smi samples it beside the worker, in a
process of its own."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
from typing import Any

from leantune.machine.gpus import start_query

FIELDS = (
    "clocks.sm",
    "clocks.max.sm",
    "temperature.gpu",
    "power.draw",
    "clocks_event_reasons.active",
)
EVERY_MS = 500
# Bits of `clocks_event_reasons.active` (NVML's nvmlClocksEventReason*) that take speed from a busy
# GPU. The others (idle, a clock that somebody set, synchronised boards, the display) are no
# slowdown under load.
SLOWDOWNS = {
    "power cap": 0x4,
    "hardware slowdown": 0x8,
    "thermal, by the driver": 0x20,
    "thermal, by the hardware": 0x40,
    "power brake": 0x80,
}


class Clocks:
    """`with clocks: ...` samples the device that CUDA_VISIBLE_DEVICES names; `result()` is None
    where nothing answers."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.samples: list[list[str]] = []
        self._sampler: subprocess.Popen[str] | None = None

    def __enter__(self) -> Clocks:
        if self.wanted:
            device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"
            self._output = tempfile.TemporaryFile("w+")  # a pipe would fill up in a long run
            often = (f"--id={device}", f"--loop-ms={EVERY_MS}")
            with contextlib.suppress(OSError):
                self._sampler = start_query("gpu", FIELDS, *often, output=self._output)
        return self

    def __exit__(self, *error: object) -> None:
        if self._sampler is not None:
            self._sampler.terminate()
            self._sampler.wait()
            self._sampler = None
            self._output.seek(0)
            lines = [line.split(",") for line in self._output.read().splitlines()]
            # the last line may be cut
            self.samples += [words for words in lines if len(words) == len(FIELDS)]

    def result(self) -> dict[str, Any] | None:
        """Samples taken, the median and lowest SM clock and the highest that the device has (MHz),
        the hottest (°C), the most power (W), the share of samples with a slowdown, and which kinds
        of it occurred.

        A figure that the device does not tell is None.
        """
        if not self.samples:
            return None
        clock, limit, heat, power, _ = map(_numbers, zip(*self.samples, strict=True))
        masks = [int(mask, 16) for *_, mask in self.samples if mask.strip().startswith("0x")]
        slow = [mask for mask in masks if mask & sum(SLOWDOWNS.values())]
        return {
            "samples": len(self.samples),
            "sm_mhz_median": statistics.median(clock) if clock else None,
            "sm_mhz_lowest": min(clock, default=None),
            "sm_mhz_limit": max(limit, default=None),
            "hottest_celsius": max(heat, default=None),
            "most_watts": max(power, default=None),
            "throttled_share": len(slow) / len(masks) if masks else None,
            "slowdowns": [
                name for name, bit in SLOWDOWNS.items() if any(mask & bit for mask in masks)
            ],
        }


def _numbers(words: tuple[str, ...]) -> list[float]:
    """Those of the words that are numbers; others are such as "[N/A]"."""
    found = []
    for word in words:
        with contextlib.suppress(ValueError):
            found.append(float(word))
    return found
