"""Rows sorted by keys on disk, whatever their number: chunks go out sorted, and come back key by key."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_CHUNK_BYTES = 48 << 20
"""In memory, before they are sorted and written; about three times of it are needed while that is done."""
_GROUP_BYTES = 16 << 20
"""Of a table that comes back."""


class Spill:
    """One file of Arrow record batches, each of rows that share the values of the keys."""

    def __init__(
        self, path: Path, schema: Any, keys: Sequence[str], name: Callable[[tuple[Any, ...]], str]
    ) -> None:
        """Begin a file.

        Args:
            schema: of all rows.
            keys: columns of it.
            name: gives the values of the keys a name; rows of one name belong together.
        """
        import pyarrow as pa

        self._path, self._keys, self._name = path, list(keys), name
        self._rest = [column for column in schema.names if column not in keys]
        self._schema = pa.schema([schema.field(column) for column in self._rest])
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._written = 0
        self._waiting: list[Any] = []
        self._waiting_bytes = 0
        self._batches: dict[str, array[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, table: Any) -> None:
        """Take in some rows."""
        if not table.num_rows:
            return
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= _CHUNK_BYTES:
            self._write()

    def groups(self) -> Iterator[tuple[str, Iterator[Any]]]:
        """Yield each name and the rows that belong to it, in the order that they came in, as tables.

        No rows can be added after that.
        """
        import pyarrow as pa

        self._write()
        self._writer.close()
        self._file.close()
        with pa.OSFile(str(self._path), "rb") as file, pa.ipc.open_file(file) as reader:
            for name, batches in self._batches.items():
                yield name, self._tables(reader, batches)

    def _tables(self, reader: Any, places: array[int]) -> Iterator[Any]:
        import pyarrow as pa

        batches: list[Any] = []
        size = 0
        for place in places:
            batches.append(reader.get_batch(place))
            size += batches[-1].nbytes
            if size >= _GROUP_BYTES:
                yield pa.Table.from_batches(batches, self._schema)
                batches, size = [], 0
        if batches:
            yield pa.Table.from_batches(batches, self._schema)

    def _write(self) -> None:
        """Sort what is waiting by the keys, and write it."""
        import pyarrow as pa

        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        order, starts = _sorted_by(table, self._keys)
        keys = table.select(self._keys).take(order[starts[:-1]])
        rows = table.select(self._rest).take(order).combine_chunks()
        del table
        values = zip(*(map(_plain, column.to_pylist()) for column in keys.columns), strict=True)
        for one, start, stop in zip(values, starts[:-1], starts[1:], strict=True):
            (batch,) = rows.slice(start, stop - start).to_batches()
            self._writer.write_batch(batch)
            self._batches.setdefault(self._name(one), array("q")).append(self._written)
            self._written += 1


def _sorted_by(table: Any, keys: Sequence[str]) -> tuple[Any, Any]:
    """Return the rows' numbers, equal keys together, and where each combination begins; with the end."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    codes = np.zeros(table.num_rows, dtype=np.int64)
    for key in keys:
        column = table.column(key)
        if pa.types.is_floating(column.type):
            # -0.0 and 0.0 are one value: rows of both keep their order.
            column = pc.add(column.cast(pa.float64()), 0.0)
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        own = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        # Anew for each key, so that the product of their numbers is never too large.
        codes = np.unique(codes * len(encoded.dictionary) + own, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    changes = np.flatnonzero(np.diff(codes[order])) + 1
    return order, np.concatenate([[0], changes, [table.num_rows]])


def _plain(value: Any) -> Any:
    """Return the value of a key as it is written: times as ISO 8601 has them, no minus before zero."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return value + 0
    return value.isoformat()
