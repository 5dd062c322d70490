"""Nodes that share no file system with the driver: what they ask for, and what they bring home.

All of it goes over the Dask connections that are there; nothing listens on a port of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from prefect_parallelrun.driver.events import Event, NotKept
from prefect_parallelrun.driver.homecoming import Homecoming
from prefect_parallelrun.driver.mailbox import Mailbox
from prefect_parallelrun.driver.node import Node
from prefect_parallelrun.driver.serving import Serving
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun.node import calls
from prefect_parallelrun.node.homeward import Taken
from prefect_parallelrun.output.trouble import explain_output
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun_runtime import messages

LOOK_S = 1.0
"""How often a node is asked what is new."""
ANSWERS = 16
"""Answers that are on their way at a time, to all nodes together: each is up to 4 MiB of the flow's memory."""

RunOn = Callable[..., Awaitable[Any]]
"""Calls a function on the Dask worker of a node: node, function, arguments."""
LAST_LOGS_S = 3.0
"""How long nodes that are lost, and answer, may hold up the end of a run with the end of their logs."""


class ApartNodes:
    """Answers such nodes, and takes in what they have written.

    Args:
        serving: reads the driver's files for them.
        homecoming: writes down what they bring.
        run_on: reaches them.
        log: of the run.
        not_kept: called with a node's name, and why what it brought for the output folder was not kept.
    """

    def __init__(
        self,
        serving: Serving,
        homecoming: Homecoming,
        run_on: RunOn,
        log: logging.Logger,
        not_kept: Callable[[str, Exception], None],
    ) -> None:
        self._not_kept = not_kept
        self._serving = serving
        self._homecoming = homecoming
        self._run_on = run_on
        self._log = log
        self._sending: set[asyncio.Task[None]] = set()
        """Of nodes that are lost, and answer: their logs are still to come home."""
        self._told: set[str] = set()
        """What is told once."""
        self._room = asyncio.Semaphore(ANSWERS)
        self._answering: set[tuple[str, int]] = set()
        self._looking: set[str] = set()
        """Nodes, by their agents, of which a look was begun and not ended."""

    @classmethod
    def of_run(
        cls,
        fetched: Fetched,
        paths: RunPaths,
        settings: messages.Settings,
        run_on: RunOn,
        events: Mailbox[Event],
        log: logging.Logger,
    ) -> ApartNodes:
        """Return those of a run that has no node yet in this sitting; see `Serving` and `Homecoming`."""
        output = Path(settings["output_folder"])
        homecoming = Homecoming(paths, output, log, resumed=paths.next_node() > 0)

        def not_kept(name: str, error: Exception) -> None:
            if settings["output_action"] == "summary_only":
                events.put(NotKept(error=explain_output(output, name, error)))

        return cls(Serving(fetched, paths.source), homecoming, run_on, log, not_kept)

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

    async def take_last(self, node: Node) -> None:
        """Take home what a node has kept after its end, then let it keep nothing; see `take_all`."""
        await self.take_all(node)
        await self._run_on(node, calls.forget_node, node.agent_id)

    def sent_away(self, node: Node, sending: asyncio.Task[None]) -> None:
        """Note that a lost node is being ended, which says in its logs why it was lost."""
        if node.apart:
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)

    async def wait_for_logs(self) -> None:
        """Wait until the logs of lost nodes are home, `LAST_LOGS_S` at most."""
        if self._sending:
            await asyncio.wait(self._sending, timeout=LAST_LOGS_S)

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
        """Write down what came; of logs, where that is not possible, it is told once, as elsewhere."""
        for one in taken.unread[:1]:
            self._tell(f"{node.name} cannot read what a script has written; it stays there", one)
        try:
            if failed := self._homecoming.take_in(node.name, taken.pieces, bundles):
                self._tell("Logs that nodes bring home cannot be kept", failed)
        except (OSError, ValueError) as error:
            node.home_failed = True
            self._tell("What nodes have written cannot be kept in the output folder", error)
            self._not_kept(node.name, error)

    def joined(self, nowhere: Sequence[str]) -> None:
        """Tell of paths among the script's arguments that do not lead there from a node (see `NodeAgent`)."""
        for path in nowhere:
            if os.path.exists(path):  # noqa: PTH110  (that of pathlib raises if it is no path at all)
                self._tell(
                    f"{path}, in the script's arguments as a text, is not to be seen on nodes that share no "
                    "file system with the driver, and what a script writes there stays there: give the output "
                    "or the side input itself in its place"
                )

    def _tell(self, what: str, error: object = "") -> None:
        if what not in self._told:
            self._told.add(what)
            self._log.warning("%s%s", what, f": {error}" if error else "")

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
