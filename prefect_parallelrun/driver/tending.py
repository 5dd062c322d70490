"""Looking after the nodes of a run: enough of them, none that is silent, replacements for what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math

from prefect_parallelrun.driver.choice import Choice
from prefect_parallelrun.driver.demand import Demand, further
from prefect_parallelrun.driver.events import Event, NoWorkerLeft
from prefect_parallelrun.driver.mailbox import Mailbox
from prefect_parallelrun.driver.node import task_name
from prefect_parallelrun.driver.nodes import Nodes
from prefect_parallelrun.driver.target import Target
from prefect_parallelrun.driver.versions import Fitness, question
from prefect_parallelrun.report.wording import counted

TEND_S = 1.0
"""How often the nodes are looked after."""
SILENT_S = 30.0
"""A node of which nothing is heard for so long is lost; it speaks every `agent.BEAT_S` seconds."""
REPLACE_AFTER_S = 3.0
"""A nanny starts its Dask worker again by itself within a second; only later is a cluster asked for one."""
ASK_AGAIN_S = 10.0
"""Some clusters forget a dead Dask worker only after a while, and do nothing before (Dask's own: 15 s)."""
LET_GO_S = 30.0
"""A node that has had nothing to do for so long, while no work waits, is let go of, unless it is the only
such: what fails on another one is tried again there."""
NOTHING_TO_DO = "it had nothing to do, and no work was left for it"
SLOW_S = 15.0
"""It is told of a node that is still being started after so long, once."""
TELL_S = (5.0, 600.0)
"""It is told that nodes are waited for after the first of these, then each time that it has taken twice as
long, and at least each time after the second."""


class Tending:
    """What goes on beside the run, on the Dask client's loop, from its start to its end.

    Args:
        nodes: that are looked after.
        target: whose Dask workers become nodes.
        node_count: so many become nodes; a later one takes the place of one that is lost.
        step: name of the step.
        events: where it is put that none is left.
        log: of the run.
    """

    def __init__(
        self,
        nodes: Nodes,
        target: Target,
        *,
        node_count: int,
        step: str,
        events: Mailbox[Event],
        log: logging.Logger,
    ) -> None:
        self._nodes = nodes
        self._target = target
        self._choice = Choice(nodes, target)
        self._fitness = Fitness(
            lambda address: nodes.contact.call(address, *question()),
            nodes.spawn,
            changed=nodes.changed,
            log=log,
        )
        self._node_count = node_count
        self._events = events
        self._log = log
        self._made_up_for: set[str] = set()
        """Addresses that do not answer, and for which the cluster was asked for another Dask worker."""
        self._asked_at = -math.inf
        self._asking: asyncio.Task[None] | None = None
        """Asks the cluster for another Dask worker."""
        self._slow_at: dict[str, float] = {}
        """When it is to be told that it takes long, by node that is being started."""
        self._trouble = ""
        """What last went wrong here that nobody has foreseen."""
        self._demand = Demand(
            target.client, name=f"{task_name(step)}-wanted", target_s=target.scaling_s, log=log
        )
        self.work_waits = True
        """Whether there is work for more nodes; the driver says so."""
        self._idle_since: dict[str, float] = {}
        """By node that has nothing to do, where no work waits either."""
        self._short_since: float | None = None
        """Since when there are too few nodes."""
        self._tell_at = 0.0

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
                await self._look_after_joining(loop.time())
                await self._fill(loop.time())
                self._let_go(loop.time())
                # While this loop stood still nobody could be heard: that is nobody's silence.
                heard_s = min(loop.time() - last, TEND_S)
                last = loop.time()
                await self._count_silence(heard_s)
            except (OSError, TimeoutError) as error:
                self._log.debug("The Dask scheduler does not answer: %r", error)
            except Exception as error:
                # Without this care a run might wait for ever, and without a word.
                level = logging.DEBUG if self._trouble == repr(error) else logging.ERROR
                self._trouble = repr(error)
                self._log.log(level, "The driver's care for its nodes failed", exc_info=error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nodes.changed.wait(), TEND_S)

    async def _look_after_joining(self, now: float) -> None:
        """Give up nodes of which the Dask worker has gone before it was one, and tell of slow ones.

        A Dask worker that went just when it was chosen is one of which no end is told any more; and who
        calls it waits as long as it may take to reach one (`distributed.comm.timeouts.connect`, 30 s).
        """
        joining = [node for node in self._nodes if not node.joined]
        self._slow_at = {n.name: self._slow_at.get(n.name, now + SLOW_S) for n in joining}
        if not joining:
            return
        there = await self._target.addresses()
        for node in joining:
            if node.joined:  # meanwhile
                continue
            if node.address not in there:
                self._nodes.drop(node, "its Dask worker is gone", innocent=True, gone=True)
            elif now >= self._slow_at[node.name]:
                self._slow_at[node.name] = math.inf
                self._log.info(
                    "%s is still being started after %g s, on %s", node.name, SLOW_S, node.address
                )

    async def _fill(self, now: float) -> None:
        """Start nodes on Dask workers that are not yet one, while there are too few."""
        missing = self._node_count - len(self._nodes)
        if len(self._nodes) and not self.work_waits:
            missing = 0
        if missing <= 0:
            self._short_since = None
            # One that joins may have no task yet, so that its Dask worker looks as if it could be closed.
            if all(node.joined for node in self._nodes):
                await self._demand.want(0, ())
            return
        workers = await self._target.workers()
        free = [address for address in workers if self._nodes.may_join(address)]
        if not self._target.embedded:
            free = self._fitness.fit(free, missing)
        # As it was then: what comes in the meantime is looked at the next time. A Dask worker that is
        # gone by then is not one that cannot be a node.
        nodes = self._nodes
        is_waiting = bool(nodes.leaving) or nodes.is_parting or self._fitness.is_asking
        await self._choice.join(free, missing)
        missing = self._node_count - len(self._nodes)
        if self._target.may_grow:
            taken = {node.address for node in self._nodes}
            others = [address for address in workers if address not in taken]
            coming = sum(map(self._may_be_node, others))
            useless = len(others) - coming
            wanted = len(workers) + further(missing, coming, useless, self._node_count)
            await self._demand.want(wanted, tuple(workers.values()))
        self._tell_of_waiting(now, missing, len(workers))
        if workers and not len(self._nodes) and not is_waiting:
            reasons = filter(None, (self._fitness.why(workers), self._nodes.why))
            self._events.put(NoWorkerLeft(reason="; ".join(reasons)))
        if now > max(self._nodes.lost_at + REPLACE_AFTER_S, self._asked_at + ASK_AGAIN_S):
            self._asked_at = now
            if self._asking is None or self._asking.done():
                # What a cluster does to scale is its own matter, and may take its time.
                self._asking = self._nodes.spawn(self._ask_for_replacement())

    def _may_be_node(self, address: str) -> bool:
        return self._nodes.may_join(address) and not self._fitness.is_unfit(address)

    def _tell_of_waiting(self, now: float, missing: int, workers: int) -> None:
        """Say now and then that there are fewer nodes than wanted: the run goes on with those there are."""
        if not missing:
            return
        first, most = TELL_S
        if self._short_since is None:
            self._short_since, self._tell_at = now, now + first
        if now < self._tell_at:
            return
        waited = now - self._short_since
        self._tell_at = now + min(waited, most)
        self._log.info(
            "waiting for %d of %d nodes for %.0f s: the cluster has %s; one that comes is taken in",
            missing,
            self._node_count,
            waited,
            counted(workers, "Dask worker"),
        )

    def _let_go(self, now: float) -> None:
        """Let nodes go that have nothing to do: others may need them, and the cluster may shrink."""
        idle = [node for node in self._nodes if node.joined and not node.bundles]
        if self.work_waits or self._target.embedded:
            idle = []
        self._idle_since = {node.name: self._idle_since.get(node.name, now) for node in idle}
        for node in idle[1:]:
            if now - self._idle_since[node.name] >= LET_GO_S:
                self._nodes.let_go(node, NOTHING_TO_DO)

    async def _ask_for_replacement(self) -> None:
        self._made_up_for &= self._nodes.leaving
        idle = self._nodes.leaving - self._made_up_for
        self._made_up_for |= idle
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
