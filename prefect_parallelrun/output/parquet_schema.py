"""The one schema of a Parquet output: what each mini-batch adds to it, and what does not fit (R221).

It does not depend on which mini-batch is done first: types only widen, and columns stand in the
order in which the input has them. What the journal keeps of it is bounded, since only what tells
something new is written down.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_parallelrun.output import parquet_file
from prefect_parallelrun.output.columns import Misfit
from prefect_parallelrun.output.parquet_types import common_type, fields_of, join, kept
from prefect_parallelrun_runtime import arrow_types

_SEEN_MOST = 4096
"""So many schemas are known by a digest of their text; then that begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What is known of one column of the run."""

    kind: pa.DataType | None
    """The type that holds all values so far; None as long as there is none."""
    wide: bool
    """See `arrow_types.WIDE`."""
    hints: frozenset[pa.DataType]
    """Types that it had where it held no value."""
    dtypes: frozenset[str]
    """Dtypes of pandas' own that it had where it held values."""
    places: Mapping[_Path, tuple[int, int]]
    """Of it, and of each field of its structures: the first mini-batch in input order that has it, and
    where it stands there."""

    def merged(self, other: Column, *, accepted: bool) -> Column | None:
        """Return what is known of both together; None where no type holds both.

        Args:
            other: of another mini-batch.
            accepted: whether its values are known to go with all others, in the order in which they
                came: the order here may be another.
        """
        # A structure without fields is a type too, though it is false.
        kind = other.kind if self.kind is None else self.kind
        if self.kind is not None and other.kind is not None:
            wide = (False, False) if accepted else (self.wide, other.wide)
            kind = join(self.kind, other.kind, wide=wide)
            if kind is None:
                return None
        return Column(
            kind=kind,
            wide=self.wide or other.wide,
            hints=self.hints | other.hints,
            dtypes=self.dtypes | other.dtypes,
            places=_earliest(self.places, other.places),
        )

    def field(self, name: str) -> pa.Field:
        """Return the field of the output's schema."""
        kind = common_type(self.hints) if self.kind is None else self.kind
        return pa.field(name, kept(_ordered(kind, (), self.places)))

    @property
    def dtype(self) -> str | None:
        """The dtype of pandas' own, if all values have the same and the type is still one of it."""
        if self.kind is None or len(self.dtypes) != 1:
            return None
        (dtype,) = self.dtypes
        return dtype if _is_of(self.kind, dtype) else None


Columns = Mapping[str, Column]
_Path = tuple[str, ...]
"""From a column to a field within its structures: the names on the way, none for the column itself."""


class ParquetColumns:
    """What is known of the columns of a run."""

    def __init__(self, earlier: Iterable[tuple[str, int]]) -> None:
        """Begin with what is in the journal: see `Journal.columns`."""
        self._columns = known(earlier)
        self._seen: dict[bytes, int] = {}

    def admit(self, text: str, place: int, data: bytes | None) -> str | None:
        """Return the text if it tells something new of the run's schema, which the journal must keep.

        Args:
            text: what a mini-batch tells of its columns.
            place: of the mini-batch, in input order.
            data: its rows; None: they were accepted before.

        Raises:
            Misfit: some value has a type that does not go with the column's.
        """
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        # Where there are no rows, nothing else could tell it to a run that takes them over.
        rowless = data == b""
        before = self._seen.get(digest)
        if before is not None and before <= place:
            return text if rowless else None
        new = _merged(self._columns, _columns(text, place), data)
        told = new != self._columns
        self._columns = new
        if len(self._seen) >= _SEEN_MOST:
            self._seen.clear()
        self._seen[digest] = place
        return text if told or rowless else None


def run_schema(earlier: Iterable[tuple[str, int]]) -> pa.Schema:
    """Return the schema of the output file, from what the journal has: see `Journal.columns`."""
    columns = known(earlier)
    names = sorted(columns, key=lambda name: columns[name].places[()])
    schema = pa.schema([columns[name].field(name) for name in names])
    dtypes = {name: dtype for name in names if (dtype := columns[name].dtype) is not None}
    return schema.with_metadata({b"pandas": _pandas_metadata(schema, dtypes)}) if dtypes else schema


def known(earlier: Iterable[tuple[str, int]]) -> Columns:
    """Return what the journal has of the columns: see `Journal.columns`."""
    columns: Columns = {}
    for text, place in earlier:
        columns = _merged(columns, _columns(text, place), None)
    return columns


def _columns(text: str, place: int) -> Columns:
    """Return what a mini-batch tells of its columns."""
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
    columns = {}
    for position, field in enumerate(schema):
        metadata = field.metadata or {}
        empty = arrow_types.EMPTY in metadata
        dtype = metadata.get(arrow_types.DTYPE, b"").decode()
        columns[field.name] = Column(
            kind=None if empty else field.type,
            wide=arrow_types.WIDE in metadata,
            hints=frozenset([field.type] if empty else []),
            dtypes=frozenset() if empty else frozenset([dtype]),
            places=dict(_places(field.type, (), (place, position))),
        )
    return columns


