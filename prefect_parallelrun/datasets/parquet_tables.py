"""How Parquet files are to be read and where they can be cut: from their footers alone."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets import remote_file, sampling
from prefect_parallelrun.datasets.concurrent import mapped
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import typed_tables
from prefect_parallelrun_runtime.source_path import for_arrow


class RowGroups(NamedTuple):
    """The row groups of one file."""

    sizes: array[int]
    """Bytes in the file."""
    rows: array[int]


def settle_parquet(files: Sequence[FileItem]) -> tuple[dict[str, Any], dict[str, RowGroups]]:
    """Return the reader of Parquet files, and the row groups of those that were looked at.

    A column of integers with a gap anywhere is float64 in every mini-batch, as pandas has it for the
    whole; where a footer does not tell of gaps, the column itself is read. Dictionary columns are read
    as their values. Of more than 2,000 files, 2,000 evenly spaced ones are looked at.

    Raises:
        DatasetError: a file is no Parquet file, or has other columns than the first.
    """
    import pyarrow as pa

    schemas: list[Any] = []
    gaps: set[str] = set()
    # pandas reads all files by what the first says of itself.
    own_dtypes: set[str] = set()
    groups: dict[str, RowGroups] = {}
    chosen = sampling.spread(files, sampling.MAX_FILES)
    footers = mapped(lambda file: _footer(file.path), chosen, at_once=remote_file.at_once(chosen))
    for file, footer in zip(chosen, footers, strict=True):
        schema = _decoded(footer.schema.to_arrow_schema())
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise DatasetError(f"{file.path}: several columns are called {twice[0]!r}; rename them")
        if not schemas:
            own_dtypes = _pandas_own(schema)
        elif sorted(schema.names) != sorted(schemas[0].names):
            problem = typed_tables.other_columns(schema.names, schemas[0].names)
            raise DatasetError(f"{file.path}: {problem}")
        if not any(schema.equals(known) for known in schemas):
            schemas.append(schema)
        names = [name for name in _without_nulls(schema) if name not in gaps | own_dtypes]
        seen = _look_at(footer, file, names)
        groups[file.path] = seen.groups
        gaps |= seen.gaps | _gaps_in_data(file.path, footer, seen.silent)
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DatasetError(f"the Parquet files differ in the type of a column: {error}") from error
    unified, objects = _in_pandas(unified, gaps)
    reader = {
        "format": "parquet",
        "schema": base64.b64encode(unified.serialize().to_pybytes()).decode(),
        "objects": objects,
        "full": [name for name in _without_nulls(unified) if name not in gaps | own_dtypes],
    }
    return reader, groups


def row_groups_of(file: FileItem) -> RowGroups:
    """Return the row groups of a file.

    Raises:
        DatasetError: it is no Parquet file.
    """
    return _look_at(_footer(file.path), file, ()).groups


def _footer(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(for_arrow(path))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {error}") from error


class _Seen(NamedTuple):
    """What a footer tells."""

    groups: RowGroups
    gaps: set[str]
    """Columns in which a value is missing."""
    silent: dict[str, list[int]]
    """By other columns: the row groups of which it does not tell whether a value is missing."""


def _look_at(footer: Any, file: FileItem, names: Sequence[str]) -> _Seen:
    """Return what a footer tells of its row groups, and of gaps in some columns.

    One pass that keeps no part of the footer: of a large one they are many, and costly to make.
    """
    described = [footer.schema.column(place) for place in range(footer.num_columns)]
    places = {column.path: place for place, column in enumerate(described)}
    wanted = [
        (name, places[name]) for name in names if described[places[name]].max_definition_level
    ]
    rows, starts = array("q"), array("q")
    gaps: set[str] = set()
    silent: dict[str, list[int]] = {}
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        rows.append(group.num_rows)
        if not described:
            continue
        first = group.column(0)
        starts.append(_start(first))
        if not rows[-1]:
            continue  # nobody writes statistics of no rows
        for name, place in wanted:
            statistics = (group.column(place) if place else first).statistics
            if statistics is None or not statistics.has_null_count:
                silent.setdefault(name, []).append(number)
            elif statistics.null_count:
                gaps.add(name)
        if gaps:
            wanted = [(name, place) for name, place in wanted if name not in gaps]
    unknown = {name: some for name, some in silent.items() if name not in gaps}
    return _Seen(RowGroups(_sizes(footer, file, starts), rows), gaps, unknown)


def _sizes(footer: Any, file: FileItem, starts: array[int]) -> array[int]:
    """Return the bytes of each row group: to where the next one begins, as asking each column takes far longer."""
    if not starts:
        return array("q", [0] * footer.num_row_groups)
    ends = [*starts[1:], file.size - footer.serialized_size]
    sizes = array("q", [end - start for start, end in zip(starts, ends, strict=True)])
    if min(sizes) < 0:
        numbers = range(footer.num_row_groups)
        return array("q", [footer.row_group(number).total_byte_size for number in numbers])
    return sizes


def _start(column: Any) -> int:
    data: int = column.data_page_offset
    dictionary: int | None = column.dictionary_page_offset
    return data if not dictionary else min(data, dictionary)


def _decoded(schema: Any) -> Any:
    """Return a schema with the values' types for dictionary columns: each file has its own dictionary."""
    import pyarrow as pa

    for place, field in enumerate(schema):
        if pa.types.is_dictionary(field.type):
            schema = schema.set(place, field.with_type(field.type.value_type))
    return schema


def _without_nulls(schema: Any) -> list[str]:
    """Return the columns whose dtype in pandas cannot say that a value is missing."""
    import pyarrow as pa

    types = pa.types
    return [
        field.name
        for field in schema
        if types.is_integer(field.type) or types.is_boolean(field.type)
    ]


def _gaps_in_data(path: str, footer: Any, unknown: Mapping[str, Sequence[int]]) -> set[str]:
    """Return those of the columns in which a value is missing, by reading these columns alone.

    Args:
        unknown: Row groups to look at, by column.
    """
    if not unknown:
        return set()
    import pyarrow as pa
    import pyarrow.parquet as pq

    gaps: set[str] = set()
    groups = sorted({place for some in unknown.values() for place in some})
    try:
        with pq.ParquetFile(for_arrow(path), metadata=footer) as file:
            for batch in file.iter_batches(row_groups=groups, columns=list(unknown)):
                gaps |= {name for name in unknown if batch.column(name).null_count}
                if len(gaps) == len(unknown):
                    break
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {error}") from error
    return gaps


def _pandas_own(schema: Any) -> set[str]:
    """Return the columns that pandas wrote from a dtype of its own, such as Int64: these have gaps as they are."""
    described = (schema.pandas_metadata or {}).get("columns", [])
    return {
        str(column["field_name"])
        for column in described
        if column["numpy_type"][:1].isupper() or "[pyarrow]" in column["numpy_type"]
        or column["numpy_type"] == "boolean"
    }  # fmt: skip


def _in_pandas(schema: Any, gaps: set[str]) -> tuple[Any, list[str]]:
    """Return the schema with floats for integers that have gaps, and the columns of truth values that have."""
    import pyarrow as pa

    objects: list[str] = []
    for place, field in enumerate(schema):
        if field.name not in gaps:
            continue
        if pa.types.is_boolean(field.type):
            objects.append(field.name)
        elif pa.types.is_integer(field.type):
            schema = schema.set(place, field.with_type(pa.float64()))
    return schema, objects
