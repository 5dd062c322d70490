"""Loading the next mini-batch while the script's `run()` is at the present one."""

from __future__ import annotations

import threading
from typing import Any

from prefect_parallelrun_runtime import load


class Ahead(threading.Thread):
    """One load in the background; a failure is raised where the data is taken."""

    def __init__(self, work: dict[str, Any], reader: dict[str, Any]) -> None:
        super().__init__(name="parallelrun-load", daemon=True)
        self._work = work
        self._reader = reader
        self._loaded: load.Loaded | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Load; the thread ends with it."""
        try:
            self._loaded = load.load(self._work, self._reader)
        except BaseException as error:
            self._error = error

    def take(self) -> load.Loaded:
        """Wait for the data and return it, once."""
        self.join()
        loaded, error = self._loaded, self._error
        self._loaded = self._error = None
        if loaded is None:
            raise error or RuntimeError("the data was taken before")
        return loaded
