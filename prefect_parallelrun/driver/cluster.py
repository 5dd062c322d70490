"""The driver's only Dask: bundles go out and events come back.

The seam is small on purpose (submit, collect, close): the run does not know what carries its bundles.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import distributed

from prefect_parallelrun.driver.bundle import Bundle
from prefect_parallelrun.driver.events import BundleEnded, Event
from prefect_parallelrun.driver.mailbox import Mailbox
from prefect_parallelrun.driver.node import Node
from prefect_parallelrun.driver.nodes import JOIN_S, Nodes
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun.driver.target import Target
from prefect_parallelrun.driver.tending import Tending
from prefect_parallelrun.driver.watched import settled
from prefect_parallelrun.errors import ClusterError
from prefect_parallelrun.node import agent, calls
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun_runtime import messages

CANCEL_S = 3.0
"""How long nodes may take to end a run that is cancelled; one that does not answer ends by itself later."""


class Cluster:
    """The Dask side of one run, from the first node to the last.

    Args:
        target: None for a cluster of in-process Dask workers that ends with the run, the address of
            a scheduler, or a Dask cluster object.
        node_count: so many Dask workers become nodes; a later one takes the place of one that is lost.
        first_node: number in the name of the first node.
        step: name of the step, under which the Dask dashboard shows the bundles.
        log: of the run.
        watch: called several times a second while this waits for Dask; ends the run by raising.

    Raises:
        ClusterError: no scheduler answers there.
        Exception: what `watch` raises.
    """

    def __init__(
        self,
        target: Any,
        *,
        node_count: int,
        first_node: int = 0,
        step: str,
        log: logging.Logger,
        watch: Callable[[], None] | None = None,
    ) -> None:
        self._log = log
        self._watch = watch
        self._events: Mailbox[Event] = Mailbox()
        self._closing = False
        self._shutdown_s = 0.0
        self._target = Target(target, node_count=node_count, log=log, watch=watch)
        self._nodes = Nodes(
            self._target,
            first_node=first_node,
            step=step,
            events=self._events,
            log=log,
        )
        self._tending = Tending(
            self._nodes,
            self._target,
            node_count=node_count,
            step=step,
            events=self._events,
            log=log,
        )

    @property
    def dashboard(self) -> str:
        """Address of the Dask dashboard, or empty."""
        return self._target.dashboard

    @property
    def work_waits(self) -> bool:
        """Whether there is work for more nodes: where none is, a cluster that scales may shrink."""
        return self._tending.work_waits

    @work_waits.setter
    def work_waits(self, waits: bool) -> None:
        if waits and not self._tending.work_waits:
            self._target.loop.call_soon_threadsafe(self._nodes.changed.set)
        self._tending.work_waits = waits

    @property
    def joining(self) -> list[str]:
        """The nodes that are being started."""
        return [node.name for node in self._nodes if not node.joined]

    def start(self, settings: messages.Settings, paths: RunPaths, fetched: Fetched) -> None:
        """Make Dask workers nodes, now and as they come, until there are `node_count`."""
        self._shutdown_s = settings["shutdown_timeout_s"]
        self._fetched = fetched
        self._holds = settings["output_action"] == "summary_only"
        self._nodes.begin(settings, paths, fetched)
        self._spawn(self._tending.tend())

    def submit(self, bundle: Bundle) -> None:
        """Send a bundle to its node; its end comes back as an event.

        Raises:
            ClusterError: the scheduler is gone.
        """
        self._check()
        node = self._nodes.get(bundle.node)
        if node is None:
            self._events.put(BundleEnded(number=bundle.number, frames=agent.STALE))
            return
        header = messages.BundleHeader(count=len(bundle.members), avoid=bundle.avoid)
        tasks = json.dumps(self._fetched.tasks(bundle, node.unseen), separators=(",", ":")).encode()
        future = self._nodes.contact.submit(
            node,
            f"{bundle.number:07d}",
            calls.run_bundle,
            node.agent_id,
            bundle.number,
            header,
            tasks,
        )
        node.bundles[bundle.number] = future
        self._spawn(self._follow(node, bundle.number, future))

    def collect(self, timeout_s: float) -> list[Event]:
        """Return what has happened, waiting at most `timeout_s` seconds for the first of it.

        Raises:
            ClusterError: the scheduler is gone.
        """
        self._check()
        return self._events.collect(timeout_s)

    def close(self, *, gracefully: bool) -> None:
        """End the run on every node and let go of the cluster; nothing of ours is left on it.

        Raises:
            Exception: what `watch` raises while this waits for `shutdown()`, which is given up then.
        """
        self._closing = True
        try:
            if gracefully:
                limit_s = JOIN_S + self._shutdown_s + 15
                self._end_nodes(limit_s, gracefully=True, watch=self._watch)
        except BaseException:
            gracefully = False
            raise
        finally:
            try:
                if not gracefully:
                    self._end_nodes(CANCEL_S, gracefully=False)
            finally:
                self._target.close()

    # -- inside ------------------------------------------------------------------------------

    def _end_nodes(
        self, limit_s: float, *, gracefully: bool, watch: Callable[[], None] | None = None
    ) -> None:
        work = self._nodes.close(gracefully=gracefully, limit_s=limit_s)
        ending = asyncio.run_coroutine_threadsafe(work, self._target.loop)
        try:
            if settled(ending, limit_s + 2, watch):
                ending.result()
            else:
                self._log.warning("The nodes could not be told to end; they end by themselves")
        finally:
            ending.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._target.loop.call_soon_threadsafe(self._nodes.spawn, work)

    def _check(self) -> None:
        if self._target.is_lost and not self._closing:
            raise ClusterError(
                "the connection to the Dask scheduler is lost for good: it did not answer any more"
            )

    async def _follow(self, node: Node, number: int, future: distributed.Future[bytes]) -> None:
        nodes = self._nodes
        try:
            frames = await self._target.result(future)
            # What the script has written counts when it is home: with the node it would be gone.
            if self._holds and node.apart and not await nodes.apart.is_home(node):
                if node.home_failed:
                    return  # the run ends of that: see `events.NotKept`
                frames = agent.STALE
        except (asyncio.CancelledError, Exception) as error:
            # A node that is lost is told by the scheduler's event.
            if self._closing or nodes.get(node.name) is None:
                return
            self._log.debug("Bundle %d on %s: no result: %r", number, node.name, error)
            frames = agent.STALE
        if frames == agent.STALE:
            nodes.broke(node, "it hands bundles back unrun")
        else:
            nodes.worked(node)
            nodes.apart.ended(node, number)
        # At once: Dask would run a finished one again if its worker died while somebody held it.
        node.bundles.pop(number, None)
        future.release()
        self._events.put(BundleEnded(number=number, frames=frames))
