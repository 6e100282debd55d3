"""The highest resident memory of this process, from Linux itself.

Resident memory holds libraries, allocator slack and page cache mappings too: a secondary number.
The kernel keeps the high-water mark (VmHWM), so nothing is sampled and no short peak is missed.
`ru_maxrss` is not used: it is inherited from the parent process.
"""

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_peak_bytes() -> int | None:
    """The most that this process ever held, None where the system does not tell."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    kibibytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kibibytes[0]) * 1024 if kibibytes else None
