"""The mini-batches of a step, in input order, made as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from prefect_parallelrun import errors
from prefect_parallelrun.datasets import sizes
from prefect_parallelrun.datasets.dataset import Dataset, FileItem
from prefect_parallelrun.datasets.partitions import check_keys
from prefect_parallelrun.datasets.tables import TabularDataset
from prefect_parallelrun.models import MiniBatch, Reuse
from prefect_parallelrun.planning.cut import Cut, Piece
from prefect_parallelrun.planning.file_cuts import cut_files
from prefect_parallelrun.planning.key_cuts import cut_files_by_key, cut_table_by_key, with_constants
from prefect_parallelrun.planning.outline import Outline, outline
from prefect_parallelrun.planning.regroup import Sizes
from prefect_parallelrun.planning.table_cuts import cut_table


class Plan:
    """All mini-batches of a step; each iteration gives them anew, from index 0, and keeps none."""

    def __init__(self, cuts: Sequence[Cut], kind: Literal["file", "tabular", "rank"]) -> None:
        self._cuts = tuple(cuts)
        self._count: int | None = None
        self.kind = kind
        """What an item is: a file, a row, or a mini-batch without input."""
        self.reuse: Reuse | None = None
        """What would be reused, and why not more; None for the plan of a run, which knows it already."""
        self.note: Callable[[MiniBatch], None] | None = None
        """Gets each mini-batch before it is handed out."""

    def __iter__(self) -> Iterator[MiniBatch]:
        index = 0
        for place, cut in enumerate(self._cuts):
            input_index = -1 if self.kind == "rank" else place
            for items, size, work in cut.pieces():
                one = MiniBatch(index, input_index, items, size, work)
                if self.note is not None:
                    self.note(one)
                yield one
                index += 1
        self._count = index

    def __len__(self) -> int:
        """Return the number of mini-batches; where only reading tells it, after one pass over the input."""
        if self._count is None:
            self._count = sum(
                cut.count if cut.count is not None else sum(1 for _ in cut.pieces())
                for cut in self._cuts
            )
        return self._count

    @property
    def known_count(self) -> int | None:
        """Number of mini-batches, or None where only reading the input would tell; never reads."""
        if self._count is not None:
            return self._count
        known = [cut.count for cut in self._cuts if cut.count is not None]
        return sum(known) if len(known) == len(self._cuts) else None

    def outline(self, *, largest: int = 10) -> Outline:
        """Return counts, a histogram of sizes, and the largest mini-batches; one pass over the plan."""
        return outline(self, items=self.items, largest=largest)

    @property
    def readers(self) -> list[dict[str, Any]]:
        """How to read each input, for `prefect_parallelrun_runtime.load`; JSON."""
        return [cut.reader for cut in self._cuts]

    @property
    def items(self) -> int | None:
        """Number of items; None for rows, which nobody has counted yet."""
        known = [cut.items for cut in self._cuts if cut.items is not None]
        return sum(known) if len(known) == len(self._cuts) else None

    @property
    def size(self) -> int:
        """Bytes of all inputs."""
        return sum(cut.size for cut in self._cuts)

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the inputs are cut."""
        return [note for cut in self._cuts for note in cut.notes]


def make_plan(
    inputs: Sequence[Dataset],
    listings: Sequence[Sequence[FileItem]],
    *,
    mini_batch_size: int | str | None,
    scratch: Path,
    partition_keys: Sequence[str] | None = None,
    rank_mini_batch_count: int | None = None,
    cuts: Sequence[Sizes | None] | None = None,
) -> Plan:
    """Return the plan for a step's inputs; each is cut separately (R47).

    Looks at listings, samples and footers. A table without rows gives no mini-batch, or empty ones.

    Args:
        inputs: Datasets of one kind.
        listings: What `list_files` returned for each.
        mini_batch_size: Files, or bytes of a table; None for the default (10, 1 MB).
        scratch: Folder for DataFrames, which the worker processes read from there.
        partition_keys: Each combination of their values is one mini-batch, instead (R102).
        rank_mini_batch_count: So many mini-batches of nothing; inputs do not count then (R105).
        cuts: Of each input of files, how it was cut before, where that is kept (R202).

    Raises:
        ConfigError: the inputs are of two kinds, or the size or the keys do not suit them.
        DatasetError: an input cannot be read, or a file's path is not as its `partition_format` says.
    """
    if rank_mini_batch_count is not None:
        return Plan([_cut_nothing(rank_mini_batch_count)], "rank")
    if not inputs:
        raise errors.refuse("inputs", list(inputs), "give at least one dataset")
    kinds = {dataset.kind for dataset in inputs}
    if len(kinds) > 1:
        raise errors.refuse(
            "inputs", list(inputs), "all must be FileDatasets, or all TabularDatasets"
        )
    _check_paths(inputs, listings)
    made = [
        _cut_by_key(dataset, files, partition_keys)
        if partition_keys is not None
        else _cut_by_size(
            dataset,
            files,
            mini_batch_size,
            frame_file(scratch, place, dataset),
            None if cuts is None else cuts[place],
        )
        for place, (dataset, files) in enumerate(zip(inputs, listings, strict=True))
    ]
    return Plan(made, kinds.pop())


def frame_file(scratch: Path, place: int, dataset: Dataset) -> Path:
    """Return where the DataFrame of an input is kept, for nodes to read.

    Args:
        scratch: see `make_plan`.
        place: of the input.
        dataset: the input.
    """
    return scratch / f"{place}-{dataset.name or 'table'}.parquet"


def _check_paths(inputs: Sequence[Dataset], listings: Sequence[Sequence[FileItem]]) -> None:
    """Refuse a file whose path is not as its dataset says, before anything is read."""
    for dataset, files in zip(inputs, listings, strict=True):
        if dataset.partitions is not None:
            for file in files:
                dataset.partitions.values(file.path)


def _cut_by_size(
    dataset: Dataset,
    files: Sequence[FileItem],
    size: int | str | None,
    frame_file: Path,
    kept: Sizes | None,
) -> Cut:
    if isinstance(dataset, TabularDataset):
        cut = cut_table(dataset, files, sizes.bytes_per_mini_batch(size), frame_file)
        return cut if dataset.partitions is None else with_constants(cut, dataset.partitions)
    return cut_files(files, sizes.files_per_mini_batch(size), kept)


def _cut_by_key(dataset: Dataset, files: Sequence[FileItem], keys: Sequence[str]) -> Cut:
    check_keys(keys, dataset.partition_keys, dataset)
    partitions = dataset.partitions
    assert partitions is not None  # it has keys
    if isinstance(dataset, TabularDataset):
        return cut_table_by_key(dataset, files, partitions, keys)
    return cut_files_by_key(files, partitions, keys)


def _cut_nothing(count: int) -> Cut:
    return Cut(
        pieces=lambda: (Piece(1, 0, {"rank": rank}) for rank in range(count)),
        count=count,
        items=count,
        size=0,
        reader={},
    )
