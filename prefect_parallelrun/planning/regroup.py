"""The mini-batches of files that an earlier run had, kept where they still hold (R202)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import NamedTuple

from prefect_parallelrun.datasets.dataset import FileItem

Sizes = Sequence[tuple[int, int]]
"""How an input of files is cut: (files of a mini-batch, how many such mini-batches come one after the other)."""


class Kept(NamedTuple):
    """Mini-batches one after the other that are as they were."""

    there: int
    """Index of the first in the earlier run."""
    here: int
    """Index of the first now."""
    length: int
    """How many."""

    def is_followed_by(self, other: Kept) -> bool:
        """Return whether others come right behind these, in both runs."""
        return (self.there + self.length, self.here + self.length) == other[:2]


class Regrouped(NamedTuple):
    """How an input of files is cut, following an earlier run."""

    sizes: list[tuple[int, int]]
    kept: list[Kept]
    """Both indices ascend."""
    there: int
    """How many mini-batches the input had."""
    here: int
    """How many it has."""


def plain(files: int, per_mini_batch: int) -> list[tuple[int, int]]:
    """Return the sizes of mini-batches of exactly so many files, but for the last."""
    full, rest = divmod(files, per_mini_batch)
    return [run for run in ((per_mini_batch, full), (rest, 1)) if all(run)]


def regroup(
    before: Iterable[FileItem], sizes: Sizes | None, now: Sequence[FileItem], per_mini_batch: int
) -> Regrouped:
    """Return the cut that keeps each mini-batch all of whose files are there unchanged, with none between them.

    What is left between two that are kept is cut anew, so files stay in order.

    Args:
        before: the files of the earlier run, in the order of their paths.
        sizes: how they were cut; None: so many to a mini-batch.
        now: the files that are there now, in the order of their paths.
        per_mini_batch: files of a mini-batch that is cut anew.

    Raises:
        ValueError: the earlier run had other files than its sizes say.
    """
    result = _Result()
    there = place = settled = 0
    for some in _groups(before, sizes, per_mini_batch):
        while place < len(now) and now[place].path < some[0].path:
            place += 1
        if _same(some, now[place : place + len(some)]):
            result.cut(plain(place - settled, per_mini_batch))
            result.keep(there, len(some))
            place += len(some)
            settled = place
        there += 1
    result.cut(plain(len(now) - settled, per_mini_batch))
    return Regrouped(result.sizes, result.kept, there, result.count)


class _Result:
    """The cut so far; what is alike and follows one another is counted."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.kept: list[Kept] = []
        self.count = 0

    def cut(self, runs: Sizes) -> None:
        for size, times in runs:
            alike = self.sizes and self.sizes[-1][0] == size
            more = self.sizes.pop()[1] if alike else 0
            self.sizes.append((size, more + times))
            self.count += times

    def keep(self, there: int, size: int) -> None:
        one = Kept(there, self.count, 1)
        if self.kept and self.kept[-1].is_followed_by(one):
            one = Kept(*self.kept[-1][:2], self.kept.pop().length + 1)
        self.kept.append(one)
        self.cut([(size, 1)])


def is_same(before: FileItem, now: FileItem) -> bool:
    """Return whether a file is as it was; not where its storage tells nothing by which a change would show."""
    return (
        before.path == now.path
        and before.size == now.size
        and (before.etag or before.modified_ns) == (now.etag or now.modified_ns) != 0
    )


def _same(before: Sequence[FileItem], now: Sequence[FileItem]) -> bool:
    return len(before) == len(now) and all(map(is_same, before, now))


def _groups(
    files: Iterable[FileItem], sizes: Sizes | None, per_mini_batch: int
) -> Iterator[list[FileItem]]:
    rest = iter(files)
    each = (
        repeat(per_mini_batch)
        if sizes is None
        else (size for size, times in sizes for _ in range(times))
    )
    for size in each:
        some = list(islice(rest, size))
        if sizes is None and not some:
            return
        if sizes is not None and len(some) != size:
            raise ValueError("it has fewer files than its mini-batches")
        yield some
    if next(rest, None) is not None:
        raise ValueError("it has more files than its mini-batches")
