"""How a plan looks from afar: how large its mini-batches are, and which are the largest."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from prefect_parallelrun.models import MiniBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBin:
    """How many mini-batches are of about one size."""

    least: int
    """Bytes."""
    below: int
    """Bytes: every mini-batch of the bin has fewer."""
    mini_batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Counts and sizes of a plan."""

    mini_batches: int
    items: int | None
    """None for rows, which nobody has counted."""
    bytes: int
    """To read, in all mini-batches together."""
    sizes: tuple[SizeBin, ...]
    """Ascending, each twice as large as the one before; empty ones between two others are among them."""
    largest: tuple[MiniBatch, ...]
    """Largest first; of equal ones the earlier."""


def outline(mini_batches: Iterable[MiniBatch], *, items: int | None, largest: int) -> Outline:
    """Return how mini-batches look from afar, in one pass and in memory that does not grow with them.

    Args:
        mini_batches: of a plan.
        items: how many items they have, where that is known.
        largest: so many of the largest are named.
    """
    count = size = 0
    bits: Counter[int] = Counter()

    def counted() -> Iterator[MiniBatch]:
        nonlocal count, size
        for one in mini_batches:
            count += 1
            size += one.size
            bits[one.size.bit_length()] += 1
            yield one

    stream = counted()
    found = heapq.nlargest(largest, stream, key=attrgetter("size"))
    deque(stream, maxlen=0)  # of the none largest, nobody had to look at any
    return Outline(
        mini_batches=count, items=items, bytes=size, sizes=_bins(bits), largest=tuple(found)
    )


def _bins(bits: Counter[int]) -> tuple[SizeBin, ...]:
    if not bits:
        return ()
    lengths = range(min(bits), max(bits) + 1)
    return tuple(
        SizeBin(least=(1 << length) >> 1, below=1 << length, mini_batches=bits[length])
        for length in lengths
    )
