"""The run folder as a node has it: the driver's own, or a mirror of it where they share no file system."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from prefect_parallelrun.node.homeward import Homeward, Taken
from prefect_parallelrun.paths import RunPaths


class NodeRunFolder:
    """Where a node writes what belongs into the run folder.

    Args:
        home: the run folder, as the driver names it.
        run_id: of the run.
        private: folder of the node's own, for a mirror.
    """

    def __init__(self, home: Path, run_id: str, private: Path) -> None:
        self.home = RunPaths(home)
        self.shared = _shares(self.home, run_id)
        """Whether the node sees the driver's own."""
        self.paths = self.home if self.shared else RunPaths(private / "run")
        self._private = private
        self._homeward = None if self.shared else Homeward(self.paths.root, self.paths.output.name)
        self._taking = threading.Lock()
        self._removed = False

    def output(self, destination: str) -> str:
        """Return where scripts write their own output, made where it is to come home.

        Args:
            destination: the output folder, as the driver names it.
        """
        if self.shared:
            return destination
        self.paths.output.mkdir(parents=True, exist_ok=True)
        return str(self.paths.output)

    def take(self, arrived: int) -> Taken | None:
        """Return what is to come home, see `Homeward.take`; None once it is removed."""
        with self._taking:
            if self._removed:
                return None  # not that it is gone: at home it is to stay
            if self._homeward is None:
                return Taken(arrived, [], complete=True)
            return self._homeward.take(arrived)

    def remove(self) -> None:
        """Remove the node's private folder."""
        with self._taking:
            self._removed = True
        shutil.rmtree(self._private, ignore_errors=True)


def _shares(home: RunPaths, run_id: str) -> bool:
    try:
        return home.token.read_text() == run_id
    except OSError:
        return False
