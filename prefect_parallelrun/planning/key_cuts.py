"""Mini-batches by the values of partition keys: each combination is exactly one (R102)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.datasets.partitions import Partitions
from prefect_parallelrun.datasets.tables import TabularDataset
from prefect_parallelrun.planning.cut import Cut, Piece

_Groups = dict[tuple[Any, ...], list[int]]
"""Places of the files by the values of the keys, in order of the first file."""


def cut_files_by_key(files: Sequence[FileItem], partitions: Partitions, keys: Sequence[str]) -> Cut:
    """Return the cut of files into one mini-batch for each combination of the keys' values.

    Files keep their order, and mini-batches are in the order of their first file. Keys that are not
    named do not count.

    Raises:
        DatasetError: the path of a file is another than it should be.
    """
    groups = _grouped(files, partitions, keys)

    def pieces() -> Iterator[Piece]:
        for values, places in groups.items():
            some = [files[place] for place in places]
            work = {
                "files": [file.path for file in some],
                "key": dict(zip(keys, values, strict=True)),
            }
            yield Piece(len(some), sum(file.size for file in some), work)

    return Cut(
        pieces=pieces,
        count=len(groups),
        items=len(files),
        size=sum(file.size for file in files),
        reader={"kinds": partitions.kinds},
    )


def cut_table_by_key(
    dataset: TabularDataset,
    files: Sequence[FileItem],
    partitions: Partitions,
    keys: Sequence[str],
) -> Cut:
    """Return the cut of a table into one mini-batch for each combination of the keys' values.

    Raises:
        DatasetError: the path of a file is another than it should be, or the table cannot be read.
    """
    reading = dataset.settle(files)
    limits: list[int] | None = None
    if dataset.settings.limit is not None:
        first = {work["path"]: work["rows"] for work in dataset.first_rows(files, reading)}
        files = [file for file in files if file.path in first]
        limits = [first[file.path] for file in files]
    groups = _grouped(files, partitions, keys)

    def pieces() -> Iterator[Piece]:
        for values, places in groups.items():
            some = [files[place] for place in places]
            work: dict[str, Any] = {
                "paths": [file.path for file in some],
                "key": dict(zip(keys, values, strict=True)),
                "constants": [partitions.values(file.path) for file in some],
            }
            if limits is not None:
                work["rows"] = [limits[place] for place in places]
            yield Piece(None, sum(file.size for file in some), work)

    return Cut(
        pieces=pieces,
        count=len(groups),
        items=None,
        size=sum(file.size for file in files),
        reader=reading.reader,
    )


def with_constants(cut: Cut, partitions: Partitions) -> Cut:
    """Return the cut of a table by size with the columns that only the files' paths tell."""

    def pieces() -> Iterator[Piece]:
        for piece in cut.pieces():
            constants = partitions.values(piece.work["path"])
            yield piece._replace(work={**piece.work, "constants": constants})

    return replace(cut, pieces=pieces)


def _grouped(files: Sequence[FileItem], partitions: Partitions, keys: Sequence[str]) -> _Groups:
    groups: _Groups = {}
    for place, file in enumerate(files):
        values = partitions.values(file.path)
        groups.setdefault(tuple(values[key] for key in keys), []).append(place)
    return groups
