"""Tables, by bytes: a mini-batch never crosses the end of a file (R23-R25)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets import frames, parquet_tables
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.datasets.parquet_tables import RowGroups
from prefect_parallelrun.datasets.table_settings import Reading
from prefect_parallelrun.datasets.tables import TabularDataset
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun.planning import multi_line
from prefect_parallelrun.planning.cut import Cut, Piece
from prefect_parallelrun.planning.sql_cuts import cut_query
from prefect_parallelrun_runtime import text_files
from prefect_parallelrun_runtime.load_error import Unfit


def cut_table(
    dataset: TabularDataset, files: Sequence[FileItem], size: int, frame_file: Path
) -> Cut:
    """Return the cut of a table into mini-batches of about `size` bytes.

    Args:
        frame_file: Where a DataFrame is written, for the worker processes to read; beside it, how a
            query was cut.

    Raises:
        DatasetError: the table cannot be read, or its files differ in their columns.
    """
    if dataset.sql is not None:
        kept = frame_file.with_suffix(".json")
        return cut_query(dataset.sql, dataset.settings.limit, size, kept)
    if dataset.frame is not None:
        files = [frames.write_frame(dataset.frame, frame_file, size)]
        # One row group is one mini-batch here, whatever compression made of it.
        size = 0
    reading = dataset.settle(files)
    if dataset.settings.limit is not None:
        return _cut_first_rows(dataset, files, reading)
    if reading.reader["format"] == "parquet":
        return _cut_parquet(files, reading, size)
    return _cut_text(files, reading, size)


def _cut_first_rows(dataset: TabularDataset, files: Sequence[FileItem], reading: Reading) -> Cut:
    works = list(dataset.first_rows(files, reading))
    sizes = {file.path: file.size for file in files}
    found = [Piece(None, sizes[work["path"]], work) for work in works]
    return Cut(
        pieces=lambda: iter(found),
        count=len(found),
        items=None,
        size=sum(piece.size for piece in found),
        reader=reading.reader,
    )


def _cut_text(files: Sequence[FileItem], reading: Reading, size: int) -> Cut:
    reader = reading.reader
    quoting = text_files.row_separator(reader)
    whole = {file.path for file in files if not text_files.can_cut(file.path, reader["encoding"])}

    def pieces() -> Iterator[Piece]:
        for file in files:
            if file.path in whole:
                yield Piece(None, file.size, {"path": file.path})
                continue
            if quoting is None:
                ranges: Iterator[tuple[int, int]] = (
                    (start, min(start + size, file.size)) for start in range(0, file.size, size)
                )
            else:
                ranges = _multi_line_ranges(file, reader, size)
            for start, end in ranges:
                yield Piece(None, end - start, {"path": file.path, "start": start, "end": end})

    counts = [1 if file.path in whole else -(-file.size // size) for file in files]
    notes = []
    if whole:
        why = (
            "compressed or in an archive, in an encoding whose lines cannot be told without decoding it, "
            "or on a web server that gives no parts of files"
        )
        notes.append(_note(sorted(whole), why))
    return Cut(
        pieces=pieces,
        count=sum(counts) if quoting is None else None,
        items=None,
        size=sum(file.size for file in files),
        reader=reader,
        notes=tuple(notes),
    )


def _multi_line_ranges(
    file: FileItem, reader: dict[str, Any], size: int
) -> Iterator[tuple[int, int]]:
    planned = 0
    try:
        head = text_files.read_head(file.path, reader)
        for start, end in multi_line.ranges(file, head.start, size, ord(reader["separator"])):
            yield start, end
            planned = end
    except (OSError, Unfit, UnicodeDecodeError, DatasetError):
        # The rest is one mini-batch: whoever loads it says what is wrong, and only that one fails.
        yield planned, file.size


def _cut_parquet(files: Sequence[FileItem], reading: Reading, size: int) -> Cut:
    def pieces() -> Iterator[Piece]:
        for file in files:
            groups = reading.row_groups.get(file.path)
            if groups is None and file.size <= size:
                yield Piece(None, file.size, {"path": file.path})
                continue
            try:
                groups = groups or parquet_tables.row_groups_of(file)
            except DatasetError:
                # Whoever loads it says what is wrong, and only that mini-batch fails.
                yield Piece(None, file.size, {"path": file.path})
                continue
            if not any(groups.rows):
                continue
            for places in _runs(groups, size):
                taken = sum(groups.sizes[places.start : places.stop])
                yield Piece(None, taken, {"path": file.path, "row_groups": list(places)})

    single = [
        path
        for path, groups in reading.row_groups.items()
        if size and len(groups.sizes) == 1 and groups.sizes[0] > size
    ]
    return Cut(
        pieces=pieces,
        count=_known_count(files, reading, size),
        items=None,
        size=sum(file.size for file in files),
        reader=reading.reader,
        notes=(_note(single, "larger than mini_batch_size, but a single row group"),)
        if single
        else (),
    )


def _known_count(files: Sequence[FileItem], reading: Reading, size: int) -> int | None:
    count = 0
    for file in files:
        groups = reading.row_groups.get(file.path)
        if groups is not None:
            count += sum(1 for _ in _runs(groups, size)) if any(groups.rows) else 0
        elif file.size <= size:
            count += 1
        else:
            return None
    return count


def _runs(groups: RowGroups, size: int) -> Iterator[range]:
    """Yield runs of row groups of at most `size` bytes, or of one row group."""
    first, taken = 0, 0
    for place, length in enumerate(groups.sizes):
        if place > first and taken + length > size:
            yield range(first, place)
            first, taken = place, 0
        taken += length
    if first < len(groups.sizes):
        yield range(first, len(groups.sizes))


def _note(paths: Sequence[str], why: str) -> str:
    if len(paths) == 1:
        return f"{paths[0]} is one mini-batch: it is {why}"
    return f"{len(paths):,} files are one mini-batch each, {paths[0]} the first: they are {why}"
