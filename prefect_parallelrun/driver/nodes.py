"""The Dask workers that are nodes of a run: how they join, what is heard of them, how they leave.

All of it happens on the event loop of the Dask client. The driver's own thread never waits for Dask, so
that it keeps its limits, and can be interrupted, whatever the cluster does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any

from prefect_parallelrun.driver.apart import ApartNodes
from prefect_parallelrun.driver.contact import Contact
from prefect_parallelrun.driver.events import Event, NodeJoined, NodeLacks, NodeLost, NodeNews
from prefect_parallelrun.driver.mailbox import Mailbox
from prefect_parallelrun.driver.node import Node
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun.driver.target import Target
from prefect_parallelrun.node import agent, calls
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun_runtime import messages

RETRY_S = 1.0
"""How often a Dask worker is spoken to that does not answer."""
SILENT_AT_END_S = 3 * agent.BEAT_S
"""At the end of a run a node is not waited for that has been silent for so long."""
JOIN_S = 15.0
"""How long a node that is still joining may hold up the end of a run."""
MAX_LOSSES = 3
"""A Dask worker on which so many nodes in a row were lost without a result is not tried again. Where it
was the only one, and had work, that may have been the cause: then the mini-batches alone keep count of it
(`policy.MAX_LOST`), so that the others still run."""


class Nodes:
    """Makes Dask workers nodes, notices when they end, and ends them.

    Args:
        target: whose Dask workers they are.
        first_node: number in the name of the first one.
        step: name of the step.
        events: where what happens is put, for the driver.
        log: of the run.
    """

    def __init__(
        self,
        target: Target,
        *,
        first_node: int,
        step: str,
        events: Mailbox[Event],
        log: logging.Logger,
    ) -> None:
        self._target = target
        self._client = target.client
        self._named = first_node
        # Dask keeps a topic's last events for ever, but forgets those of the topic that is named after a
        # client when that is gone (after `distributed.scheduler.events-cleanup-delay`), however it went.
        self._topic = target.client.id
        self.contact = Contact(target, step=step, topic=self._topic)
        self._events = events
        self._log = log
        self._nodes: dict[str, Node] = {}
        self._losses: Counter[str] = Counter()
        """By address: nodes lost there while they had nothing to do, one after the other."""
        self.leaving: set[str] = set()
        """Addresses where an earlier node has not ended yet; it may not be able to answer."""
        self.changed = asyncio.Event()
        """Set when a node is lost, or its Dask worker can be one again."""
        self.lost_at = math.inf
        """When the last one was lost (seconds of the loop's clock); infinite: none was."""
        self.why = ""
        """Why the last one was lost."""
        self._parting: dict[str, Node] = {}
        """Those that were let go of, until they have ended."""
        self._connection: object = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._any_joined = False
        self.closing = False
        """Whether the run is over: nothing joins or is lost any more."""
        self.listen()

    def __iter__(self) -> Iterator[Node]:
        """Iterate over those that there are, the joining included."""
        return iter(tuple(self._nodes.values()))

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, name: str) -> Node | None:
        """Return a node that has not been lost."""
        return self._nodes.get(name)

    def begin(self, settings: messages.Settings, paths: RunPaths, fetched: Fetched) -> None:
        """Take in what each node must know."""
        self.contact.begin(settings, paths, fetched.sources)
        run_on = self.contact.run_on
        self.apart = ApartNodes.of_run(fetched, paths, settings, run_on, self._events, self._log)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let `work` go on beside the others, until the run is over at the latest."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("The driver's care for its nodes failed", exc_info=error)

    def listen(self) -> None:
        """Subscribe to the news, again after each break of the connection."""
        connection = self._client.scheduler_comm
        if connection is not None and connection is not self._connection:
            self._connection = connection
            self._client.subscribe_topic(self._topic, self._on_news)
            self._client.subscribe_topic("all", self._on_scheduler)
            # What other people's tasks print is no news of this run.
            for topic in ("print", "warn"):
                self._client.unsubscribe_topic(topic)

    @property
    def is_parting(self) -> bool:
        """Whether some that were let go of have not ended yet."""
        return bool(self._parting)

    def may_join(self, address: str) -> bool:
        """Return whether a Dask worker can be made a node now."""
        here = (*self, *self._parting.values())
        taken = (
            self.closing or address in self.leaving or any(node.address == address for node in here)
        )
        return not taken and self._losses[address] < MAX_LOSSES

    def is_watched(self, node: Node) -> bool:
        """Return whether its silence means anything: an embedded one is a thread of this process."""
        return node.joined and not self._target.embedded

    # -- joining -----------------------------------------------------------------------------

    def join(self, address: str) -> None:
        """Make a Dask worker a node."""
        node = Node(name=f"node{self._named:03d}", address=address, agent_id=uuid.uuid4().hex[:12])
        self._named += 1
        self._nodes[node.name] = node
        self.spawn(self._join(node))

    async def _join(self, node: Node) -> None:
        node.joining = asyncio.current_task()
        try:
            info = await self.contact.start(node)
        except Exception as error:
            why = str(error) or type(error).__name__
            self.drop(node, f"its Dask worker could not be reached: {why}", innocent=True)
            return
        if home := info.get("home"):  # what it says of that in its logs
            await asyncio.to_thread(self.apart.take_in, node, home)
        if failure := info.get("failure"):
            if "lacking" in info and not self._any_joined:
                where = f"{node.name} ({node.address})"
                self._events.put(NodeLacks(node=where, lacking=info["lacking"], reason=failure))
            reason = f"it could not be started: {failure}"
            # One that has ended by itself, without a lease for long (`agent.LEASE_S`), can be one again;
            # one without our code has nothing of ours that could be ended.
            for_good, unfit = "has_ended" not in info, "is_unfit" in info
            self.drop(node, reason, for_good=for_good, innocent=True, gone=unfit)
        elif node.name in self._nodes:
            node.joined = self._any_joined = True
            node.apart, node.unseen = info["apart"], frozenset(info["unseen"])
            if node.apart:
                node.homeward = self.spawn(self.apart.accompany(node))
                self.apart.joined(info["nowhere"])
            self._tell_of(node, info)

    def _tell_of(self, node: Node, info: dict[str, Any]) -> None:
        told = {name: info[name] for name in ("host", "processes", "gpus")}
        joined = NodeJoined(node=node.name, address=node.address, joined_at=time.time(), **told)
        self._events.put(joined)
        for news in info["news"]:
            self._events.put(NodeNews(event=news))

    def check_lease(self, node: Node) -> None:
        """Take out a node of which the lease has ended: it has let go, or was let go of."""
        if node.joined and node.lease is not None and node.lease.done():
            self.broke(node, "it has ended by itself")

    def broke(self, node: Node, otherwise: str) -> None:
        """Take out a node of which Dask has forgotten the tasks; `otherwise` is why, if not by a break.

        Dask forgets all of a client whose connection breaks, its leases too.
        """
        if self._client.status != "running":
            self.drop(node, "the connection to the Dask scheduler broke", innocent=True)
        else:
            self.drop(node, otherwise)

    # -- leaving -----------------------------------------------------------------------------

    def drop(
        self,
        node: Node,
        reason: str,
        *,
        for_good: bool = False,
        innocent: bool = False,
        gone: bool = False,
    ) -> None:
        """Take out a node that is lost; another Dask worker, or the same, may take its place.

        Args:
            node: nothing happens if it is lost already.
            reason: in words.
            for_good: its Dask worker is not tried again.
            innocent: nothing that ran there can have caused it; see `events.NodeLost.expected`.
            gone: its Dask worker is no more, or has none of our code, so that nobody is to be told.
        """
        if self.closing or self._nodes.pop(node.name, None) is None:
            return
        node.lost = True
        if node.joining is not None and node.joining is not asyncio.current_task():
            node.joining.cancel()
        self.apart.lost(node)
        self.why, self.lost_at = reason, asyncio.get_running_loop().time()
        self._events.put(
            NodeLost(node=node.name, reason=reason, for_good=for_good, expected=innocent)
        )
        if for_good:
            self._losses[node.address] = MAX_LOSSES
        elif not innocent and (self._nodes or not node.bundles):
            self._losses[node.address] += 1
        if node.bundles and not self._target.is_lost:
            self.spawn(self._client.cancel(list(node.bundles.values()), asynchronous=True))
        if node.lease is not None:
            node.lease.release()
        if not gone:
            self.leaving.add(node.address)
            sending = self.spawn(self._send_away(node))
            if node.silent_s < SILENT_AT_END_S:
                self.apart.sent_away(node, sending)
        self.changed.set()

    def let_go(self, node: Node, reason: str) -> None:
        """End a node that has nothing to do, and leave its Dask worker to others, or to its end."""
        if self.closing or self._nodes.pop(node.name, None) is None:
            return
        self._parting[node.name] = node
        self._events.put(NodeLost(node=node.name, reason=reason, expected=True, left=True))
        node.parting = self.spawn(self._part(node))

    async def _part(self, node: Node) -> None:
        try:
            await self._say_goodbye(node, gracefully=True)
        except Exception as error:
            self._log.warning("%s could not be ended: %r", node.name, error)
        self.apart.lost(node)
        del self._parting[node.name]
        self.changed.set()

    async def _send_away(self, node: Node) -> None:
        """End a node that is lost, once its Dask worker answers again; it is no node before that."""
        while node.address in self.leaving:
            try:
                await self.contact.run_on(node, calls.stop_node, node.agent_id, False, node.apart)
                if node.apart:  # its logs say why it was lost
                    await self.apart.take_last(node)
                break
            except Exception as error:
                self._log.debug("%s cannot be told to end yet: %r", node.name, error)
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(OSError, TimeoutError):
                if node.address not in await self._target.workers():
                    break
        self.leaving.discard(node.address)
        self.changed.set()

    async def close(self, *, gracefully: bool, limit_s: float) -> None:
        """End the run on every node, and all that goes on here; what does not answer ends by itself."""
        self.closing = True
        there = self if gracefully else (*self, *self._parting.values())
        goodbyes = [self.spawn(self._say_goodbye(node, gracefully=gracefully)) for node in there]
        if gracefully:
            goodbyes += filter(None, (node.parting for node in self._parting.values()))
        if self.leaving:
            goodbyes.append(self.spawn(self.apart.wait_for_logs()))
        try:
            if goodbyes:
                await asyncio.wait(goodbyes, timeout=limit_s)
        except asyncio.CancelledError:  # somebody ends the run while it waits for `shutdown()`
            for goodbye in goodbyes:
                goodbye.cancel()
            raise
        if bundles := [future for node in self for future in node.bundles.values()]:
            await self._client.cancel(bundles, asynchronous=True)
        # Who waits for one of those ends by itself; Dask complains of one that is cancelled.
        await asyncio.sleep(0.05)
        if unfinished := list(self._tasks):
            for task in unfinished:
                task.cancel()
            await asyncio.wait(unfinished, timeout=RETRY_S)
        if self._client.status == "running":
            # Before the client closes: the scheduler logs a traceback otherwise.
            self._client.unsubscribe_topic(self._topic)
            self._client.unsubscribe_topic("all")

    async def _say_goodbye(self, node: Node, *, gracefully: bool) -> None:
        """End a node, also one that is still joining; wait no longer than it can be heard."""
        if gracefully and node.joining is not None:
            await asyncio.wait({node.joining}, timeout=JOIN_S)
        stop = self.contact.run_on(node, calls.stop_node, node.agent_id, gracefully, node.apart)
        lacking = self.apart.LACKING if node.apart else ""
        try:
            for news in await self._answered(node, stop):
                self._events.put(NodeNews(event=news))
            if node.apart:
                await self._answered(node, self.apart.take_last(node))
        except (OSError, TimeoutError) as error:
            self._log.warning(
                "%s does not answer at the end; it ends by itself%s: %s", node.name, lacking, error
            )
        except asyncio.CancelledError:
            if lacking:
                self._log.warning("%s is not waited for any longer%s", node.name, lacking)
            raise
        finally:
            if node.lease is not None:
                node.lease.release()

    async def _answered(self, node: Node, asked: Coroutine[Any, Any, Any]) -> Any:
        """Return what a node answers, for as long as it can be heard.

        Raises:
            TimeoutError: it cannot any more.
        """
        answer = asyncio.ensure_future(asked)
        try:
            while not answer.done() and node.silent_s < SILENT_AT_END_S:
                await asyncio.wait({answer}, timeout=RETRY_S)
                node.silent_s += RETRY_S * self.is_watched(node)
            if not answer.done():
                raise TimeoutError(f"silent for {node.silent_s:.0f} s")
            return answer.result()
        finally:
            answer.cancel()

    # -- what comes in -----------------------------------------------------------------------

    def _on_news(self, event: tuple[float, messages.Event]) -> None:
        news = event[1]
        # Dask tells there what it does for the client: of no node.
        name = news.get("node", "")
        node = self._nodes.get(name) or self._parting.get(name)
        if node is None:
            return
        node.silent_s = 0.0
        if news["name"] == "alive":
            return
        if news["name"] == "wants":
            self.spawn(self.apart.answer(node, news["request"], news["wanted"]))
            return
        if news["name"] == "fetching":
            node.fetched_at = asyncio.get_running_loop().time()
        self._events.put(NodeNews(event=news))
        if news["name"] == "supervisor_ended":
            self.drop(node, "its supervisor ended")
        elif news["name"] == "leaving":
            self.drop(node, "its Dask worker is closing", innocent=True, gone=True)
        elif news["name"] == "gave_up":
            reason = "no worker process could be started there"
            self.drop(node, reason, for_good=True, innocent=True)

    def _on_scheduler(self, event: tuple[float, dict[str, Any]]) -> None:
        message = event[1]
        if not isinstance(message, dict):
            return
        if message.get("action") == "add-worker":
            self.changed.set()
        if message.get("action") != "remove-worker":
            return
        address, expected = message["worker"], message["expected"]
        self.leaving.discard(address)
        for node in self:
            if node.address == address:
                reason = "its Dask worker was retired" if expected else "its Dask worker is gone"
                self.drop(node, reason, innocent=expected, gone=True)

    def worked(self, node: Node) -> None:
        """Note that a node has brought a result."""
        node.silent_s = 0.0
        self._losses.pop(node.address, None)
