"""A disk that runs full on demand: a small tmpfs, or the kernel's limit on the driver's files."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import tempfile
from pathlib import Path

SIZE = 24 << 20
"""Bytes of the tmpfs; a whole round needs about 2 MB of it."""


def may_mount() -> bool:
    """Whether this user can mount a tmpfs here."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            disk = SmallDisk(Path(folder))
        except OSError:
            return False
        disk.close()
    return True


class SmallDisk:
    """A tmpfs on a folder."""

    def __init__(self, folder: Path) -> None:
        """Mount it.

        Raises:
            OSError: this user may not.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._filler = folder / "filler"
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)],
                check=True,
                capture_output=True,
            )
        except subprocess.CalledProcessError as error:
            raise PermissionError(errno.EPERM, error.stderr.decode().strip()) from error

    def fill(self) -> None:
        """Take every page that is free, also those that are set free within the next moments."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Give them back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it, whoever still has a file open there."""
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)


def limit_files(pid: int, folder: Path) -> None:
    """Let no file that a process writes grow beyond the largest that is in `folder` now.

    Raises:
        OSError: the process is gone.
    """
    sizes = [0]
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            sizes.append(os.stat(path).st_size)
    limit = max(sizes)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
