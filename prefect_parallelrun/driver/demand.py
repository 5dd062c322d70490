"""How many Dask workers a run could use, said in the only words to which a cluster that scales listens."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import dask
import distributed
from dask.utils import parse_timedelta

from prefect_parallelrun.driver.target import ANSWER_S

NOBODY_HAS = {"parallelrun-node": 1.0}
"""A Dask resource of no Dask worker."""
MOST_TASKS = 20_000
"""More are never submitted: each is a few kilobytes on the scheduler."""
TRIES = 10
"""How often the scheduler is told of tasks before it is left for later."""


class Demand:
    """Lets a cluster that grows by itself know how many Dask workers a run could use.

    Ours are pinned to Dask workers that are there, and wait in no queue. To the scheduler, which tells
    an adaptive cluster how many it needs (`Scheduler.adaptive_target`), such a run looks as if it needed
    none. So there are tasks as well that nobody can run, as many, and said to last so long, that it
    comes to the number that is wanted. Nothing ever becomes of them.

    Args:
        client: of the scheduler.
        name: under which the Dask dashboard shows them.
        target_s: the `target_duration` of the cluster's scaling, where it is known.
        log: of the run.
    """

    def __init__(
        self,
        client: distributed.Client,
        *,
        name: str,
        target_s: float | None,
        log: logging.Logger,
    ) -> None:
        self._client = client
        self._name = name
        self._target_s = target_s
        self._log = log
        self._tasks: list[distributed.Future[Any]] = []
        self._is_told = False
        """Whether the scheduler knows how long they are said to last."""

    async def want(self, workers: int, threads: Sequence[int]) -> None:
        """Let it be known how many Dask workers there should be in all, with those that there are.

        Args:
            workers: 0: none is asked for.
            threads: of each Dask worker that there is. The scheduler counts threads as soon as it knows
                how many a Dask worker has.

        Raises:
            OSError: the connection is broken.
            TimeoutError: the scheduler does not answer.
        """
        # Cancelled: the connection broke, and it may be another scheduler now. Failed: they have waited
        # as long as that lets tasks wait (`distributed.scheduler.no-workers-timeout`), and count no more.
        if any(task.status != "pending" for task in self._tasks):
            self._tasks.clear()
        if not self._tasks:
            self._is_told = False
        # The least that takes so many, for it is rounded up, and what others wait for is added.
        full = workers
        if workers and threads:
            full = (workers - 1) * sum(threads) // len(threads) + 1
        # Each is half of what one thread is to have to do: were they fewer than the threads that they
        # come to, the scheduler would count what runs, too.
        count = min(max(2 * full - 1, 0), MOST_TASKS)
        while len(self._tasks) > count:
            self._tasks.pop().release()
        if count > len(self._tasks):
            self._tasks += self._submit(count - len(self._tasks))
        if self._tasks and not self._is_told:
            await self._tell()

    def _submit(self, count: int) -> list[distributed.Future[Any]]:
        """Submit so many more in one message."""
        made = uuid.uuid4().hex[:12]
        keys = [f"{self._name}-{made}-{number:05d}" for number in range(count)]
        futures: list[distributed.Future[Any]] = self._client.map(
            int, range(count), key=keys, resources=NOBODY_HAS
        )
        return futures

    async def _tell(self) -> None:
        """Tell the scheduler how long they last: what it does not know it takes for half a second."""
        tell = _telling(self._name, self._target_s)
        try:
            for _ in range(TRIES):
                telling = self._client.run_on_scheduler(tell, asynchronous=True)
                self._is_told = await asyncio.wait_for(telling, ANSWER_S)
                if self._is_told:
                    return
                await asyncio.sleep(0.05)  # the tasks are still on their way
        except (OSError, TimeoutError):
            raise
        except Exception as error:  # it may refuse what is pickled: the cluster grows by less, then
            self._log.debug("The Dask scheduler cannot be told what a node does: %r", error)
            self._is_told = True


def further(missing: int, coming: int, useless: int, node_count: int) -> int:
    """Return how many Dask workers a cluster should have more than it has; negative: fewer.

    Others are wanted in place of those that cannot be nodes, but not without end: what is wrong with these
    may be wrong with each that comes.

    Args:
        missing: nodes that a run has too few.
        coming: Dask workers that may become nodes.
        useless: those that cannot.
        node_count: of the run; so many of the useless are made up for.
    """
    return max(missing - coming, 0) - max(useless - node_count, 0)


def _telling(name: str, target_s: float | None) -> Callable[..., bool]:
    """Return what the scheduler is to do; within, so that it is sent whole: it may lack this package."""

    def tell(dask_scheduler: Any) -> bool:
        prefix = dask_scheduler.task_prefixes.get(name)
        if prefix is None:
            return False
        configured = dask.config.get("distributed.adaptive.target-duration")
        prefix.duration_average = (target_s or parse_timedelta(configured)) / 2
        return True

    return tell
