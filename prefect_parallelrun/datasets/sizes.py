"""Mini-batch sizes as users write them."""

from __future__ import annotations

import re

from prefect_parallelrun import errors

DEFAULT_FILES = 10
"""Files per mini-batch where nothing else is said."""
DEFAULT_BYTES = 1 << 20
"""Bytes of a table per mini-batch where nothing else is said."""

_UNITS = {"": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_SIZE = re.compile(r"([0-9]+) ?(KB|MB|GB|)", re.IGNORECASE)


def parse_size(value: int | str) -> int:
    """Return a mini-batch size as a number: of files, or of bytes where a unit is given (1 KB is 1024).

    Raises:
        ConfigError: it is neither a whole number of at least 1 nor such a number with KB, MB or GB.
    """
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(match[1]) * _UNITS[match[2].upper()]
    if size < 1:
        raise errors.refuse(
            "mini_batch_size",
            value,
            "give a number of files such as 10, or for tables a size such as 1024, '1024KB', '10MB' or '1GB'",
        )
    return size


def files_per_mini_batch(value: int | str | None) -> int:
    """Return how many files make a mini-batch.

    Raises:
        ConfigError: it is no whole number of at least 1.
    """
    if value is None:
        return DEFAULT_FILES
    if isinstance(value, str) and not value.strip().isdecimal():
        raise errors.refuse(
            "mini_batch_size", value, "for a FileDataset it is a number of files, at least 1"
        )
    return parse_size(value)


def bytes_per_mini_batch(value: int | str | None) -> int:
    """Return how many bytes of a table make a mini-batch.

    Raises:
        ConfigError: see `parse_size`.
    """
    return DEFAULT_BYTES if value is None else parse_size(value)
