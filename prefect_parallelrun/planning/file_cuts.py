"""Files, so many to a mini-batch (R21, R22)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.planning.cut import Cut, Piece
from prefect_parallelrun.planning.regroup import Sizes, plain


def cut_files(files: Sequence[FileItem], per_mini_batch: int, kept: Sizes | None = None) -> Cut:
    """Return the cut of files into mini-batches of exactly so many, but for the last.

    Args:
        files: of the input.
        per_mini_batch: so many.
        kept: instead, how they were cut before.
    """
    sizes = plain(len(files), per_mini_batch) if kept is None else kept

    def pieces() -> Iterator[Piece]:
        first = 0
        for size, times in sizes:
            for _ in range(times):
                some = files[first : first + size]
                first += size
                work = {"files": [file.path for file in some]}
                yield Piece(len(some), sum(file.size for file in some), work)

    return Cut(
        pieces=pieces,
        count=sum(times for _, times in sizes),
        items=len(files),
        size=sum(file.size for file in files),
        reader={},
    )
