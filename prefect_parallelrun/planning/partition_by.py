"""A table written anew, a folder of Parquet for each combination of the values of its keys (R102)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun import checks, errors
from prefect_parallelrun.datasets import listing, reader_schema
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.datasets.hive import MARKER, HivePartitions
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.datasets.tables import TabularDataset
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun.planning.cut import Cut
from prefect_parallelrun.planning.key_cuts import with_constants
from prefect_parallelrun.planning.partition_target import (
    LocalTarget,
    Order,
    RemoteTarget,
    Target,
)
from prefect_parallelrun.planning.spill import Spill
from prefect_parallelrun.planning.table_cuts import cut_table
from prefect_parallelrun_runtime import row_groups, typed_tables
from prefect_parallelrun_runtime.load import load
from prefect_parallelrun_runtime.load_error import LoadError

_READ_BYTES = 4 << 20
"""Of the table, at a time."""


def partition_table(
    dataset: TabularDataset, partition_keys: object, storage: Storage, target: str
) -> dict[str, Any]:
    """Write a table anew, if it is not there yet; see `TabularDataset.partition_by`.

    Returns:
        `TableSettings.partitioned` of the result.

    Raises:
        ConfigError: a key cannot be one, or the target is in use.
        DatasetError: the table cannot be read or written.
    """
    keys = checks.names("partition_keys", partition_keys)
    if keys is None:
        raise checks.unfit("partition_keys", None, "a list of distinct names of columns")
    _check_outside(dataset, keys, target)
    files = dataset.list_files()
    order = _order(dataset, keys, files)
    place: Target = (
        LocalTarget(target, keys, order)
        if storage.is_local
        else RemoteTarget(target, keys, order, storage)
    )
    try:
        with (
            place.workspace() as folder,
            _rows_at_hand(dataset, files) as (source, source_files),
        ):
            there = place.holds_result()
            cut = _cut(source, source_files, folder / "table.parquet")
            kinds = _key_kinds(cut.reader, keys)
            if not there:
                _write(cut, HivePartitions(kinds), place, folder / "sorted.arrow")
    except OSError as error:
        raise DatasetError(f"target={target!r} cannot be written: {error}") from error
    return {"kinds": kinds, "reader": reader_schema.partitioned_reader(cut.reader, kinds)}


def _check_outside(dataset: TabularDataset, keys: tuple[str, ...], target: str) -> None:
    """Refuse a target that the table would be read from the next time."""
    if dataset.sql is not None:
        return
    names = [*(f"{key}=0" for key in keys), "part-0.parquet"]
    for path in dataset.paths:
        for name in ("/".join(names), f"{MARKER}0"):
            if listing.would_list(path, f"{target.rstrip('/')}/{name}"):
                raise errors.refuse(
                    "target",
                    target,
                    f"the table itself is read from {path}, and would have these files from then on; "
                    "give a folder that is not in it",
                )


@contextmanager
def _rows_at_hand(
    dataset: TabularDataset, files: list[FileItem]
) -> Iterator[tuple[TabularDataset, list[FileItem]]]:
    """Give a table and its files; the rows of a query are fetched, at once, so that all are of one moment."""
    if dataset.sql is None:
        yield dataset, files
        return
    with dataset.sql.fetched(dataset.settings.limit) as path:
        fetched = TabularDataset.from_parquet_files(path)
        yield fetched, fetched.list_files()


def _order(dataset: TabularDataset, keys: tuple[str, ...], files: list[FileItem]) -> Order:
    """Return what is to be written: where the table comes from, and what it is now."""
    parts = list(dataset.fingerprint_parts(files))
    content = parts if dataset.shows_changes(files) else [uuid4().hex]
    # The first part says how the table is read, the others what its files are.
    return Order(_digest([*keys, *parts[:1], *dataset.paths]), _digest(content))


def _digest(parts: list[str]) -> str:
    encoded = json.dumps(parts).encode()
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def _cut(dataset: TabularDataset, files: list[FileItem], frame_file: Path) -> Cut:
    cut = cut_table(dataset, files, _READ_BYTES, frame_file)
    return cut if dataset.partitions is None else with_constants(cut, dataset.partitions)


def _key_kinds(reader: dict[str, Any], keys: tuple[str, ...]) -> dict[str, str]:
    """Return the kind of each key, or refuse what cannot be one."""
    schema = reader_schema.schema_of(reader)
    index = reader_schema.index_names(schema)
    columns = [name for name in schema.names if name not in index]
    for key in keys:
        if key not in columns:
            raise errors.refuse(
                "partition_keys", list(keys), f"the table has the columns {columns}"
            )
    if len(keys) == len(columns):
        raise errors.refuse("partition_keys", list(keys), "leave a column that is none of them")
    kinds = {key: reader_schema.key_kind(schema.field(key).type) for key in keys}
    for key, kind in kinds.items():
        if kind is None:
            raise errors.refuse(
                "partition_keys",
                list(keys),
                f"{key!r} is {schema.field(key).type}; only text, numbers, truth values, dates and "
                "times can be keys",
            )
    return {key: kind for key, kind in kinds.items() if kind is not None}


def _write(cut: Cut, partitions: HivePartitions, target: Target, spill_file: Path) -> None:
    schema = reader_schema.schema_of(cut.reader)
    # Of a query they were fetched as JSON, and so marked.
    objects = [name for name, kind in cut.reader.get("columns", []) if kind == typed_tables.OBJECT]
    objects += [field.name for field in schema if row_groups.JSON in (field.metadata or {})]
    if objects:
        raise DatasetError(
            f"column {objects[0]!r} holds lists or objects, which Parquet would change: give "
            f"column_types={{{objects[0]!r}: 'string'}} to have them as text"
        )
    with Spill(spill_file, schema, list(partitions.kinds), partitions.folder) as spill:
        for table in _tables(cut, schema):
            spill.add(table)
        target.replace(
            (f"{folder}/{target.file_name}", partial(_write_file, tables))
            for folder, tables in spill.groups()
        )


def _write_file(tables: Iterator[Any], file: IO[bytes]) -> None:
    import pyarrow.parquet as pq

    first = next(tables)
    with pq.ParquetWriter(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _tables(cut: Cut, schema: Any) -> Iterator[Any]:
    """Yield the rows of a table, range by range, as Arrow tables of one schema."""
    import pyarrow as pa

    for piece in cut.pieces():
        try:
            frame = load(piece.work, cut.reader).data
        except LoadError as error:
            raise DatasetError(str(error)) from error
        frame.columns = frame.columns.map(str)
        try:
            yield pa.Table.from_pandas(frame, schema).replace_schema_metadata(None)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DatasetError(f"the table cannot be written as Parquet: {error}") from error
