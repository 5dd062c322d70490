"""Files, so many to a mini-batch (R21, R22)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.planning.cut import Cut, Piece


def cut_files(files: Sequence[FileItem], per_mini_batch: int) -> Cut:
    """Return the cut of files into mini-batches of exactly so many, but for the last."""

    def pieces() -> Iterator[Piece]:
        for first in range(0, len(files), per_mini_batch):
            some = files[first : first + per_mini_batch]
            work = {"files": [file.path for file in some]}
            yield Piece(len(some), sum(file.size for file in some), work)

    return Cut(
        pieces=pieces,
        count=-(-len(files) // per_mini_batch),
        items=len(files),
        size=sum(file.size for file in files),
        reader={},
    )
