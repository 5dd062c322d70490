"""The narrowest Arrow type that holds the values of two, the same in whatever order they come (R221)."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

_MOST_DIGITS = {True: 38, False: 76}
"""Of a 128-bit decimal, and of a 256-bit one."""


def join(one: pa.DataType, other: pa.DataType, *, wide: tuple[bool, bool]) -> pa.DataType | None:
    """Return the type of a column that has values of both types; None where there is none.

    Args:
        one: a type, as `arrow_types.canonical` gives it.
        other: another.
        wide: of each, whether it has values that would not survive the step to the other type.
    """
    if one.equals(other):
        return one
    types = pa.types
    if types.is_null(one) or types.is_null(other):
        return other if types.is_null(one) else one
    if types.is_struct(one) and types.is_struct(other):
        return _structs(one, other, wide)
    if types.is_list(one) and types.is_list(other):
        inner = join(one.value_type, other.value_type, wide=wide)
        return None if inner is None else pa.list_(inner)
    if types.is_decimal(one) and types.is_decimal(other):
        return _decimals(one, other)
    if _is_number(one) and _is_number(other):
        return _numbers(one, other, wide)
    return _times(one, other, wide)


def fitted(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return values as a type that `join` gave for their own: what a structure lacks is null.

    Raises:
        pa.ArrowException: they are not of such a type.
    """
    types = pa.types
    if values.type.equals(kind):
        return values
    if types.is_null(kind) and types.is_struct(values.type) and not values.type.num_fields:
        return pa.nulls(len(values))  # see `kept`
    if types.is_struct(kind) and types.is_struct(values.type):
        # Older releases of Arrow cast structures field by field, and know neither order nor gaps.
        its = {name: values.field(place) for place, name in enumerate(fields_of(values.type))}
        fields = list(map(kind.field, range(kind.num_fields)))
        columns = [
            fitted(its[field.name], field.type)
            if field.name in its
            else pa.nulls(len(values), field.type)
            for field in fields
        ]
        return pa.StructArray.from_arrays(columns, fields=fields, mask=values.is_null())
    if types.is_list(kind) and types.is_list(values.type):
        inner = fitted(values.values, kind.value_type)
        place = values.offset
        return pa.Array.from_buffers(
            kind, len(values), values.buffers()[:2], values.null_count, place, [inner]
        )
    return values.cast(kind)


def kept(kind: pa.DataType) -> pa.DataType:
    """Return the type in a Parquet file: one that has no structure without fields, but nothing there."""
    types = pa.types
    if types.is_struct(kind):
        fields = [pa.field(name, kept(inner)) for name, inner in fields_of(kind).items()]
        return pa.struct(fields) if fields else pa.null()
    return pa.list_(kept(kind.value_type)) if types.is_list(kind) else kind


def common_type(kinds: Collection[pa.DataType]) -> pa.DataType:
    """Return the type that goes for all, or that of nothing."""
    found = pa.null()
    for kind in sorted(kinds, key=str):
        both = join(found, kind, wide=(False, False))
        if both is None:
            return pa.null()
        found = both
    return found


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _numbers(one: pa.DataType, other: pa.DataType, wide: tuple[bool, bool]) -> pa.DataType | None:
    types = pa.types
    if types.is_floating(one) and types.is_floating(other):
        return one if one.bit_width > other.bit_width else other
    if types.is_floating(one) or types.is_floating(other):
        is_wide = wide[0] if types.is_integer(one) else wide[1]
        return None if is_wide else pa.float64()
    if types.is_signed_integer(one) == types.is_signed_integer(other):
        return one if one.bit_width > other.bit_width else other
    signed, unsigned = (one, other) if types.is_signed_integer(one) else (other, one)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    if bits > 64:
        return None if any(wide) else pa.float64()
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[bits]


def _times(one: pa.DataType, other: pa.DataType, wide: tuple[bool, bool]) -> pa.DataType | None:
    """Return the finer of two types that differ in their unit only."""
    types = pa.types
    for is_such in (types.is_timestamp, types.is_duration, types.is_time64):
        if is_such(one) and is_such(other):
            if getattr(one, "tz", None) != getattr(other, "tz", None):
                return None
            coarse_is_wide = wide[0] if one.unit == "us" else wide[1]
            return None if coarse_is_wide else (one if one.unit == "ns" else other)
    return None


def _structs(one: pa.DataType, other: pa.DataType, wide: tuple[bool, bool]) -> pa.DataType | None:
    """Return a structure with the fields of both; their order is that of their names, as neither is first."""
    ours, theirs = fields_of(one), fields_of(other)
    fields = []
    for name in sorted(ours | theirs):
        inner = join(ours.get(name, pa.null()), theirs.get(name, pa.null()), wide=wide)
        if inner is None:
            return None
        fields.append(pa.field(name, inner))
    return pa.struct(fields)


def fields_of(structure: pa.DataType) -> dict[str, pa.DataType]:
    """Return the types of the fields of a structure, in their order."""
    fields = map(structure.field, range(structure.num_fields))
    return {field.name: field.type for field in fields}


def _decimals(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    scale = max(one.scale, other.scale)
    digits = max(one.precision - one.scale, other.precision - other.scale) + scale
    small = digits <= _MOST_DIGITS[True]
    if digits > _MOST_DIGITS[False]:
        return None
    if small and pa.types.is_decimal128(one) and pa.types.is_decimal128(other):
        return pa.decimal128(digits, scale)
    return pa.decimal256(digits, scale)
