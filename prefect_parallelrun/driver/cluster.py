"""A compute target becomes nodes; bundles go out and events come back. The driver's only Dask.

The seam is small on purpose (submit, collect, stop): the run does not know what carries its bundles.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import queue
import uuid
from collections import Counter
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import distributed

from prefect_parallelrun.driver.bundle import Bundle
from prefect_parallelrun.errors import ClusterError
from prefect_parallelrun.node import agent
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun_runtime import messages

REMEMBERED_MESSAGES = 10
"""Each of Dask's connections keeps its last 1,000 messages for debugging. Ours carry the paths of up to
5,000 files each: hundreds of megabytes in the flow's process."""
JOIN_S = 15.0
"""How long a node that is still joining may hold up the end of a run."""
MAX_LOSSES = 3
"""A Dask worker on which so many nodes were lost is not tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJoined:
    """A Dask worker became a node."""

    node: str
    processes: int
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost:
    """A node is gone, or never came to be; what it had is to run elsewhere."""

    node: str
    reason: str
    for_good: bool = False
    """Whether its Dask worker is not to be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNews:
    """What a node's supervisor says of its processes."""

    event: messages.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleEnded:
    """A bundle came back; `frames` is empty where no process ever had it."""

    number: int
    frames: bytes


Event = NodeJoined | NodeLost | NodeNews | BundleEnded


@dataclass(slots=True, kw_only=True)
class _Node:
    name: str
    address: str
    agent_id: str
    bundles: dict[int, distributed.Future[bytes]]
    joining: concurrent.futures.Future[None] | None = None
    joined: bool = False
    lease: distributed.Future[None] | None = None
    """See `agent.hold_node`."""


