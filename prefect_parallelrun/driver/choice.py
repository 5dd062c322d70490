"""Which Dask workers become nodes where there are more than a run wants: those that others use least.

Each run begins with a lease on every node that it has (`calls.hold_node`), so the scheduler knows which
Dask workers are nodes, and of how many runs.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from distributed.comm.addressing import get_address_host

from prefect_parallelrun.driver.nodes import Nodes
from prefect_parallelrun.driver.target import ANSWER_S, Target
from prefect_parallelrun.node.agent import LEASE

_LEASE = re.compile(rf"-{LEASE}-([0-9a-f]{{12}})$")
_choices: weakref.WeakSet[Choice] = weakref.WeakSet()
"""Of all runs of this process: steps that are submitted at the same moment choose before any has a lease."""
_choosing = threading.Lock()


class Choice:
    """Makes Dask workers nodes of one run.

    Args:
        nodes: of the run.
        target: whose Dask workers there are to choose from.
    """

    def __init__(self, nodes: Nodes, target: Target) -> None:
        self._nodes = nodes
        self._target = target
        with _choosing:
            _choices.add(self)

    async def join(self, addresses: Iterable[str], wanted: int) -> None:
        """Let at most `wanted` of some Dask workers join: the least used, on as many hosts as there are.

        Raises:
            OSError: the connection is broken.
            TimeoutError: the scheduler does not answer.
        """
        free = list(addresses)
        if len(free) <= wanted:
            for address in free:
                self._nodes.join(address)
            return
        leases = await self._leases()
        if self._nodes.closing:
            return
        with _choosing:
            for choice in _choices:
                for address, agent_id in choice._held():
                    leases[address].add(agent_id)
            used = {address: len(agents) for address, agents in leases.items()}
            for address in least_used(free, used)[:wanted]:
                self._nodes.join(address)

    def _held(self) -> list[tuple[str, str]]:
        """Return address and agent of each node of the run, also of those that are still joining."""
        if self._nodes.closing:
            return []
        return [(node.address, node.agent_id) for node in self._nodes]

    async def _leases(self) -> defaultdict[str, set[str]]:
        """Return the agents of all runs that have a lease, by the address of their Dask worker."""
        if (scheduler := self._target.client.scheduler) is None:
            raise ConnectionError("the connection is closed")
        processing = await asyncio.wait_for(scheduler.processing(workers=None), ANSWER_S)
        found: defaultdict[str, set[str]] = defaultdict(set)
        for address, keys in processing.items():
            found[address].update(m[1] for key in keys if (m := _LEASE.search(str(key))))
        return found


def least_used(addresses: Iterable[str], nodes: Mapping[str, int]) -> list[str]:
    """Return the addresses of Dask workers in the order in which they are to become nodes.

    Those that are the fewest runs' nodes come first; of these, one on the host with the fewest nodes,
    those before it in the order included; and of equal ones any, for two processes that choose at the
    same moment.

    Args:
        addresses: of the Dask workers that there are to choose from.
        nodes: how many there are at each address; none where nothing is said.
    """
    left = sorted(addresses)
    random.shuffle(left)
    hosts: Counter[str] = Counter()
    for address, count in nodes.items():
        hosts[get_address_host(address)] += count
    order: list[str] = []
    while left:
        best = min(left, key=lambda one: (nodes.get(one, 0), hosts[get_address_host(one)]))
        left.remove(best)
        order.append(best)
        hosts[get_address_host(best)] += 1
    return order
