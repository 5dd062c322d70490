"""All that one node fetches, and where it keeps it: what its agent, and `debug()`, have to do with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.node.driver_files import DriverStorage, Requests
from prefect_parallelrun.node.host_folder import HostFolder
from prefect_parallelrun.node.side_inputs import SideInputs
from prefect_parallelrun.node.sources import Files, InPlace, Query, SideInput, Sources
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
        driver: what this node asks of the driver; None where it sees all files anyway.
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
        driver: Requests | None = None,
    ) -> None:
        self._sources = sources
        self._driver = driver
        self._node = node
        self._readers = readers
        self._tell = tell
        self._transfers = Transfers(limit_s=limit_s)
        self._host = HostFolder(run_id, lambda: self._transfers.stopping)
        self._staging: Staging | None = None
        self._inputs: list[Files | Query | None] = []

    @property
    def unseen(self) -> list[int]:
        """Numbers of the inputs whose files only the driver sees."""
        return [
            number
            for number, one in enumerate(self._inputs)
            if isinstance(one, Files) and isinstance(one.storage, DriverStorage)
        ]

    def begin(self, folder: Path, *, shares: bool = True) -> list[str]:
        """Put the side inputs in place, and be ready for bundles; return the side inputs' paths.

        Args:
            folder: of the node, private.
            shares: whether it sees the driver's run folder.

        Raises:
            Unavailable: a side input cannot be had.
            Stopped: the node ends.
        """
        self._inputs = [self._input(one, shares) for one in self._sources.inputs]
        wanted = [self._side_input(*one, shares) for one in enumerate(self._sources.side_inputs)]
        if any(self._inputs) or any(one.is_placed for one in wanted):
            self._host.enter()
        side_inputs = SideInputs(wanted, self._host, folder, self._transfers, self._tell_progress)
        paths = side_inputs.place()
        self._staging = Staging(
            self._inputs,
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

    def _input(self, one: Files | Query | InPlace, shares: bool) -> Files | Query | None:
        """Return what is to be fetched of an input."""
        if self._driver is None or isinstance(one, Query) or _is_seen(one.sample, shares):
            return None if isinstance(one, InPlace) else one
        # By its own paths, in place of the driver's own reading of them.
        return Files(storage=cast("Storage", DriverStorage(self._driver)), root=one.root)

    def _side_input(self, number: int, one: SideInput, shares: bool) -> SideInput:
        if self._driver is None or _is_seen(one.sample, shares):
            return one
        files = one.files
        if not one.copied:
            listed = json.loads(self._driver.ask(side_input=number))
            files = tuple(FileItem(*item) for item in listed)
        return replace(
            one,
            files=files,
            storage=cast("Storage", DriverStorage(self._driver)),
            copied=True,
        )

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


def _is_seen(sample: Iterable[FileItem], shares: bool) -> bool:
    """Return whether local files of the driver are seen here, and not others of the same names.

    A node that shares a file system with the driver may see their times late, and is believed.
    """
    for item in sample:
        try:
            status = os.stat(item.path)  # noqa: PTH116
        except OSError:
            return False
        if not shares and (status.st_size, status.st_mtime_ns) != (item.size, item.modified_ns):
            return False
    return True