def _places(
    kind: pa.DataType, path: _Path, place: tuple[int, int]
) -> Iterator[tuple[_Path, tuple[int, int]]]:
    """Yield where a column stands, and where the fields within it do."""
    yield path, place
    if pa.types.is_struct(kind):
        for position, (name, inner) in enumerate(fields_of(kind).items()):
            yield from _places(inner, (*path, name), (place[0], position))
    elif pa.types.is_list(kind):
        yield from _places(kind.value_type, path, place)


def _earliest(
    ours: Mapping[_Path, tuple[int, int]], theirs: Mapping[_Path, tuple[int, int]]
) -> Mapping[_Path, tuple[int, int]]:
    return {
        **ours,
        **{path: min(place, ours.get(path, place)) for path, place in theirs.items()},
    }


def _ordered(
    kind: pa.DataType, path: _Path, places: Mapping[_Path, tuple[int, int]]
) -> pa.DataType:
    """Return the type with its fields in the order in which the input first has them."""
    if pa.types.is_list(kind):
        return pa.list_(_ordered(kind.value_type, path, places))
    if not pa.types.is_struct(kind):
        return kind
    fields = sorted(fields_of(kind).items(), key=lambda field: places[(*path, field[0])])
    return pa.struct(
        [pa.field(name, _ordered(inner, (*path, name), places)) for name, inner in fields]
    )


def _merged(ours: Columns, theirs: Columns, data: bytes | None) -> Columns:
    """Return both together; without data, those of rows that were accepted before.

    Raises:
        Misfit: a column has no type for both.
    """
    merged = dict(ours)
    for name, column in theirs.items():
        known = merged.get(name)
        both = column if known is None else known.merged(column, accepted=data is None)
        if both is None:
            assert known is not None
            raise Misfit(_why(name, known, column, data or b""))
        merged[name] = both
    return merged


def _why(name: str, known: Column, column: Column, data: bytes) -> str:
    """Say what keeps a column from having one type."""
    # Whether there would be a type for both, were it not for some values.
    values_only = join(known.kind, column.kind, wide=(False, False)) is not None
    found = _first(name, data, beyond=values_only and column.wide)
    value = (
        "" if found is None else f"; the first such value is {found[1]!r:.80} in element {found[0]}"
    )
    why = ""
    if values_only:
        # Whole numbers that are no floats, or times that nanoseconds have no room for.
        why = " (with values that would not stay as they are in one type for both)"
    return (
        f"run() returned column {name!r} as {column.kind}, but it is {known.kind} in mini-batches that "
        f"are done{why}{value}. output_format='parquet' has one type for each column of the run: "
        "return the same each time, such as texts (str), numbers, or None for what is missing"
    )


def _first(name: str, data: bytes, *, beyond: bool) -> tuple[int, Any] | None:
    """Return the first element with a value, or with one that makes the column wide, and the value."""
    rows = 0
    for table in parquet_file.tables(io.BytesIO(data)):
        values = table.column(name)
        at = _first_wide(values) if beyond else pc.index(pc.is_valid(values), True).as_py()
        if 0 <= at < len(values):
            return rows + at, values[at].as_py()
        rows += len(values)
    return None


def _first_wide(values: pa.ChunkedArray) -> int:
    """Return which element makes the column wide; how many there are, if none does."""
    return bisect.bisect_left(
        range(len(values)), True, key=lambda at: arrow_types.is_wide(values.slice(0, at + 1))
    )


def _is_of(kind: pa.DataType, dtype: str) -> bool:
    """Return whether a dtype of pandas' own holds values of an Arrow type."""
    types = pa.types
    return bool(
        (dtype.startswith(("Int", "UInt")) and types.is_integer(kind))
        or (dtype.startswith("Float") and types.is_floating(kind))
        or (dtype == "boolean" and types.is_boolean(kind))
        or (dtype.startswith("string") and types.is_string(kind))
    )


def _pandas_metadata(schema: pa.Schema, dtypes: Mapping[str, str]) -> bytes:
    """Return what tells pandas which of its own dtypes columns had."""
    return json.dumps(
        {
            "index_columns": [],
            "column_indexes": [],
            "columns": list(_described(schema, dtypes)),
            "creator": {"library": "pyarrow", "version": "16.0.0"},
            "pandas_version": "2.2.0",
        }
    ).encode()


def _described(schema: pa.Schema, dtypes: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for field in schema:
        if dtype := dtypes.get(field.name):
            yield {
                "name": field.name,
                "field_name": field.name,
                "pandas_type": str(field.type),
                "numpy_type": dtype,
                "metadata": None,
            }
