"""Nodes that share no file system with the driver: what they ask for, and what they bring home.

All of it goes over the Dask connections that are there; nothing listens on a port of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from prefect_parallelrun.driver.homecoming import Homecoming
from prefect_parallelrun.driver.node import Node
from prefect_parallelrun.driver.serving import Serving
from prefect_parallelrun.node import calls
from prefect_parallelrun.node.homeward import Taken

LOOK_S = 1.0
"""How often a node is asked what is new."""

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

    async def answer(self, node: Node, number: int, wanted: dict[str, Any]) -> None:
        """Answer a node; an answer that is lost is asked for again."""
        data, error = await asyncio.to_thread(self._serving.answer, wanted)
        with contextlib.suppress(OSError, TimeoutError):
            await self._run_on(node, calls.answered, node.agent_id, number, data, error)

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

    async def take_all(self, node: Node) -> bool:
        """Take home all that there is now; return whether the node is there.

        Raises:
            OSError: it cannot be reached.
            TimeoutError: it does not answer.
        """
        async with node.homing:
            looked = node.looks_begun = node.looks_begun + 1
            while True:
                call = self._run_on(node, calls.take_home, node.agent_id, node.arrived)
                taken: Taken | None = await call
                if taken is None:
                    return False
                await asyncio.to_thread(self.take_in, node, taken)
                node.arrived = taken.number
                if taken.complete:
                    node.looks_ended = looked
                    return True

    def take_in(self, node: Node, taken: Taken) -> None:
        """Write down what came; where that is not possible it is told once, as of other log files."""
        try:
            self._homecoming.take_in(node.name, taken.pieces)
        except (OSError, ValueError) as error:
            node.home_failed = True
            if not self._failed:
                self._failed = True
                self._log.warning("What %s brings home cannot be kept: %s", node.name, error)

    async def is_home(self, node: Node) -> bool:
        """Wait until all that a node had written before this call is home; return whether it came to be."""
        look = node.looks_begun + 1
        node.home_wanted.set()
        while node.looks_ended < look and not node.lost:
            await asyncio.sleep(0.05)
        return node.looks_ended >= look and not node.home_failed
