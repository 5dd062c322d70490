"""What nodes bring home that see no run folder: written down where a node that sees it would have written."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from prefect_parallelrun.node.homeward import Piece
from prefect_parallelrun.paths import RunPaths

_EARLIER = "an earlier sitting"


@dataclass(slots=True)
class _Output:
    """An output file, and who has written it as it is."""

    nodes: set[str] = field(default_factory=set)
    """All of them have brought what is in it, or the beginning of that."""


@dataclass(slots=True)
class _Arrivals:
    """Output files that came for the first time, all at once."""

    bundles: set[int]
    """Those that the node had then, and has not ended."""
    names: list[str] = field(default_factory=list)


class Homecoming:
    """Takes in pieces of files of all nodes of a run.

    Two nodes that share nothing may write output files of the same name. Where what they write is the same,
    as when a mini-batch is run again, it is one file; else each keeps its own, under a name that says whose
    it is, as neither is to be lost. What came of a bundle that was lost with its node is written over.

    Args:
        paths: of the run.
        destination: the output folder.
        log: of the run.
        resumed: whether an earlier sitting may have left output files that count.
    """

    def __init__(
        self, paths: RunPaths, destination: Path, log: logging.Logger, *, resumed: bool = False
    ) -> None:
        self._paths = paths
        self._destination = destination
        self._log = log
        self._resumed = resumed
        self._outputs: dict[str, _Output] = {}
        self._own: set[tuple[str, str]] = set()
        """Nodes and the names of output files of which they have one of their own."""
        self._unsettled: defaultdict[str, list[_Arrivals]] = defaultdict(list)
        self._lost: set[str] = set()
        self._settling = threading.Lock()
        """Nodes are taken in at the same time, each in a thread."""
        self._arrived: dict[str, int] = {}
        """Bytes of each error log that have come: the driver itself writes there, too."""

    def take_in(
        self, node: str, pieces: Iterable[Piece], bundles: Iterable[int] = ()
    ) -> OSError | None:
        """Write down what a node has given out; return what has kept a log from it, if anything has.

        Args:
            node: its name.
            pieces: in the order in which it gave them out.
            bundles: which it had meanwhile: to one of these belongs what comes for the first time.

        Raises:
            OSError: an output file cannot be written; all that can is.
            ValueError: a name leads to where no node writes.
        """
        arrivals = _Arrivals(set(bundles))
        failed: dict[bool, OSError] = {}
        for piece in pieces:
            parts = PurePosixPath(piece.name).parts
            if not parts or ".." in parts or piece.name.startswith("/"):
                raise ValueError(f"{node} brings home {piece.name!r}, which is outside of its run")
            is_output = parts[0] == self._paths.output.name
            if not is_output and parts[0] != self._paths.logs.name:
                raise ValueError(f"{node} brings home {piece.name!r}, which is the driver's own")
            try:
                if is_output:
                    self._take_in_output(node, piece, parts[1:], arrivals)
                elif parts[:3] == ("logs", "user", "error"):
                    self._append(piece, self._paths.root / piece.name)
                else:
                    _write(piece, self._paths.root / piece.name)
            except OSError as error:
                failed.setdefault(is_output, error)
        if True in failed:
            raise failed[True]
        return failed.get(False)

    def ended(self, node: str, bundle: int) -> None:
        """Note that a bundle has ended: what came before it came is some result's, or another bundle's."""
        with self._settling:
            for arrivals in self._unsettled[node]:
                arrivals.bundles.discard(bundle)
            self._unsettled[node] = [one for one in self._unsettled[node] if one.bundles]

    def lost(self, node: str) -> None:
        """Let others write over what came of the bundles that a node has not ended: they run again."""
        with self._settling:
            self._lost.add(node)
            for arrivals in self._unsettled.pop(node, ()):
                for name in arrivals.names:
                    self._outputs[name].nodes.discard(node)

    # -- inside ------------------------------------------------------------------------------

    def _take_in_output(
        self, node: str, piece: Piece, parts: tuple[str, ...], arrivals: _Arrivals
    ) -> None:
        with self._settling:
            if node in self._lost:
                return  # what was on its way when it was
            if piece.name not in self._outputs and arrivals.bundles:
                if not arrivals.names:
                    self._unsettled[node].append(arrivals)
                arrivals.names.append(piece.name)
            self._take_output(node, piece, self._destination.joinpath(*parts))

    def _append(self, piece: Piece, file: Path) -> None:
        """Add to a file that is only appended to, by its process and by the driver."""
        if piece.size < 0 or piece.at != self._arrived.get(piece.name, 0):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as target:
            target.write(piece.data)
        self._arrived[piece.name] = piece.at + len(piece.data)

    def _take_output(self, node: str, piece: Piece, file: Path) -> None:
        own = file.with_name(f"{file.stem}.{node}{file.suffix}")
        if (node, piece.name) in self._own:
            _write(piece, own)
            return
        output = self._outputs.get(piece.name)
        if output is None:
            output = self._outputs[piece.name] = _Output()
            if self._resumed and file.exists():
                output.nodes.add(_EARLIER)
        others = output.nodes - {node}
        if not others:
            output.nodes.add(node)
            _write(piece, file)
        elif piece.size < 0:
            output.nodes.discard(node)
        elif _agrees(piece, file):
            output.nodes.add(node)
            _write(piece, file, whole=False)  # what another has brought beyond it stays
        else:
            output.nodes.discard(node)
            self._own.add((node, piece.name))
            if piece.at:
                _copy(file, own, piece.at)
            _write(piece, own)
            self._log.warning(
                "%s and %s, which share no file system, both wrote the output file %s, and not the same: "
                "that of %s is %s",
                ", ".join(sorted(others)),
                node,
                file,
                node,
                own.name,
            )


def _write(piece: Piece, file: Path, *, whole: bool = True) -> None:
    """Put a piece in its place; `whole`: nothing else is in the file."""
    if piece.size < 0:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("r+b" if file.exists() else "w+b") as target:
        target.seek(piece.at)
        target.write(piece.data)
        if whole and piece.at + len(piece.data) >= piece.size:
            target.truncate(piece.size)


def _agrees(piece: Piece, file: Path) -> bool:
    """Return whether a file has the bytes of a piece, as far as it goes."""
    try:
        with file.open("rb") as home:
            home.seek(piece.at)
            there = home.read(len(piece.data))
    except FileNotFoundError:
        return piece.at == 0
    return piece.data.startswith(there)


def _copy(file: Path, own: Path, size: int) -> None:
    """Make `own` begin with the first bytes of a file."""
    with file.open("rb") as home, own.open("wb") as target:
        while size > 0 and (data := home.read(min(size, 1 << 20))):
            target.write(data)
            size -= len(data)
