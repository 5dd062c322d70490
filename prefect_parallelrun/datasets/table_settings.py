"""How a table is to be read: as the user said, and as its files settle it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun import errors
from prefect_parallelrun.datasets import parquet_tables, text_tables
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import text_files
from prefect_parallelrun_runtime.load_error import LoadError, Unfit

Format = Literal["delimited", "json_lines", "parquet", "frame", "sql"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings:
    """How a table is to be read, as the user said."""

    format: Format
    separator: str = ","
    header: bool = True
    encoding: str = "utf-8"
    multi_line: bool = False
    column_types: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    """Only so many rows, the first; None for all."""
    query: str = ""
    """SQL, for a table that is a query."""
    partition_column: str | None = None
    """By whose ranges a query is cut; None for one mini-batch."""
    partition_format: str | None = None
    """What the end of each path says, as the user wrote it; its values are columns."""
    partitioned: dict[str, Any] | None = None
    """Of what `partition_by` made: `kinds` of the keys, and `reader`, how its files are read. JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the worker processes read the table: settled once for all mini-batches."""

    reader: dict[str, Any]
    """JSON, for `prefect_parallelrun_runtime.load`."""
    row_groups: dict[str, parquet_tables.RowGroups]
    """For Parquet, by path: what was seen in the footers that were looked at."""


def settled(settings: TableSettings, files: Sequence[FileItem]) -> Reading:
    """Return how to read files of a table: names and types of the columns in them.

    Raises:
        DatasetError: the files cannot be read, or differ in their columns.
    """
    if settings.format in ("parquet", "frame"):
        reader, row_groups = parquet_tables.settle_parquet(files)
        return Reading(reader=reader, row_groups=row_groups)
    if settings.format == "json_lines":
        described: dict[str, Any] = {"encoding": settings.encoding}
        settle = text_tables.settle_json_lines
    else:
        described = {
            "separator": settings.separator,
            "header": settings.header,
            "encoding": settings.encoding,
            "multi_line": settings.multi_line,
        }
        settle = text_tables.settle_delimited
    try:
        return Reading(reader=settle(files, described, settings.column_types), row_groups={})
    except (LoadError, Unfit, OSError) as error:
        raise DatasetError(f"the columns' types cannot be settled: {error}") from error


def checked_separator(separator: object) -> str:
    """Return the character between values.

    Raises:
        ConfigError: it is none that can be found in the bytes of a line.
    """
    plain = isinstance(separator, str) and separator.isascii() and separator not in '"\r\n\0'
    if not isinstance(separator, str) or not plain or len(separator) != 1:
        raise errors.refuse("separator", separator, "use one ASCII character, no quote or line end")
    return separator


def checked_encoding(encoding: object) -> str:
    """Return the name of an encoding.

    Raises:
        ConfigError: Python knows none of that name.
    """
    if isinstance(encoding, str):
        try:
            text_files.is_bytewise(encoding)
        except (LookupError, ValueError):
            pass
        else:
            return encoding
    raise errors.refuse(
        "encoding", encoding, "use a name that Python knows, such as 'utf8' or 'latin-1'"
    )
