"""What PyTorch's CUDA caching allocator would allocate and reserve for a trace of allocations and
frees.

The rules are those of c10/cuda/CUDACachingAllocator.cpp in its default configuration, one stream,
no failed allocation (so nothing is ever given back to the device). Requests are rounded up to 512
B. Up to 1 MiB they come from the small pool, in segments of 2 MiB; larger ones from the large pool,
in segments of 20 MiB below 10 MiB and of the request rounded up to 2 MiB from there. The smallest
free block that fits is taken, the lowest address first; its rest is split off if it is at least 512
B (small pool) or more than 1 MiB (large pool). Free neighbours merge.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

MIB = 1 << 20
ROUND = 512  # kMinBlockSize
SMALL_LIMIT = 1 * MIB  # kSmallSize: the largest request of the small pool
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT = 20 * MIB  # kLargeBuffer
LARGE_LIMIT = 10 * MIB  # kMinLargeAlloc: from here a request has its own segment
LARGE_ROUND = 2 * MIB  # kRoundLarge
SEGMENT_GAP = 1 << 40  # keeps the addresses of two segments apart, so that they never merge


_ORDER = attrgetter("size", "address")  # of free blocks: the smallest first, then the lowest


@dataclass(eq=False)
class Block:
    """A stretch of a segment; `before` and `after` are its neighbours there."""

    address: int
    size: int
    small: bool  # of which pool it is
    before: Block | None = None
    after: Block | None = None
    free: bool = True


class CachingAllocator:
    """The allocator's state. `malloc` returns a block to hand to `free`."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0
        self._free: dict[bool, list[Block]] = {True: [], False: []}  # small and large, in order
        self._segments = 0

    def malloc(self, size: int) -> Block:
        """A block for `size` > 0 bytes."""
        size = round_up(size, ROUND)
        small = size <= SMALL_LIMIT
        pool = self._free[small]
        place = bisect_left(pool, (size, -1), key=_ORDER)
        block = pool.pop(place) if place < len(pool) else self._segment(small, size)
        rest = block.size - size
        if rest >= ROUND if small else rest > SMALL_LIMIT:
            tail = Block(block.address + size, rest, small, before=block, after=block.after)
            if tail.after is not None:
                tail.after.before = tail
            block.after, block.size = tail, size
            insort(pool, tail, key=_ORDER)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Give a block back; it merges with free neighbours of its segment."""
        self.allocated -= block.size
        block.free = True
        pool = self._free[block.small]
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                del pool[bisect_left(pool, _ORDER(neighbour), key=_ORDER)]
                block = _join(*sorted((block, neighbour), key=attrgetter("address")))
        insort(pool, block, key=_ORDER)

    def empty_cache(self) -> None:
        """Give every segment back that holds nothing, as `torch.cuda.empty_cache` does."""
        for pool in self._free.values():
            whole = [block for block in pool if block.before is None and block.after is None]
            self.reserved -= sum(block.size for block in whole)
            pool[:] = [block for block in pool if block not in whole]

    def _segment(self, small: bool, size: int) -> Block:
        large = LARGE_SEGMENT if size < LARGE_LIMIT else round_up(size, LARGE_ROUND)
        wanted = SMALL_SEGMENT if small else large
        self._segments += 1
        self.reserved += wanted
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return Block(self._segments * SEGMENT_GAP, wanted, small)


def _join(first: Block, second: Block) -> Block:
    """One block where two neighbours were."""
    first.size += second.size
    first.after = second.after
    if second.after is not None:
        second.after.before = first
    return first


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is at least `size`, and at least one."""
    return max(1, -(-size // multiple)) * multiple


def replay(trace: Iterable[tuple[int, int]]) -> dict[str, int]:
    """The peaks of `allocated_bytes` (blocks handed out) and `reserved_bytes` (segments taken from
    the device) for a meter's trace, in which (block number, +bytes) allocates and (block number,
    -bytes) frees."""
    allocator = CachingAllocator()
    held: dict[int, Block] = {}
    for number, change in trace:
        if change > 0:
            held[number] = allocator.malloc(change)
        else:
            allocator.free(held.pop(number))
    return {"allocated_bytes": allocator.peak_allocated, "reserved_bytes": allocator.peak_reserved}
