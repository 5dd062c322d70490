"""What the driver reads for nodes that do not see its files: of this run, and nothing else."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun.node.driver_files import PIECE

Answer = tuple[bytes, tuple[int, str] | None]
"""The bytes, or number and text of an `OSError`."""


class Serving:
    """Answers what nodes ask for by `node.driver_files.Requests`.

    Args:
        fetched: knows the files of inputs and side inputs.
        source: the source snapshot.
    """

    def __init__(self, fetched: Fetched, source: Path) -> None:
        self._fetched = fetched
        self._source = str(source)
        self._listed: dict[int, dict[str, FileItem]] = {}

    def answer(self, wanted: Mapping[str, Any]) -> Answer:
        """Return what is asked for; may take as long as a disk does."""
        try:
            if "side_input" in wanted:
                listed = self._side_input(wanted["side_input"])
                return json.dumps([list(item) for item in listed.values()]).encode(), None
            path = Path(self._allowed(wanted.get("info") or wanted["file"]))
            if "info" in wanted:
                status = path.stat()
                told = {"size": status.st_size, "mtime": status.st_mtime}
                return json.dumps(told).encode(), None
            with path.open("rb") as file:
                file.seek(wanted["at"])
                return file.read(max(0, min(wanted["length"], PIECE))), None
        except OSError as error:
            return b"", (error.errno or errno.EIO, error.strerror or str(error))
        except Exception as error:  # else the node would ask for ever
            return b"", (errno.EIO, f"{type(error).__name__}: {error}")

    def _side_input(self, number: int) -> dict[str, FileItem]:
        if number not in self._listed:
            self._listed[number] = {item.path: item for item in self._fetched.side_input(number)}
        return self._listed[number]

    def _allowed(self, path: str) -> str:
        if path == self._source:
            return path
        if any(path in files for files in (*self._listed.values(), *self._fetched.files)):
            return path
        raise PermissionError(errno.EACCES, "it is no file of this run", path)
