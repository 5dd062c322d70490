"""Bytes in and out of file descriptors, whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

_COPY_BYTES = 64 << 20
"""At most so much is copied in one call, which nothing can interrupt."""


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write everything: the system may take less at a time (2 GB on Linux)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_into(descriptor: int, into: memoryview, offset: int) -> None:
    """Fill `into` from `offset` on.

    Raises:
        OSError: the file ends before that.
    """
    while into:
        count = os.preadv(descriptor, [into], offset)
        if not count:
            raise OSError(f"the partial file ends at {offset:,}, where the journal has rows")
        into, offset = into[count:], offset + count


def copy(source: int, target: int, offset: int, length: int, look: Callable[[], None]) -> int:
    """Copy so many bytes to where the target stands, within the system, as far as that can.

    Whoever reads and writes the rest sees what is wrong, and with which of the two.

    Args:
        source: a descriptor to read from.
        target: a descriptor to write to.
        offset: in the source.
        length: in bytes.
        look: called now and then; ends it by raising.

    Returns:
        How many bytes were copied.
    """
    copied = 0
    while copied < length:
        wanted = min(length - copied, _COPY_BYTES)
        try:
            count = os.copy_file_range(source, target, wanted, offset_src=offset + copied)
        except OSError:
            break
        if not count:
            break
        copied += count
        look()
    return copied


def sync_folder(folder: Path) -> None:
    """Make names that were just made or renamed in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems have nothing to sync for a folder, and say so.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
