"""Looking after the nodes of a run: enough of them, none that is silent, replacements for what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math

from prefect_parallelrun.driver.events import Event, NoWorkerLeft
from prefect_parallelrun.driver.mailbox import Mailbox
from prefect_parallelrun.driver.nodes import Nodes
from prefect_parallelrun.driver.target import Target

TEND_S = 1.0
"""How often the nodes are looked after."""
SILENT_S = 30.0
"""A node of which nothing is heard for so long is lost; it speaks every `agent.BEAT_S` seconds."""
REPLACE_AFTER_S = 3.0
"""A nanny starts its Dask worker again by itself within a second; only later is a cluster asked for one."""
ASK_AGAIN_S = 10.0
"""Some clusters forget a dead Dask worker only after a while, and do nothing before (Dask's own: 15 s)."""


class Tending:
    """What goes on beside the run, on the Dask client's loop, from its start to its end.

    Args:
        nodes: that are looked after.
        target: whose Dask workers become nodes.
        node_count: so many become nodes; a later one takes the place of one that is lost.
        events: where it is put that none is left.
        log: of the run.
    """

    def __init__(
        self,
        nodes: Nodes,
        target: Target,
        *,
        node_count: int,
        events: Mailbox[Event],
        log: logging.Logger,
    ) -> None:
        self._nodes = nodes
        self._target = target
        self._node_count = node_count
        self._events = events
        self._log = log
        self._made_up_for: set[str] = set()
        """Addresses that do not answer, and for which the cluster was asked for another Dask worker."""
        self._asked_at = -math.inf

    async def tend(self) -> None:
        """Look after the nodes until the run is over, or the scheduler is lost for good."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while not (self._nodes.closing or self._target.is_lost):
            self._nodes.changed.clear()
            try:
                self._nodes.listen()
                for node in self._nodes:
                    self._nodes.check_lease(node)
                await self._fill(loop.time())
                # While this loop stood still nobody could be heard: that is nobody's silence.
                heard_s = min(loop.time() - last, TEND_S)
                last = loop.time()
                await self._count_silence(heard_s)
            except (OSError, TimeoutError) as error:
                self._log.debug("The Dask scheduler does not answer: %r", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nodes.changed.wait(), TEND_S)

    async def _fill(self, now: float) -> None:
        """Start nodes on Dask workers that are not yet one, while there are too few."""
        missing = self._node_count - len(self._nodes)
        if missing <= 0:
            return
        workers = await self._target.workers()
        for address in [a for a in workers if self._nodes.may_join(a)][:missing]:
            self._nodes.join(address)
        if workers and not len(self._nodes) and not self._nodes.leaving:
            self._events.put(NoWorkerLeft(reason=self._nodes.why))
        if now > max(self._nodes.lost_at + REPLACE_AFTER_S, self._asked_at + ASK_AGAIN_S):
            self._asked_at = now
            await self._ask_for_replacement()

    async def _ask_for_replacement(self) -> None:
        self._made_up_for &= self._nodes.leaving
        idle = self._nodes.leaving - self._made_up_for
        self._made_up_for |= idle
        # What a cluster does to scale is its own matter, and may take its time.
        await asyncio.to_thread(self._target.ask_for_replacement, idle=len(idle))

    async def _count_silence(self, heard_s: float) -> None:
        for node in self._nodes:
            node.silent_s += heard_s * self._nodes.is_watched(node)
        if not any(node.silent_s > SILENT_S for node in self._nodes):
            return
        try:
            await self._target.workers()
        except (OSError, TimeoutError):
            for node in self._nodes:  # it is the scheduler that is silent: nobody can be heard
                node.silent_s = 0.0
            raise
        for node in self._nodes:
            if node.silent_s > SILENT_S:
                self._nodes.drop(node, f"nothing was heard of it for {node.silent_s:.0f} seconds")
