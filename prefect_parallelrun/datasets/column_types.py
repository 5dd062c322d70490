"""Types of columns: as users write them, and as a sample shows them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun import errors
from prefect_parallelrun_runtime import typed_tables

NO_VALUE = "null"
"""What a sample shows of a column without any value."""
LONG = "int64 beyond floats"
"""Whole numbers of which some would lose digits as floats; a column of them must not become one."""
EXACT_FLOATS = 1 << 53
"""Up to here every whole number is a float."""

_NAMES = {
    "int64": "int64",
    "int": "int64",
    "float64": "float64",
    "float": "float64",
    "bool": "bool",
    "boolean": typed_tables.BOOL_OR_NULL,
    "string": "string",
    "str": "string",
    "object": "string",
    "datetime64[ns]": "datetime64[ns]",
    "datetime64[us]": "datetime64[us]",
    "datetime64[ns, UTC]": "datetime64[ns, UTC]",
    "datetime64[us, UTC]": "datetime64[us, UTC]",
}
_CHOICES = ("int64", "float64", "bool", "boolean", "string", *list(_NAMES)[-4:])


def checked(column_types: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the type of each column that the user set, by the names that readers know.

    Raises:
        ConfigError: it is no mapping of column names to types we have.
    """
    if column_types is None:
        return {}
    if not isinstance(column_types, Mapping):
        raise errors.refuse("column_types", column_types, "give a dict of column name to type")
    return {str(column): _known(column, wanted) for column, wanted in column_types.items()}


def _known(column: str, wanted: Any) -> str:
    if wanted is datetime.datetime:
        return "datetime64[ns]"
    # `int` and `numpy.int64` are classes, `numpy.dtype("int64")` and "int64" are not.
    name = wanted.__name__ if isinstance(wanted, type) else str(wanted)
    if name not in _NAMES:
        raise errors.refuse(f"column_types[{column!r}]", wanted, f"use one of {_CHOICES}")
    return _NAMES[name]


class Evidence(NamedTuple):
    """What a sample shows of a column."""

    kind: str
    """A type, or `NO_VALUE`."""
    gaps: bool
    """Whether a value is missing somewhere."""

    def joined(self, other: Evidence) -> Evidence:
        """Return what both together show."""
        return Evidence(_joined_kind(self.kind, other.kind), self.gaps or other.gaps)

    def settled(self) -> str:
        """Return the type of the column in every mini-batch; the dtype that pandas gives the whole."""
        if self.kind == NO_VALUE:
            return "string"
        if self.kind == LONG:
            # Such numbers are mostly identifiers: as floats, several would become one.
            return "string" if self.gaps else "int64"
        if self.gaps and self.kind == "int64":
            return "float64"
        if self.gaps and self.kind == "bool":
            return typed_tables.BOOL_OR_NULL
        return self.kind


def _joined_kind(one: str, other: str) -> str:
    if one == other or other == NO_VALUE:
        return one
    if one == NO_VALUE:
        return other
    both = {one, other}
    if both == {"int64", "float64"}:
        return "float64"
    if both == {"int64", LONG}:
        return LONG
    if typed_tables.OBJECT in both:
        return typed_tables.OBJECT
    if all(kind.startswith("datetime64") for kind in both):
        zones = {kind.endswith("UTC]") for kind in both}
        if len(zones) == 1:
            return "datetime64[us, UTC]" if zones == {True} else "datetime64[us]"
    return "string"
