"""Rows as JSON lines: one value per element, always valid JSON (R221)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isfinite
from typing import Any

from prefect_parallelrun_runtime import returned
from prefect_parallelrun_runtime.returned import BadReturn


def encode(result: Any) -> bytes:
    """Return one line per element.

    Raises:
        BadReturn: an element is, or holds, what JSON cannot say.
    """
    is_frame = returned.is_table(result) and not hasattr(result, "to_pylist")
    lines = [*(_frame_lines(result) if is_frame else _lines(_elements(result))), ""]
    # A file name that is not UTF-8 has surrogates; they stand in texts only, where JSON has an escape
    # for them that looks just so.
    return "\n".join(lines).encode("utf-8", "backslashreplace")


def _lines(elements: Iterable[Any]) -> Iterator[str]:
    """Yield each element in JSON."""
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain).encode
    for place, element in enumerate(elements):
        try:
            yield encoder(element)
        except (ValueError, TypeError, OverflowError):  # NaN, or a key that is no text
            yield _carefully(encoder, element, place)


def _carefully(encoder: Callable[[Any], str], element: Any, place: int) -> str:
    try:
        return encoder(_plain(element))
    except RecursionError:
        reason = "it holds itself, or is nested too deeply"
    except Exception as error:
        reason = str(error)
    raise BadReturn(
        f"element {place} of what run() returned cannot be written as JSON: {reason}"
    ) from None


def _elements(result: Any) -> Iterable[Any]:
    """Return the elements; those of an Arrow table are dictionaries."""
    if hasattr(result, "to_pylist"):
        returned.distinct(result.schema.names)
        return result.to_pylist()  # type: ignore[no-any-return]
    fields = getattr(getattr(result, "dtype", None), "names", None)
    if fields is not None:  # a structured array
        return (dict(zip(fields, element.tolist(), strict=True)) for element in result)
    return result  # type: ignore[no-any-return]


def _frame_lines(frame: Any) -> Iterable[str]:
    """Return the rows of a DataFrame as objects, made column by column, which is twice as fast."""
    names = returned.distinct(frame.columns)
    if not names:
        return ["{}"] * len(frame)
    keys = [json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in names]
    form = "{" + ", ".join(f"{key}: %s" for key in keys) + "}"
    columns = [_texts(frame.iloc[:, place]) for place in range(len(names))]
    return map(form.__mod__, zip(*columns, strict=True))


def _texts(column: Any) -> Iterable[str]:
    """Return the values of a column in JSON."""
    values: list[Any] = column.tolist()
    kind = getattr(column.dtype, "kind", "O")
    if kind in "iu" and not column.hasnans:
        return map(str, values)
    if kind == "f" and isinstance(column.dtype, _numpy_dtype()):
        return [repr(value) if isfinite(value) else "null" for value in values]
    return _lines(values)


def _numpy_dtype() -> Any:
    return sys.modules["numpy"].dtype


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: null for what is missing or not finite, texts for keys.

    Raises:
        TypeError: JSON cannot say it.
    """
    if isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if returned.is_series(value):
        return _plain(value.to_dict())
    if returned.is_array(value):
        return _plain(value.tolist())
    if returned.is_missing(value):
        return None
    return _scalar(value)


def _key(key: Any) -> str:
    plain = _plain(key)
    if isinstance(plain, str):
        return plain
    if plain is None or isinstance(plain, (bool, int, float)):
        return json.dumps(plain)
    raise TypeError(f"the key {returned.shown(key)} is no text")


def _scalar(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.generic, numpy.ndarray)):
        if isinstance(value, (numpy.datetime64, numpy.timedelta64)):
            return str(value)
        inner = value.item()
        if not isinstance(
            inner, numpy.generic
        ):  # of what Python has no type for, it is the same again
            return _plain(inner)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise TypeError(
                f"{returned.shown(value)} is no text in UTF-8; base64.b64encode(…).decode() is one"
            ) from None
    if type(value).__module__.partition(".")[0] in ("decimal", "uuid", "datetime", "pandas"):
        is_time = hasattr(value, "isoformat") and not hasattr(value, "total_seconds")
        return value.isoformat() if is_time else str(value)
    raise TypeError(
        f"it holds {returned.shown(value)}; JSON has objects (dict), lists, texts, numbers, "
        "true, false and null"
    )
