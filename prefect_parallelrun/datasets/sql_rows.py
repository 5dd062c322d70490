"""The rows of a query, streamed into a Parquet file: neither this process nor the driver holds them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets import sql_values
from prefect_parallelrun.datasets.column_types import NO_VALUE, Evidence
from prefect_parallelrun_runtime import typed_tables
from prefect_parallelrun_runtime.load_error import LoadError, Unfit

if TYPE_CHECKING:
    from sqlalchemy import CursorResult

_FIRST_ROWS = 50
_MOST_ROWS = 5_000
_CHUNK_BYTES = 1 << 20
"""So much is fetched at once, as Arrow has it; Python's objects take several times that."""
_ROW_GROUP_BYTES = 4 << 20

_JSON = frozenset({114, 3802})
"""What PostgreSQL calls its types `json` and `jsonb`."""

Chunk = dict[str, Sequence[Any]]
"""Values by column."""


def chunks(result: CursorResult[Any], limit: int | None = None) -> Iterator[tuple[int, Chunk]]:
    """Yield the number of the first row and the values of some rows, until the last row or the limit.

    How many, the size of those before tells; the rows of one chunk are in memory at once.

    Raises:
        LoadError: two columns have the same name.
    """
    names = column_names(result)
    first, wanted = 0, _FIRST_ROWS
    while limit is None or first < limit:
        rows = result.fetchmany(wanted if limit is None else min(wanted, limit - first))
        if not rows:
            return
        yield first, dict(zip(names, zip(*rows, strict=True), strict=True))
        first += len(rows)
        per_row = max(
            1, sum(_size(value) for row in rows[-20:] for value in row) // len(rows[-20:])
        )
        wanted = min(max(1, _CHUNK_BYTES // per_row), _MOST_ROWS, 4 * wanted)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | memoryview) else 8


def column_names(result: CursorResult[Any]) -> list[str]:
    """Return the names of a result's columns.

    Raises:
        LoadError: two are the same.
    """
    names = list(result.keys())
    # In a subquery SQLite calls the second of two columns `a` itself `a:1`.
    twice = [name for name in names if names.count(name) > 1 or f"{name}:1" in names]
    if twice:
        raise LoadError(
            f"two columns are called {twice[0]!r}: give them names of their own with AS"
        )
    return names


def declared(result: CursorResult[Any]) -> dict[str, Evidence]:
    """Return what a result shows of its columns before its first row.

    JSON may be anything in any row, and only PostgreSQL's drivers return it as more than text.

    Raises:
        LoadError: two columns have the same name.
    """
    names = column_names(result)
    codes: list[Any] = [None] * len(names)
    if result.context.dialect.name == "postgresql" and result.cursor is not None:
        codes = [one[1] for one in result.cursor.description]
    return {
        name: Evidence(typed_tables.OBJECT if code in _JSON else NO_VALUE, False)
        for name, code in zip(names, codes, strict=True)
    }


def write_typed(
    result: CursorResult[Any], columns: typed_tables.Columns, target: Path, limit: int | None
) -> None:
    """Write rows whose columns have types already.

    Raises:
        LoadError: the columns are others now.
        Unfit: a value does not fit its column; the row is the place in the result.
    """
    expected, found = [name for name, _ in columns], column_names(result)
    if sorted(found) != sorted(expected):
        raise LoadError(
            f"its columns are not those that it had when the step was planned: {found!r}, not {expected!r}"
        )
    with _Writer(columns, target) as writer:
        for first, chunk in chunks(result, limit):
            writer.add([_array(first, name, chunk[name], kind) for name, kind in columns])


def write_typing(
    result: CursorResult[Any], given: Mapping[str, str], target: Path, limit: int | None
) -> None:
    """Write rows with the types that all of them together show.

    What the first rows show is how they are written; where later ones show more, the earlier are
    written anew at the end, from the file.

    Args:
        given: types that the user set.

    Raises:
        LoadError: two columns have the same name.
        Unfit: a value does not fit a type that the user set.
    """
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f"{target.name}-", ignore_cleanup_errors=True
    ) as folder:
        pieces, evidence = _pieces(result, given, Path(folder), limit)
        final = [
            [name, _final(kind, evidence[name], name in given)]
            for name, kind in _columns(evidence, given)
        ]
        if len(pieces) == 1 and _same_fields(pieces[0][0], final):
            pieces[0][1].rename(target)
        else:
            _write_anew(pieces, final, target)


def _pieces(
    result: CursorResult[Any], given: Mapping[str, str], folder: Path, limit: int | None
) -> tuple[list[tuple[typed_tables.Columns, Path]], dict[str, Evidence]]:
    """Write rows to files, one for each set of types on the way; return these, and what all rows show."""
    evidence = declared(result)
    with ExitStack() as files:
        writers: list[_Writer] = []
        for first, chunk in chunks(result, limit):
            evidence = {
                name: known.joined(sql_values.evidence_of(chunk[name]))
                for name, known in evidence.items()
            }
            columns = _columns(evidence, given)
            if not writers or not writers[-1].fits(columns):
                files.close()
                writers.append(files.enter_context(_Writer(columns, folder / str(len(writers)))))
            writers[-1].add(
                [
                    _array(first, name, chunk[name], kind, gaps_fit=name not in given)
                    for name, kind in columns
                ]
            )
    return [(writer.columns, writer.path) for writer in writers], evidence


def _columns(evidence: Mapping[str, Evidence], given: Mapping[str, str]) -> typed_tables.Columns:
    return [[name, given.get(name) or known.kind] for name, known in evidence.items()]


def _final(kind: str, evidence: Evidence, given: bool) -> str:
    """Return the kind that a column has in the file; of numbers with gaps pandas makes floats itself."""
    settled = evidence.settled()
    return settled if settled == "string" and not given else kind


def _same_fields(some: typed_tables.Columns, others: typed_tables.Columns) -> bool:
    fields = (
        [sql_values.field_of(name, kind) for name, kind in columns] for columns in (some, others)
    )
    one, other = fields
    return all(a.equals(b, check_metadata=True) for a, b in zip(one, other, strict=True))


def _write_anew(
    pieces: Sequence[tuple[typed_tables.Columns, Path]], columns: typed_tables.Columns, target: Path
) -> None:
    import pyarrow.parquet as pq

    with _Writer(columns, target) as writer:
        for before, path in pieces:
            # Not pre-buffered, nor by `iter_batches`: both hold far more than one row group.
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number, use_threads=False).combine_chunks()
                    writer.add(
                        [
                            _kept_or_made_anew(table.column(place), then, now)
                            for place, (then, now) in enumerate(zip(before, columns, strict=True))
                        ]
                    )


