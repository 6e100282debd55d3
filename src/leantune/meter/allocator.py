"""What PyTorch's CUDA caching allocator would allocate and reserve for a trace of allocations and
frees.

The rules are those of c10/cuda/CUDACachingAllocator.cpp in its default configuration, one stream,
no failed allocation (so nothing is ever given back to the device). Requests are rounded up to 512
B. Up to 1 MiB they come from the small pool, in segments of 2 MiB; larger ones from the large pool,
in segments of 20 MiB below 10 MiB and of the request rounded up to 2 MiB from there. The smallest
free block that fits is taken, the lowest address first; its rest is split off if it is at least 512
B (small pool) or more than 1 MiB (large pool). Free neighbours merge. With expandable segments a
pool is one growing segment, mapped in pages of 2 MiB (small) or 20 MiB (large), any rest of at
least 512 B is split off, and the block that can still grow is taken last.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 1 << 20
ROUND = 512  # kMinBlockSize
SMALL_LIMIT = 1 * MIB  # kSmallSize: the largest request of the small pool
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT = 20 * MIB  # kLargeBuffer
LARGE_LIMIT = 10 * MIB  # kMinLargeAlloc: from here a request has its own segment
LARGE_ROUND = 2 * MIB  # kRoundLarge
SEGMENT_GAP = 1 << 40  # keeps the addresses of two segments apart, so that they never merge


@dataclass
class _Block:
    address: int
    size: int
    pool: _Pool
    before: _Block | None = None
    after: _Block | None = None
    free: bool = True


class _Pool:
    """Free blocks by size and address."""

    def __init__(self, small: bool) -> None:
        self.small = small
        self.order: list[tuple[int, int]] = []
        self.at: dict[int, _Block] = {}
        self.end: _Block | None = None  # the last block of the one expandable segment

    def add(self, block: _Block) -> None:
        insort(self.order, (block.size, block.address))
        self.at[block.address] = block

    def take(self, block: _Block) -> None:
        del self.order[bisect_left(self.order, (block.size, block.address))]
        del self.at[block.address]

    def smallest(self, size: int) -> _Block | None:
        i = bisect_left(self.order, (size, -1))
        fitting = [self.at[address] for _, address in self.order[i : i + 2]]
        if len(fitting) == 2 and fitting[0] is self.end:
            return fitting[1]
        return fitting[0] if fitting else None


class CachingAllocator:
    """The allocator's state. `malloc` returns a block to hand to `free`."""

    def __init__(self, expandable_segments: bool = False) -> None:
        self.expandable = expandable_segments
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0
        self._pools = {True: _Pool(small=True), False: _Pool(small=False)}
        self._segments = 0

    def malloc(self, size: int) -> _Block:
        """A block for `size` > 0 bytes."""
        size = round_up(size, ROUND)
        pool = self._pools[size <= SMALL_LIMIT]
        block = pool.smallest(size)
        if block is not None:
            pool.take(block)
        else:
            block = self._grow(pool, size) if self.expandable else self._segment(pool, size)
        self._split(block, size)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: _Block) -> None:
        """Give a block back; it merges with free neighbours of its segment."""
        self.allocated -= block.size
        block.free = True
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                block.pool.take(neighbour)
                block = _join(block, neighbour)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Give every segment back that holds nothing, as `torch.cuda.empty_cache` does. Not for
        expandable segments."""
        if self.expandable:
            raise ValueError("the pages that an expandable segment gives back are not modelled")
        for pool in self._pools.values():
            for block in [b for b in pool.at.values() if b.before is None and b.after is None]:
                pool.take(block)
                self.reserved -= block.size

    def _segment(self, pool: _Pool, size: int) -> _Block:
        large = LARGE_SEGMENT if size < LARGE_LIMIT else round_up(size, LARGE_ROUND)
        wanted = SMALL_SEGMENT if pool.small else large
        self._segments += 1
        self._reserve(wanted)
        return _Block(self._segments * SEGMENT_GAP, wanted, pool)

    def _grow(self, pool: _Pool, size: int) -> _Block:
        """The end of the expandable segment, mapped on until `size` fits."""
        end = pool.end
        have = end.size if end is not None and end.free else 0
        mapped = round_up(size - have, SMALL_SEGMENT if pool.small else LARGE_SEGMENT)
        self._reserve(mapped)
        if end is not None and end.free:
            pool.take(end)
            end.size += mapped
            return end
        address = (
            (2 if pool.small else 1) * (SEGMENT_GAP << 20)
            if end is None
            else end.address + end.size
        )
        block = _Block(address, mapped, pool, before=end)
        if end is not None:
            end.after = block
        pool.end = block
        return block

    def _reserve(self, size: int) -> None:
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def _split(self, block: _Block, size: int) -> None:
        rest = block.size - size
        pool = block.pool
        if rest < ROUND or (not pool.small and not self.expandable and rest <= SMALL_LIMIT):
            return
        tail = _Block(block.address + size, rest, pool, before=block, after=block.after)
        if block.after is not None:
            block.after.before = tail
        block.after, block.size = tail, size
        if pool.end is block:
            pool.end = tail
        pool.add(tail)


def _join(a: _Block, b: _Block) -> _Block:
    """One block where two neighbours were."""
    first, second = (a, b) if a.address < b.address else (b, a)
    first.size += second.size
    first.after = second.after
    if second.after is not None:
        second.after.before = first
    if first.pool.end is second:
        first.pool.end = first
    return first


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is at least `size`, and at least one."""
    return max(1, -(-size // multiple)) * multiple


def replay(trace: Iterable[tuple[int, int]], expandable_segments: bool = False) -> dict[str, int]:
    """The peaks of `allocated_bytes` (blocks handed out) and `reserved_bytes` (segments taken from
    the device) for a meter's trace, in which (block number, +bytes) allocates and (block number,
    -bytes) frees."""
    allocator = CachingAllocator(expandable_segments)
    held: dict[int, _Block] = {}
    for number, change in trace:
        if change > 0:
            held[number] = allocator.malloc(change)
        else:
            allocator.free(held.pop(number))
    return {"allocated_bytes": allocator.peak_allocated, "reserved_bytes": allocator.peak_reserved}
