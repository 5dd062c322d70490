"""How delimited text and JSON lines are to be read: names and types of the columns, settled once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets import sampling
from prefect_parallelrun.datasets.column_types import EXACT_FLOATS, LONG, NO_VALUE, Evidence
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import delimited, text_files, typed_tables

_LONG_NUMBER = re.compile(r"[+-]?[0-9]{16,}")
_INT64 = range(-(1 << 63), 1 << 63)
_BEYOND = "whole number beyond int64"


def settle_delimited(
    files: Sequence[FileItem], settings: Mapping[str, Any], given: Mapping[str, str]
) -> dict[str, Any]:
    """Return the reader of delimited files, with names and types of their columns.

    Args:
        settings: `separator`, `header`, `encoding`, `multi_line`.
        given: Types that the user set.

    Raises:
        DatasetError: files differ in their columns, or a type is set for a column that is not there.
    """
    reader: dict[str, Any] = {"format": "delimited", **settings}
    columns: dict[str, Evidence] = {}
    expected: list[str] = []
    for sample in sampling.samples(files, reader):
        if sample.first is None:
            continue
        if reader["header"]:
            names = text_files.column_names(sample.first)
        else:
            names = [f"Column{place}" for place in range(1, len(sample.first) + 1)]
        expected = expected or names
        if sorted(names) != sorted(expected):
            if reader["header"]:
                problem = typed_tables.other_columns(names, expected)
            else:
                problem = (
                    f"its first row has {len(names)} values, that of the first file {len(expected)}"
                )
            raise DatasetError(f"{sample.path}: {problem}")
        for name, evidence in _evidence(sample.rows, reader, names, given).items():
            columns[name] = columns[name].joined(evidence) if name in columns else evidence
    missing = [name for name in given if name not in expected]
    if missing and expected:
        raise DatasetError(f"column_types names {missing[:10]!r}, but the columns are {expected!r}")
    reader["columns"] = [
        [name, given.get(name) or columns.get(name, Evidence(NO_VALUE, False)).settled()]
        for name in expected
    ]
    reader["numbers"] = [
        name
        for name, kind in reader["columns"]
        if kind in ("int64", "float64") and name not in given
    ]
    # Found by words, a column has no digits among its truth values; the user may mean a column of digits.
    reader["digits"] = bool({"bool", typed_tables.BOOL_OR_NULL} & set(given.values()))
    return reader


def _evidence(
    rows: bytes, reader: Mapping[str, Any], names: list[str], given: Mapping[str, str]
) -> dict[str, Evidence]:
    import pyarrow as pa

    if not rows.strip(b"\r\n"):
        return {}

    def parse(types: dict[str, Any] | None) -> Any:
        return delimited.parse(
            rows, reader["separator"], names, types, multi_line=reader["multi_line"], sample=True
        )

    table = parse(None)
    codes = delimited.may_hold_codes(rows, reader["separator"])
    found: dict[str, Evidence] = {}
    for place, name in enumerate(names):
        if name in given:
            continue
        column = table.column(place)
        kind = _kind(column)
        long = kind == "float64" and _beyond_floats(column)
        if long or (codes and kind in ("int64", LONG, "float64")):
            text = parse({name: pa.string()}).column(0)
            if delimited.first_code(text) is not None or (long and _has_long_number(text)):
                kind = "string"
        found[name] = Evidence(kind, column.null_count > 0)
    return found


def _has_long_number(text: Any) -> bool:
    return any(_LONG_NUMBER.fullmatch(value) for value in text.to_pylist() if value)


def _kind(column: Any) -> str:
    import pyarrow as pa

    types, arrow_type = pa.types, column.type
    if types.is_null(arrow_type):
        return NO_VALUE
    if types.is_integer(arrow_type):
        return LONG if _beyond_floats(column) else "int64"
    if types.is_floating(arrow_type):
        return "float64"
    if types.is_boolean(arrow_type):
        return "bool"
    if types.is_date(arrow_type) or types.is_timestamp(arrow_type):
        zone = ", UTC" if types.is_timestamp(arrow_type) and arrow_type.tz else ""
        try:
            column.cast(pa.timestamp("ns", "UTC" if zone else None))
        except pa.ArrowInvalid:
            # Years before 1678 or after 2261, such as 9999-12-31 for "never".
            return f"datetime64[us{zone}]"
        return f"datetime64[ns{zone}]"
    return "string"


def _beyond_floats(column: Any) -> bool:
    """Return whether a column holds numbers so large that whole ones are not all floats."""
    import pyarrow.compute as pc

    bounds = pc.min_max(column).as_py()
    return bounds["max"] is not None and max(-bounds["min"], bounds["max"]) > EXACT_FLOATS


def settle_json_lines(
    files: Sequence[FileItem], settings: Mapping[str, Any], given: Mapping[str, str]
) -> dict[str, Any]:
    """Return the reader of JSON lines, with names and types of their columns.

    The columns are the names found in the sample, in order of appearance, and those in `given`.

    Args:
        settings: `encoding`.
        given: Types that the user set.
    """
    reader: dict[str, Any] = {"format": "json_lines", **settings}
    kinds: dict[str, set[str]] = {}
    values: Counter[str] = Counter()
    total = 0
    for sample in sampling.samples(files, reader):
        seen = _json_by_arrow(sample.rows) or _json_line_by_line(sample.rows)
        total += seen.rows
        values.update(seen.values)
        for name, some in seen.kinds.items():
            kinds.setdefault(name, set()).update(some)
    found: dict[str, str] = {}
    for name, some in kinds.items():
        evidence = Evidence(NO_VALUE, values[name] < total)
        for kind in some:
            evidence = evidence.joined(Evidence("string" if kind == _BEYOND else kind, False))
        found[name] = given.get(name) or evidence.settled()
    found.update({name: kind for name, kind in given.items() if name not in found})
    reader["columns"] = [[name, kind] for name, kind in found.items()]
    reader["line_by_line"] = any(
        kind == typed_tables.OBJECT or (kind == "string" and kinds.get(name, set()) - {"string"})
        for name, kind in found.items()
    )
    return reader


class _JsonSeen(NamedTuple):
    """What some JSON lines show."""

    rows: int
    kinds: dict[str, set[str]]
    """Kinds of values by column, in order of appearance."""
    values: dict[str, int]
    """How many values, other than null, by column."""


def _json_by_arrow(rows: bytes) -> _JsonSeen | None:
    """Let Arrow look at the lines; None where it cannot, or might not tell the whole truth."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    if not rows.strip():
        return _JsonSeen(0, {}, {})
    try:
        table = arrow_json.read_json(
            pa.BufferReader(rows), arrow_json.ReadOptions(block_size=len(rows) + 1)
        )
    except pa.ArrowInvalid:
        return None
    kinds: dict[str, set[str]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = _kind(column)
        if kind == "float64" and _beyond_floats(column):
            return None
        if pa.types.is_nested(column.type):
            kind = typed_tables.OBJECT
        elif kind.startswith("datetime64"):
            # JSON has no dates; these are strings until the user says otherwise.
            kind = "string"
        kinds[name] = set() if kind == NO_VALUE else {kind}
    counts = {name: table.num_rows - table.column(name).null_count for name in kinds}
    return _JsonSeen(table.num_rows, kinds, counts)


def _json_line_by_line(rows: bytes) -> _JsonSeen:
    kinds: dict[str, set[str]] = {}
    values: Counter[str] = Counter()
    total = 0
    for line in rows.split(b"\n"):
        record = _record(line)
        if record is None:
            continue
        total += 1
        for name, value in record.items():
            known = kinds.setdefault(name, set())
            if value is not None:
                known.add(_json_kind(value))
                values[name] += 1
    return _JsonSeen(total, kinds, values)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        # An empty line, or a bad one: that is for the mini-batch which reads it to say.
        return None
    return record if isinstance(record, dict) else None


def _json_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if value not in _INT64:
            return _BEYOND
        return "int64" if abs(value) <= EXACT_FLOATS else LONG
    if isinstance(value, float):
        return "float64"
    return "string" if isinstance(value, str) else typed_tables.OBJECT
