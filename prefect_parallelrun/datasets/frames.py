"""DataFrames as inputs: written once, as Parquet, for the worker processes to read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd

_WITH_GAPS = {"i": "Int64", "u": "UInt64", "b": "boolean"}


def without_categories(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a DataFrame in which categories are the values that they stand for.

    Whole numbers and truth values with gaps get the dtypes of pandas for these: nothing is rounded.
    """
    import numpy as np
    import pandas as pd

    frame = frame.copy()
    for place in range(frame.shape[1]):
        column = frame.iloc[:, place]
        if not isinstance(column.dtype, pd.CategoricalDtype):
            continue
        categories = column.dtype.categories
        plain = isinstance(categories.dtype, np.dtype)
        if plain and column.hasnans and categories.dtype.kind in "iub":
            # Not by astype(), which makes floats of whole numbers on the way.
            some = categories.astype(_WITH_GAPS[categories.dtype.kind]).array
            frame.isetitem(place, some.take(column.cat.codes, allow_fill=True))
        else:
            frame.isetitem(place, column.astype(categories.dtype).array)
    return frame


def write_frame(frame: pd.DataFrame, path: Path, row_group_bytes: int) -> FileItem:
    """Write a DataFrame, without its index, in row groups of about so many bytes in memory.

    Raises:
        DatasetError: a column holds what Parquet has no type for.
    """
    import pyarrow.parquet as pq

    table = _arrow_table(frame)
    rows = max(1, table.num_rows * row_group_bytes // max(1, table.nbytes))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    status = path.stat()
    return FileItem(str(path), status.st_size, status.st_mtime_ns)


def digest_of(frame: pd.DataFrame) -> str:
    """Return a digest of a DataFrame's columns, dtypes and values.

    Raises:
        DatasetError: see `write_frame`.
    """
    import pyarrow as pa

    digest = hashlib.blake2b()
    table = _arrow_table(frame)

    class Hashed:
        """A file that keeps nothing but the digest of what is written to it."""

        closed = False

        def write(self, data: Any) -> int:
            digest.update(data)
            return len(data)

        def flush(self) -> None:
            """Do nothing: there is no buffer."""

    with pa.ipc.new_stream(pa.PythonFile(Hashed(), mode="w"), table.schema) as stream:
        stream.write_table(table)
    return digest.hexdigest()


def _arrow_table(frame: pd.DataFrame) -> Any:
    import pyarrow as pa

    try:
        # The index, 0, 1, 2, …, takes no column here; without it the kind of column names is lost.
        return pa.Table.from_pandas(frame)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DatasetError(f"the DataFrame cannot be written as Parquet: {error}") from error