class Cluster:
    """The Dask side of one run, from the first node to the last.

    Args:
        target: None for a cluster of in-process Dask workers that ends with the run, the address of
            a scheduler, or a Dask cluster object.
        node_count: so many Dask workers become nodes; a later one takes the place of one that is lost.
        step: name of the step, under which the Dask dashboard shows the bundles.
        run_id: of the run.
        log: of the run.
    """

    def __init__(
        self, target: Any, *, node_count: int, step: str, run_id: str, log: logging.Logger
    ) -> None:
        self._step = step
        self._log = log
        self._node_count = node_count
        self._topic = f"parallelrun-{run_id}"
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._nodes: dict[str, _Node] = {}
        self._losses: Counter[str] = Counter()
        self._removed: set[str] = set()
        self._named = 0
        self._closing = False
        # Prefect prints all that Dask says at INFO. Of an embedded cluster nothing matters to the user:
        # even the closing of its connections is an error to Dask; what does matter, the driver tells.
        self._dask_log = logging.getLogger("distributed")
        self._dask_level = self._dask_log.level
        self._dask_log.setLevel(
            max(self._dask_level, logging.CRITICAL if target is None else logging.WARNING)
        )
        with dask.config.set(
            {
                "distributed.admin.low-level-log-length": REMEMBERED_MESSAGES,
                # A hundred times a second it asks for the frames of all threads, which in Python 3.11
                # before 3.11.9 can lock up the whole process for good when a garbage collection and
                # the start of a thread coincide with it (CPython's gh-106883; a flow froze so). Each
                # bundle starts a thread, and all that they do is wait: there is nothing to profile.
                "distributed.worker.profile.enabled": False,
            }
        ):
            self._connect(target)
        self._client.subscribe_topic(self._topic, self._on_news)
        self._client.subscribe_topic("all", self._on_scheduler)

    def _connect(self, target: Any) -> None:
        self._own = _embedded(self._node_count) if target is None else None
        if isinstance(target, str):
            self._log.info("Connecting to the Dask scheduler at %s", target)
        try:
            self._client = distributed.Client(self._own or target, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            self._close_own()
            self._dask_log.setLevel(self._dask_level)
            raise ClusterError(
                f"compute_target={target!r}: no Dask scheduler answers there: {error}"
            ) from error

    @property
    def dashboard(self) -> str:
        """Address of the Dask dashboard, or empty."""
        if self._own is not None:
            # In process, Dask would name the host's address; but it listens on loopback.
            scheduler: Any = self._own.scheduler
            return f"http://127.0.0.1:{scheduler.services['dashboard'].port}/status"
        return str(self._client.dashboard_link or "")

    def start(self, settings: messages.Settings, paths: RunPaths) -> None:
        """Make Dask workers nodes, now and as they come, until there are `node_count`."""
        self._settings = settings
        self._paths = paths
        self.tend()

    @property
    def nodes(self) -> int:
        """How many nodes there are, those that are still starting included."""
        return len(self._nodes)

    def tend(self) -> None:
        """Start nodes on Dask workers that are not yet one, while there are too few.

        Raises:
            ClusterError: the scheduler is gone.
        """
        if self._client.status in ("closing", "closed"):
            raise ClusterError("the connection to the Dask scheduler is lost for good")
        if len(self._nodes) >= self._node_count:
            return
        taken = {node.address for node in self._nodes.values()}
        workers = self._client.scheduler_info(n_workers=-1).get("workers", {})
        free = [a for a in sorted(workers) if a not in taken and self._losses[a] < MAX_LOSSES]
        for address in free[: self._node_count - len(self._nodes)]:
            self._start_node(address)

    def submit(self, bundle: Bundle) -> None:
        """Send a bundle to its node; its end comes back as an event."""
        node = self._nodes.get(bundle.node)
        if node is None:
            self._events.put(BundleEnded(number=bundle.number, frames=agent.STALE))
            return
        header = messages.BundleHeader(count=len(bundle.members), avoid=bundle.avoid)
        tasks = json.dumps(bundle.tasks(), separators=(",", ":")).encode()
        future = self._submit(
            node,
            f"{bundle.number:07d}",
            agent.run_bundle,
            node.agent_id,
            bundle.number,
            header,
            tasks,
        )
        node.bundles[bundle.number] = future
        self._spawn(self._follow(node, bundle.number, future))

    def collect(self, timeout_s: float) -> list[Event]:
        """Return what has happened, waiting at most `timeout_s` seconds for the first of it."""
        try:
            events = [self._events.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        return events

    def forget(self, node: str, *, for_good: bool) -> None:
        """Take a node out; another Dask worker, or (not for_good) the same, may take its place."""
        if (gone := self._nodes.pop(node, None)) is None:
            return
        self._losses[gone.address] += MAX_LOSSES if for_good else 1
        if gone.bundles:
            self._client.cancel(list(gone.bundles.values()), asynchronous=False)
        if gone.address not in self._removed:  # else nobody is there to be told
            self._spawn(self._leave(gone, gracefully=False))

    def close(self, *, gracefully: bool) -> None:
        """End the run on every node and let go of the cluster; nothing of ours is left on it."""
        self._closing = True
        nodes = list(self._nodes.values())
        try:
            stops = [self._leave(node, gracefully=gracefully) for node in nodes]
            if stops:
                limit = JOIN_S + 15 + (self._settings["shutdown_timeout_s"] if gracefully else 0)
                asyncio.run_coroutine_threadsafe(_all(stops), self._loop).result(limit)
        except (TimeoutError, OSError) as error:
            self._log.warning("A node did not end in time; it ends by itself: %r", error)
        finally:
            if self._client.status == "running":
                # Before the client closes: the scheduler logs a traceback otherwise.
                self._client.unsubscribe_topic(self._topic)
                self._client.unsubscribe_topic("all")
            self._client.close(timeout=10)
            self._close_own()
            self._dask_log.setLevel(self._dask_level)

    # -- inside ------------------------------------------------------------------------------

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop: Any = self._client.loop
        return loop.asyncio_loop  # type: ignore[no-any-return]

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def _start_node(self, address: str) -> None:
        node = _Node(
            name=f"node{self._named:03d}",
            address=address,
            agent_id=uuid.uuid4().hex[:12],
            bundles={},
        )
        self._named += 1
        self._nodes[node.name] = node
        self._removed.discard(address)
        files = messages.Files(**self._paths.node_files(node.name))  # type: ignore[typeddict-item]
        settings: messages.Settings = {**self._settings, "node": node.name, "files": files}
        node.joining = asyncio.run_coroutine_threadsafe(self._join(node, settings), self._loop)

    async def _join(self, node: _Node, settings: messages.Settings) -> None:
        try:
            info = await self._run_on(
                node, agent.start_node, node.agent_id, settings, str(self._paths.root), self._topic
            )
            if "failure" not in info:
                node.lease = self._submit(node, "node", agent.hold_node, node.agent_id)
            failure = info.get("failure")
        except Exception as error:
            failure = repr(error)
        if failure:
            reason = f"it could not be started: {failure}"
            self._events.put(NodeLost(node=node.name, reason=reason, for_good=True))
            return
        node.joined = True
        description = (
            f"{node.address} on {info['host']}, {info['processes']} processes, {info['gpus']} GPUs"
        )
        self._events.put(
            NodeJoined(node=node.name, processes=info["processes"], description=description)
        )

    async def _leave(self, node: _Node, *, gracefully: bool) -> None:
        """End the run on a node, also on one that is still joining."""
        assert node.joining is not None
        joining = asyncio.wrap_future(node.joining)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(joining), JOIN_S)
        if node.joined:
            for news in await self._run_on(node, agent.stop_node, node.agent_id, gracefully):
                self._events.put(NodeNews(event=news))
        if node.lease is not None:
            node.lease.release()

    def _submit(self, node: _Node, what: str, function: Any, *args: Any) -> distributed.Future[Any]:
        """Submit a Dask task that only this Dask worker may run, and never a second time."""
        return self._client.submit(
            function,
            *args,
            key=f"{self._step}-{what}-{node.agent_id}",
            workers=[node.address],
            allow_other_workers=False,
            pure=False,
        )

    def _run_on(self, node: _Node, function: Any, *args: Any) -> Coroutine[Any, Any, Any]:
        async def call() -> Any:
            answers = await self._client.run(
                function, *args, workers=[node.address], on_error="raise", asynchronous=True
            )
            return answers[node.address]

        return call()

    async def _follow(self, node: _Node, number: int, future: distributed.Future[bytes]) -> None:
        try:
            frames = await self._client.gather(future, asynchronous=True)
        except (asyncio.CancelledError, Exception) as error:
            # A node that is lost is told by the scheduler's event.
            if node.name not in self._nodes or self._closing:
                return
            if self._client.status != "running":
                # Dask forgets all of a client whose connection breaks, its leases too.
                reason = "the connection to the Dask scheduler broke"
                self._events.put(NodeLost(node=node.name, reason=reason))
                return
            self._log.warning(
                "Bundle %d on %s came back without a result: %r", number, node.name, error
            )
            frames = agent.STALE
        if frames == agent.STALE and node.name in self._nodes and not self._closing:
            self._events.put(NodeLost(node=node.name, reason="it hands bundles back unrun"))
        # At once: Dask would run a finished one again if its worker died while somebody held it.
        node.bundles.pop(number, None)
        future.release()
        self._events.put(BundleEnded(number=number, frames=frames))

    def _on_news(self, event: tuple[float, messages.Event]) -> None:
        news = event[1]
        if news["name"] == "supervisor_ended":
            if not self._closing:
                self._events.put(NodeLost(node=news["node"], reason="its supervisor ended"))
            return
        self._events.put(NodeNews(event=news))

    def _on_scheduler(self, event: tuple[float, dict[str, Any]]) -> None:
        message = event[1]
        if not isinstance(message, dict):
            return
        if message.get("action") == "remove-worker":
            self._removed.add(message["worker"])
            for node in list(self._nodes.values()):
                if node.address == message["worker"]:
                    self._events.put(NodeLost(node=node.name, reason="its Dask worker is gone"))

    def _close_own(self) -> None:
        if self._own is not None:
            self._own.close(timeout=10)


async def _all(stops: Sequence[Awaitable[Any]]) -> None:
    await asyncio.gather(*stops, return_exceptions=True)


def _embedded(node_count: int) -> distributed.LocalCluster:
    """Start in-process Dask workers: scripts run in processes of their own, so Dask needs none.

    `memory_limit=0`: the workers would pause whenever the flow itself uses memory.
    """
    cores = len(os.sched_getaffinity(0))
    return distributed.LocalCluster(
        n_workers=node_count,
        threads_per_worker=max(1, cores // node_count),
        processes=False,
        memory_limit=0,
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )
