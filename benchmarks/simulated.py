"""Simulated nodes in the place of a Dask cluster: coroutines on a clock of their own.

For `scale.py`. The driver is the real one, and so are the bytes that it gets: results come framed as
worker processes frame them. Only what lies between is left out: Dask, supervisors, the script itself.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any

from prefect_parallelrun.driver.bundle import Bundle
from prefect_parallelrun.driver.events import BundleEnded, Event, NodeJoined, NodeLost, NodeNews
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun_runtime import channel, messages, result_header

ROUND_S = 0.01
"""Of the simulated clock: how much happens at least while the driver is at something else."""
JOIN_S = 3.0
"""How long a node and its processes take to start, on the simulated clock."""

Work = Coroutine[float, None, None]


class Clock:
    """A loop for coroutines that wait for nothing but a time; it never waits itself."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Work]] = []
        self._order = itertools.count()

    def spawn(self, work: Work) -> None:
        """Begin it at the next turn."""
        heapq.heappush(self._due, (self.now, next(self._order), work))

    def run(self, until: float) -> None:
        """Let all happen that is due by then."""
        due, order = self._due, self._order
        while due and due[0][0] <= until:
            self.now, _, work = heapq.heappop(due)
            try:
                wait_s = work.send(None)
            except StopIteration:
                continue
            heapq.heappush(due, (self.now + wait_s, next(order), work))
        self.now = max(self.now, until)

    @property
    def next_at(self) -> float:
        """When the next thing happens; infinite: nothing ever will."""
        return self._due[0][0] if self._due else math.inf


class sleep:
    """Wait for so many seconds of the clock."""

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        yield self._seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is simulated."""

    nodes: int
    processes: int
    """Of each node."""
    seconds: float
    """That a mini-batch takes, in the middle; some take half, some twice as long."""
    fail_every: int
    """One attempt of so many raises."""
    lose_every_s: float
    """A node is lost so often, and another one comes."""


@dataclass(slots=True, eq=False)
class _Node:
    name: str
    alive: bool = True
    waiting: deque[tuple[int, list[messages.Task]]] = field(default_factory=deque)
    """Bundles that no process has taken up: number and tasks."""
    idle: deque[_Process] = field(default_factory=deque)


class _Process:
    """A worker process: takes bundle after bundle, and sleeps where there is none."""

    def __init__(self, cluster: SimulatedCluster, node: _Node, name: str) -> None:
        self._cluster = cluster
        self._node = node
        self._name = name

    async def work(self) -> None:
        """Run what waits on the node; ends where nothing does, and is spawned again."""
        node, cluster = self._node, self._cluster
        while node.alive and node.waiting:
            number, tasks = node.waiting.popleft()
            cluster.say(node.name, "bundle_started", bundle=number)
            frames = await self._bundle(number, tasks)
            if node.alive:
                cluster.ended(number, frames)
        node.idle.append(self)

    async def _bundle(self, number: int, tasks: list[messages.Task]) -> bytes:
        cluster, began = self._cluster, self._cluster.clock.now
        frames: list[bytes] = []
        finished = 0
        for position, task in enumerate(tasks):
            seconds = cluster.seconds()
            await sleep(seconds)
            failed = cluster.fails()
            frames += self._result(number, position, task, seconds, failed)
            finished += 1
            # As worker processes do, so that results are told soon.
            if failed or cluster.clock.now - began > cluster.bundle_limit_s:
                break
        end = messages.BundleEnd(finished=finished, process=self._name)
        frames.append(channel.pack(channel.BUNDLE_END, number, end))
        return b"".join(frames)

    def _result(
        self, number: int, position: int, task: messages.Task, seconds: float, failed: bool
    ) -> tuple[bytes, bytes]:
        header = messages.Result(
            position=position,
            process=self._name,
            outcome="failed" if failed else "succeeded",
            items=1,
            rows=0 if failed else 1,
            started_at=self._cluster.epoch + self._cluster.clock.now - seconds,
            elapsed_s=seconds,
            cpu_s=seconds,
            load_s=0.0,
            run_s=seconds,
        )
        row = b"" if failed else b"%d,0.123456789,a label\n" % task[0]
        if failed:
            header["error"] = messages.Error(
                category="exception",
                type="ValueError",
                message=f"rank {task[0]} is not to be had",
                where="mark_start.py:15 in run",
                traceback="Traceback (most recent call last):\nValueError: not to be had",
                stage="run",
            )
        head = result_header.encode(header)
        return channel.pack_before(channel.RESULT, number, head, len(row)), row


class SimulatedCluster:
    """Stands where the driver has its `Cluster`: bundles go out, events come back.

    Args:
        scene: what is simulated.
        delivered: is told, in the driver's thread, how many bundles and mini-batches are done.
    """

    def __init__(self, scene: Scene, delivered: Callable[[int, int], None]) -> None:
        self._scene = scene
        self._delivered = delivered
        self._random = random.Random(0)
        self._events: list[Event] = []
        self._nodes: dict[str, _Node] = {}
        self._sent: dict[int, int] = {}
        self.clock = Clock()
        self.epoch = time.time()
        self.bundle_limit_s = 0.0
        self.dashboard = ""
        self.joining: list[str] = []
        self.bundles = self.mini_batches = self.lost = 0
        self.wall_s = self.cpu_s = 0.0
        """Spent here for the nodes, which would be other machines' time."""
        self.writer_cpu_s = 0.0
        """Of the thread that writes rows and journal."""

    def __call__(self, *_: Any, first_node: int = 0, log: logging.Logger, **__: Any) -> Any:
        """Take the place of `Cluster`, which the driver makes."""
        self._named = itertools.count(first_node)
        return self

    def start(self, settings: messages.Settings, _paths: Any, fetched: Fetched) -> None:
        """Let nodes join, and now and then one be lost."""
        self._fetched = fetched
        self.bundle_limit_s = settings["bundle_limit_s"]
        for _ in range(self._scene.nodes):
            self.clock.spawn(self._join())
        self.clock.spawn(self._losses())

    def submit(self, bundle: Bundle) -> None:
        """Send a bundle, as the real one does up to the point where Dask takes it."""
        header = messages.BundleHeader(count=len(bundle.members), avoid=bundle.avoid)
        tasks = json.dumps(self._fetched.tasks(bundle), separators=(",", ":")).encode()
        assert header["count"]
        began, cpu = time.perf_counter(), time.thread_time()
        node = self._nodes.get(bundle.node)
        if node is None:
            self._events.append(BundleEnded(number=bundle.number, frames=b""))
        else:
            self._sent[bundle.number] = len(bundle.members)
            node.waiting.append((bundle.number, json.loads(tasks)))
            if node.idle:
                self.clock.spawn(node.idle.popleft().work())
        self._spent(began, cpu)

    def collect(self, timeout_s: float) -> list[Event]:
        """Let the clock go on, at least to the next thing that happens; return what did."""
        began, cpu = time.perf_counter(), time.thread_time()
        if timeout_s:
            until = self.clock.now + ROUND_S
            while not self._events and self.clock.next_at < math.inf:
                self.clock.run(until)
                until = max(until + ROUND_S, self.clock.next_at)
        events, self._events = self._events, []
        self._spent(began, cpu)
        self._delivered(self.bundles, self.mini_batches)
        return events

    def close(self, *, gracefully: bool) -> None:
        """Note what the writing thread has taken; the nodes just vanish."""
        assert gracefully
        for thread in threading.enumerate():
            if thread.name == "parallelrun-writer" and thread.ident is not None:
                clock = time.pthread_getcpuclockid(thread.ident)
                self.writer_cpu_s = time.clock_gettime(clock)
        self._nodes.clear()

    # -- for the simulated ---------------------------------------------------------------------

    def say(self, node: str, name: str, **more: Any) -> None:
        """Tell the driver what a supervisor tells."""
        news = messages.Event(name=name, node=node)
        news.update(more)  # type: ignore[typeddict-item]
        self._events.append(NodeNews(event=news))

    def ended(self, number: int, frames: bytes) -> None:
        """Hand a bundle back."""
        self.bundles += 1
        self.mini_batches += self._sent.pop(number)
        self._events.append(BundleEnded(number=number, frames=frames))

    def seconds(self) -> float:
        """Return what a mini-batch takes."""
        return self._scene.seconds * math.exp(self._random.gauss(0.0, 0.5))

    def fails(self) -> bool:
        """Return whether an attempt raises."""
        return self._random.random() * self._scene.fail_every < 1

    # -- inside --------------------------------------------------------------------------------

    def _spent(self, began: float, cpu: float) -> None:
        self.wall_s += time.perf_counter() - began
        self.cpu_s += time.thread_time() - cpu

    async def _join(self) -> None:
        node = _Node(f"node{next(self._named):03d}")
        self._nodes[node.name] = node
        self.joining.append(node.name)
        await sleep(JOIN_S * self._random.uniform(0.5, 1.5))
        self.joining.remove(node.name)
        joined = NodeJoined(
            node=node.name,
            host="simulated",
            address=f"tcp://{node.name}:9000",
            processes=self._scene.processes,
            gpus=0,
            joined_at=self.epoch + self.clock.now,
        )
        self._events.append(joined)
        for number in range(self._scene.processes):
            name = f"process{number:03d}"
            at = self.epoch + self.clock.now
            self.say(node.name, "process_started", process=name, pid=1, at=at)
            self.say(node.name, "process_ready", process=name, pid=1, at=at, seconds=0.5)
            node.idle.append(_Process(self, node, name))

    async def _losses(self) -> None:
        """Lose a node with all that it has; another one takes its place."""
        while True:
            await sleep(self._scene.lose_every_s)
            there = [node for name, node in self._nodes.items() if name not in self.joining]
            if there:
                node = self._random.choice(there)
                node.alive = False
                del self._nodes[node.name]
                self.lost += 1
                self._events.append(NodeLost(node=node.name, reason="simulated"))
                self.clock.spawn(self._join())
