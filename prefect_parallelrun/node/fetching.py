"""All that one node fetches, and where it keeps it: what its agent, and `debug()`, have to do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect_parallelrun.node.host_folder import HostFolder
from prefect_parallelrun.node.side_inputs import SideInputs
from prefect_parallelrun.node.sources import Sources
from prefect_parallelrun.node.staging import Staging
from prefect_parallelrun.node.transfer import Stopped, Transfers


class Fetching:
    """The side inputs of a node, and the data of its bundles.

    Args:
        sources: what there is to fetch.
        run_id: of the run.
        node: name of the node.
        readers: `Plan.readers`.
        limit_s: seconds that the data of one mini-batch may take.
        tell: called with `messages.Event`s of how it gets on.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        run_id: str,
        node: str,
        readers: Sequence[dict[str, Any]],
        limit_s: float,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self._sources = sources
        self._node = node
        self._readers = readers
        self._tell = tell
        self._transfers = Transfers(limit_s=limit_s)
        self._host = HostFolder(run_id, lambda: self._transfers.stopping)
        self._staging: Staging | None = None

    def begin(self, folder: Path) -> list[str]:
        """Put the side inputs in place, and be ready for bundles; return the side inputs' paths.

        Args:
            folder: of the node, private.

        Raises:
            Unavailable: a side input cannot be had.
            Stopped: the node ends.
        """
        if self._sources:
            self._host.enter()
        side_inputs = SideInputs(
            self._sources.side_inputs, self._host, folder, self._transfers, self._tell_progress
        )
        paths = side_inputs.place()
        self._staging = Staging(
            self._sources.inputs,
            self._readers,
            self._host.path / "fetched" / self._node,
            self._transfers,
            self._tell_fetched,
        )
        return paths

    @contextmanager
    def staged(self, number: int, tasks: bytes) -> Iterator[bytes]:
        """Have the data of a bundle there for as long as the context lasts; see `Staging.staged`."""
        if self._staging is None:
            raise Stopped
        with self._staging.staged(number, tasks) as ready:
            yield ready

    def stop(self) -> None:
        """Give up what is being fetched, and fetch nothing more."""
        self._transfers.stop()
        if self._staging is not None:
            self._staging.stop()

    def close(self) -> None:
        """Leave nothing on the disk, but what other nodes of this host have a part in."""
        self.stop()
        if self._staging is not None:
            self._staging.close()
        self._host.leave()

    def _tell_progress(self, what: str) -> None:
        self._tell({"name": "fetching", "reason": what})

    def _tell_fetched(self, number: int, seconds: float) -> None:
        self._tell({"name": "bundle_fetched", "bundle": number, "seconds": round(seconds, 3)})
