"""What the driver says to one node over Dask: begin, run this, end.

All of it happens on the event loop of the Dask client.
"""

from __future__ import annotations

import asyncio
from typing import Any

import distributed

from prefect_parallelrun.driver import versions
from prefect_parallelrun.driver.node import Node, task_name
from prefect_parallelrun.driver.target import Target
from prefect_parallelrun.node import agent, calls
from prefect_parallelrun.node.sources import Sources
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun_runtime import messages

JOIN_LIMIT_S = 120.0
"""How long a Dask worker may take to become a node: it unpacks the source, and may be busy. Where there
are side inputs to fetch, it is how long nothing may be heard of that, beside what one request may take."""

PRIORITY = 1
"""Before other people's tasks that wait for the same Dask worker: ours take a thread of it for a moment, and
behind a long queue the processes that are there for them would stand idle."""

_BY_NAME = "__import__('pkgutil').resolve_name(name)(*args)"
"""What a task is to the scheduler: nothing of ours, which only the Dask worker has to know."""


class Contact:
    """Has functions run on the Dask workers that are nodes of one run.

    Args:
        target: whose Dask workers they are.
        step: name of the step, under which the Dask dashboard shows what is submitted.
        topic: under which the agents publish their news.
    """

    def __init__(self, target: Target, *, step: str, topic: str) -> None:
        self._client = target.client
        self._embedded = target.embedded
        self._task_name = task_name(step)
        self._topic = topic

    def begin(self, settings: messages.Settings, paths: RunPaths, sources: Sources) -> None:
        """Take in what each node must know."""
        self._settings = settings
        self._paths = paths
        self._sources = sources

    async def start(self, node: Node) -> dict[str, Any]:
        """Make a Dask worker the node; return what it says of itself, or why it cannot be one.

        It may take long, as long as it gets on.

        Raises:
            TimeoutError: nothing was heard for too long.
            Exception: its Dask worker cannot be reached.
        """
        loop = asyncio.get_running_loop()
        limit_s = JOIN_LIMIT_S
        if any(one.copied for one in self._sources.side_inputs):
            limit_s += self._settings["load_timeout_s"]
        node.fetched_at = loop.time()
        start = asyncio.ensure_future(self._start(node))
        try:
            while not start.done():
                left_s = node.fetched_at + limit_s - loop.time()
                if left_s <= 0:
                    raise TimeoutError(f"nothing for {limit_s:g} s")
                await asyncio.wait({start}, timeout=left_s)
            return start.result()
        finally:
            start.cancel()

    async def _start(self, node: Node) -> dict[str, Any]:
        if not self._embedded:
            # What it takes to load the package may be missing, or have been exchanged, in the meantime.
            there = await self.call(node.address, *versions.question(load=calls.__name__))
            if wrong := versions.trouble(there):
                where = f"{node.address} on {there['host']}"
                return {"failure": f"{where}: {wrong}", "is_unfit": True}
        settings: messages.Settings = {**self._settings, "node": node.name}
        await self.run_on(
            node,
            calls.admit_node,
            node.agent_id,
            settings,
            str(self._paths.root),
            self._topic,
            self._sources,
        )
        # Before anything is started: its end tells the node that the driver has died.
        node.lease = self.submit(node, agent.LEASE, calls.hold_node, node.agent_id)
        info: dict[str, Any] = await self.run_on(node, calls.start_node, node.agent_id)
        return info

    def submit(self, node: Node, what: str, function: Any, *args: Any) -> distributed.Future[Any]:
        """Submit a Dask task that only this Dask worker may run, and never a second time.

        The scheduler loads each function that it hands on, and has refused ours where it lacks the package.
        """
        name = f"{function.__module__}:{function.__qualname__}"
        return self._client.submit(
            eval,
            _BY_NAME,
            {},
            {"name": name, "args": args},
            key=f"{self._task_name}-{what}-{node.agent_id}",
            workers=[node.address],
            allow_other_workers=False,
            pure=False,
            priority=PRIORITY,
        )

    async def run_on(self, node: Node, function: Any, *args: Any) -> Any:
        """Have a function run on the event loop of a node's Dask worker, past whatever is queued.

        Raises:
            Exception: what it raises, or that the Dask worker cannot be reached.
        """
        return await self.call(node.address, function, *args)

    async def call(self, address: str, function: Any, *args: Any) -> Any:
        """Have a function run on the event loop of a Dask worker, be it a node or not.

        Raises:
            Exception: what it raises, or that the Dask worker cannot be reached.
        """
        answers = await self._client.run(
            function, *args, workers=[address], on_error="raise", asynchronous=True
        )
        return answers[address]
