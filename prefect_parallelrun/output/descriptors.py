"""Bytes in and out of file descriptors, whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path


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
