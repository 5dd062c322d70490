"""How Parquet files are to be read and where they can be cut: from their footers alone."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets import sampling
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import row_groups


class RowGroups(NamedTuple):
    """The row groups of one file."""

    sizes: array[int]
    """Bytes in the file."""
    rows: array[int]


def settle_parquet(files: Sequence[FileItem]) -> tuple[dict[str, Any], dict[str, RowGroups]]:
    """Return the reader of Parquet files, and the row groups of those that were looked at.

    A column of integers with a gap anywhere is float64 in every mini-batch, as pandas has it for the
    whole. Of more than 2,000 files, 2,000 evenly spaced ones are looked at.

    Raises:
        DatasetError: a file is no Parquet file, or has other columns than the first.
    """
    import pyarrow as pa

    schemas: list[Any] = []
    gaps: set[str] = set()
    groups: dict[str, RowGroups] = {}
    for file in sampling.spread(files, sampling.MAX_FILES):
        footer = _footer(file.path)
        schema = footer.schema.to_arrow_schema()
        if schemas and sorted(schema.names) != sorted(schemas[0].names):
            problem = row_groups.other_columns(schema.names, schemas[0].names)
            raise DatasetError(f"{file.path}: {problem}")
        if not any(schema.equals(known) for known in schemas):
            schemas.append(schema)
        gaps |= _columns_with_gaps(footer, schema, gaps)
        groups[file.path] = _row_groups(footer, file)
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DatasetError(f"the Parquet files differ in the type of a column: {error}") from error
    unified, objects = _in_pandas(unified, gaps)
    encoded = base64.b64encode(unified.serialize().to_pybytes()).decode()
    return {"format": "parquet", "schema": encoded, "objects": objects}, groups


def row_groups_of(file: FileItem) -> RowGroups:
    """Return the row groups of a file.

    Raises:
        DatasetError: it is no Parquet file.
    """
    return _row_groups(_footer(file.path), file)


def _footer(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {error}") from error


def _row_groups(footer: Any, file: FileItem) -> RowGroups:
    groups = [footer.row_group(place) for place in range(footer.num_row_groups)]
    rows = array("q", [group.num_rows for group in groups])
    if not footer.num_columns:
        return RowGroups(array("q", [0] * len(groups)), rows)
    # Where the next one begins tells the bytes of a row group; asking each column takes far longer.
    starts = [_start(group.column(0)) for group in groups]
    ends = [*starts[1:], file.size - footer.serialized_size]
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    if any(size < 0 for size in sizes):
        sizes = [group.total_byte_size for group in groups]
    return RowGroups(array("q", sizes), rows)


def _start(column: Any) -> int:
    data: int = column.data_page_offset
    dictionary: int | None = column.dictionary_page_offset
    return data if not dictionary else min(data, dictionary)


def _columns_with_gaps(footer: Any, schema: Any, known: set[str]) -> set[str]:
    """Return the columns of integers or truth values in which a value is missing, or may be."""
    import pyarrow as pa

    own_dtypes = _pandas_own(schema)
    places = {footer.schema.column(place).path: place for place in range(footer.num_columns)}
    gaps: set[str] = set()
    groups = [footer.row_group(place) for place in range(footer.num_row_groups)]
    for field in schema:
        if not (pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)):
            continue
        if not field.nullable or field.name in known or field.name in own_dtypes:
            continue
        place = places[field.name]
        for group in groups:
            statistics = group.column(place).statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                gaps.add(field.name)
                break
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
        else:
            schema = schema.set(place, field.with_type(pa.float64()))
    return schema, objects
