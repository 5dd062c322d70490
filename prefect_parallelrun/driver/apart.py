"""Nodes that share no file system with the driver: what they ask for, and what they bring home.

All of it goes over the Dask connections that are there; nothing listens on a port of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from prefect_parallelrun.driver.homecoming import Homecoming
from prefect_parallelrun.driver.node import Node
from prefect_parallelrun.driver.serving import Serving
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun.node import calls
from prefect_parallelrun.node.homeward import Taken
from prefect_parallelrun.paths import RunPaths

LOOK_S = 1.0
"""How often a node is asked what is new."""
ANSWERS = 16
"""Answers that are on their way at a time, to all nodes together: each is up to 4 MiB of the flow's memory."""

RunOn = Callable[..., Awaitable[Any]]
"""Calls a function on the Dask worker of a node: node, function, arguments."""


class ApartNodes:
    """Answers such nodes, and takes in what they have written.

    Args:
        serving: reads the driver's files for them.
        homecoming: writes down what they bring.
        run_on: reaches them.
        log: of the run.
    """

    def __init__(
        self, serving: Serving, homecoming: Homecoming, run_on: RunOn, log: logging.Logger
    ) -> None:
        self._serving = serving
        self._homecoming = homecoming
        self._run_on = run_on
        self._log = log
        self._failed = False
        self._room = asyncio.Semaphore(ANSWERS)
        self._answering: set[tuple[str, int]] = set()
        self._looking: set[str] = set()
        """Nodes, by their agents, of which a look was begun and not ended."""

    @classmethod
    def of_run(
        cls, fetched: Fetched, paths: RunPaths, output: Path, run_on: RunOn, log: logging.Logger
    ) -> ApartNodes:
        """Return those of a run that has no node yet in this sitting; see `Serving` and `Homecoming`."""
        homecoming = Homecoming(paths, output, log, resumed=paths.next_node() > 0)
        return cls(Serving(fetched, paths.source), homecoming, run_on, log)

    async def answer(self, node: Node, number: int, wanted: dict[str, Any]) -> None:
        """Answer a node; an answer that is lost is asked for again."""
        request = (node.agent_id, number)
        if request in self._answering:
            return  # it is only slow: a second one would make it slower
        self._answering.add(request)
        try:
            async with self._room:
                if node.lost:
                    return
                data, error = await asyncio.to_thread(self._serving.answer, wanted)
                with contextlib.suppress(OSError, TimeoutError):
                    await self._run_on(node, calls.answered, node.agent_id, number, data, error)
        finally:
            self._answering.discard(request)

    LACKING = ", and what it has not brought home is lost: the end of its logs, what shutdown() has written"
    """What the end of such a node that does not answer comes to, in the log."""

    async def accompany(self, node: Node) -> None:
        """Take home what a node writes, for as long as this task goes on."""
        while True:
            node.home_wanted.clear()
            try:
                if not await self.take_all(node):
                    return
            except (OSError, TimeoutError) as error:
                self._log.debug("What %s has written could not be taken home: %r", node.name, error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(node.home_wanted.wait(), LOOK_S)

    def lost(self, node: Node) -> None:
        """Take no more of a node, and let others write over what no result of it counts for."""
        if node.homeward is not None:
            node.homeward.cancel()
            self._beside(self._homecoming.lost, node.name)

    async def take_all(self, node: Node) -> bool:
        """Take home all that there is now; return whether the node is there.

        Raises:
            OSError: it cannot be reached.
            TimeoutError: it does not answer.
        """
        async with node.homing:
            # One that broke off has passed by files that were changed since: it counts for nothing.
            if node.agent_id in self._looking and not await self._look(node):
                return False
            self._looking.add(node.agent_id)
            looked = node.looks_begun = node.looks_begun + 1
            if not await self._look(node):
                return False
            node.looks_ended = looked
            return True

    def _beside(self, work: Callable[..., None], *args: Any) -> None:
        """Do what may have to wait for a disk."""
        asyncio.get_running_loop().run_in_executor(None, work, *args)

    async def _look(self, node: Node) -> bool:
        """Take home what one look through a node's files finds, to its end."""
        while True:
            call = self._run_on(node, calls.take_home, node.agent_id, node.arrived)
            taken: Taken | None = await call
            if taken is None:
                return False
            await asyncio.to_thread(self.take_in, node, taken, tuple(node.bundles))
            node.arrived = taken.number
            if taken.complete:
                self._looking.discard(node.agent_id)
                return True

    def take_in(self, node: Node, taken: Taken, bundles: Collection[int] = ()) -> None:
        """Write down what came; where that is not possible it is told once, as of other log files."""
        try:
            self._homecoming.take_in(node.name, taken.pieces, bundles)
        except (OSError, ValueError) as error:
            node.home_failed = True
            if not self._failed:
                self._failed = True
                self._log.warning("What %s brings home cannot be kept: %s", node.name, error)

    def ended(self, node: Node, bundle: int) -> None:
        """Note that a bundle has ended, with all that came of it."""
        if node.apart:
            self._beside(self._homecoming.ended, node.name, bundle)

    async def is_home(self, node: Node) -> bool:
        """Wait until all that a node had written before this call is home; return whether it came to be."""
        look = node.looks_begun + 1
        node.home_wanted.set()
        while node.looks_ended < look and not node.lost:
            await asyncio.sleep(0.05)
        return node.looks_ended >= look and not (node.lost or node.home_failed)