def _kept_or_made_anew(column: Any, then: list[str], now: list[str]) -> Any:
    if _same_fields([then], [now]):
        return column.combine_chunks()
    return sql_values.array_of(now[0], column.to_pylist(), now[1], gaps_fit=True)


def _array(first: int, name: str, values: Sequence[Any], kind: str, **how: bool) -> Any:
    try:
        return sql_values.array_of(name, values, kind, **how)
    except Unfit as unfit:
        if unfit.row is not None:
            unfit.row += first
        raise


class _Writer:
    """A Parquet file that grows by row groups of some size; rows wait in memory for theirs."""

    def __init__(self, columns: typed_tables.Columns, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.columns, self.path = columns, path
        self._schema = pa.schema([sql_values.field_of(name, kind) for name, kind in columns])
        # The file is on the node for a moment only: to read it fast counts more than its size.
        self._file = pq.ParquetWriter(path, self._schema, compression="lz4")
        self._waiting: list[Any] = []
        self._bytes = 0

    def fits(self, columns: typed_tables.Columns) -> bool:
        """Return whether columns of these kinds go into this file."""
        return _same_fields(self.columns, columns)

    def add(self, arrays: Sequence[Any]) -> None:
        """Add rows, as one array for each column.

        Raises:
            LoadError: the folder was removed.
        """
        import pyarrow as pa

        if not self.path.parent.exists():
            raise LoadError("nobody waits for its rows any more")  # and nobody reads this
        batch = pa.record_batch(arrays, schema=self._schema)
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= _ROW_GROUP_BYTES:
            self._write()

    def close(self) -> None:
        """Write what waits, and end the file."""
        self._write()
        self._file.close()

    def _write(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._file.write_table(pa.Table.from_batches(self._waiting))
            self._waiting, self._bytes = [], 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
