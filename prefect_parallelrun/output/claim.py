"""One run at a time writes to a place that users name: runs of any step keep off each other's output."""

from __future__ import annotations

import hashlib
import os

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.output.lock import DriverLock
from prefect_parallelrun.paths import RunPaths


class OutputClaim(DriverLock):
    """The right to write to a place.

    Claims are files below the run root, so that nothing is left in the place itself, which may be in
    another storage.

    Args:
        paths: of the run.
        place: an output file, or a folder, absolute, or a URL.
    """

    def __init__(self, paths: RunPaths, place: str) -> None:
        named = place if "://" in place else os.path.realpath(place)
        digest = hashlib.blake2b(os.fsencode(named), digest_size=16).hexdigest()
        super().__init__(paths.claims / digest, paths.root.name)
        self._folder = paths.claims
        self._place = place

    def __enter__(self) -> OutputClaim:
        """Take the place, also from a driver that is dead.

        Raises:
            OutputError: another run writes to it.
            OSError: claims cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        super().__enter__()
        return self

    def _taken(self, driver: str) -> OutputError:
        run = self.before.run if self.before is not None else ""
        return OutputError(
            f"the output {self._place} is being written by run {run}: {driver}. Wait until that has "
            "ended and run the step again, or give the step another output"
        )

    def _succeeded(self, how: str) -> OutputError:
        return OutputError(f"{how}: it stops, and leaves the output {self._place} as it is")

    def _let_go(self, file: int) -> None:
        self._file.unlink(missing_ok=True)
