"""What nodes bring home that see no run folder: written down where a node that sees it would have written."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from prefect_parallelrun.node.homeward import Piece
from prefect_parallelrun.paths import RunPaths


class Homecoming:
    """Takes in pieces of files of all nodes of a run.

    Two nodes that share nothing may write output files of the same name: each keeps its own then, under a
    name that says whose it is, as neither is to be lost.

    Args:
        paths: of the run.
        destination: the output folder.
        log: of the run.
    """

    def __init__(self, paths: RunPaths, destination: Path, log: logging.Logger) -> None:
        self._paths = paths
        self._destination = destination
        self._log = log
        self._owners: dict[str, str] = {}

    def take_in(self, node: str, pieces: Iterable[Piece]) -> None:
        """Write down what a node has given out.

        Raises:
            OSError: that is not possible.
            ValueError: a name leads out of the run folder.
        """
        for piece in pieces:
            file = self._place(node, piece.name)
            if piece.size < 0:
                file.unlink(missing_ok=True)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("r+b" if file.exists() else "w+b") as target:
                target.seek(piece.at)
                target.write(piece.data)
                if piece.at + len(piece.data) >= piece.size:
                    target.truncate(piece.size)

    # -- inside ------------------------------------------------------------------------------

    def _place(self, node: str, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/"):
            raise ValueError(f"{node} brings home {name!r}, which is outside of its run")
        if parts[0] != self._paths.output.name:
            return self._paths.root / name
        file = self._destination.joinpath(*parts[1:])
        owner = self._owners.setdefault(name, node)
        if owner == node:
            return file
        own = file.with_name(f"{file.stem}.{node}{file.suffix}")
        if (mark := f"{node}/{name}") not in self._owners:
            self._owners[mark] = node
            self._log.warning(
                "%s and %s, which share no file system, both wrote the output file %s: that of %s is %s",
                owner,
                node,
                file,
                node,
                own.name,
            )
        return own
