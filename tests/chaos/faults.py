"""Faults: what is done to whom, and what each of them explains."""

from __future__ import annotations

import math
import random
import signal
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.chaos import processes
from tests.chaos.cluster import ChaosCluster
from tests.chaos.trace import Execution, Item, Trace

WORK_S = 1.0
"""Finished work of so many seconds may be repeated after a node or the driver was lost (R201)."""
SENDING_S = 0.25
"""A process that is hit so soon after `run()` returned may not have sent its rows yet."""
FOLLOW_S = 0.5
"""A worker process that does not follow an order by then is given up."""
SUPERVISOR = "prefect_parallelrun_runtime.supervisor"


class Kind(StrEnum):
    """What is done."""

    CHILD_KILL = "worker process killed"
    CHILD_HANG = "worker process hangs"
    CHILD_EXIT = "worker process exits"
    SUPERVISOR_KILL = "supervisor killed"
    WORKER_KILL = "Dask worker killed"
    WORKER_STOP = "Dask worker stopped"
    DRIVER_KILL = "driver killed"
    DISK_FULL = "disk full"
    FILE_LIMIT = "file size limited"


ORDERS = {
    Kind.CHILD_HANG: ("hang", "hang_in_c"),
    Kind.CHILD_EXIT: ("exit", "sys_exit"),
}
"""What the script is told to do to itself."""
OBEYED = {word: kind for kind, words in ORDERS.items() for word in words}
NODE_FAULTS = (Kind.SUPERVISOR_KILL, Kind.WORKER_KILL, Kind.WORKER_STOP)
END_OF_SITTING = (Kind.DRIVER_KILL, Kind.DISK_FULL, Kind.FILE_LIMIT)
"""After these the driver is gone and the run is started again."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """A fault that hit. Times are of the monotonic clock."""

    kind: Kind
    at: float
    until: float
    """When its effect was over: the Dask worker went on, or the driver had ended."""
    pid: int = 0
    """Whom it hit: a worker process, supervisor, Dask worker, or driver."""

    def concerns(self, execution: Execution) -> bool:
        """Whether this call of `run()` was in the hands of what was hit."""
        if execution.began > self.until + WORK_S:
            return False
        if self.kind == Kind.CHILD_KILL:
            return execution.pid == self.pid and execution.began <= self.at
        if self.kind == Kind.SUPERVISOR_KILL:
            return execution.supervisor == self.pid
        if self.kind in (Kind.WORKER_KILL, Kind.WORKER_STOP):
            return execution.worker == self.pid
        return self.kind in END_OF_SITTING  # what the script did to itself, it notes itself


class Injector:
    """Does faults to one sitting of a run: one driver, and the nodes that work for it."""

    def __init__(
        self,
        trace: Trace,
        cluster: ChaosCluster,
        orders: Path,
        silent_s: float,
        rng: random.Random,
        *,
        spares_alone: bool,
    ) -> None:
        self._trace = trace
        self._cluster = cluster
        self._orders = orders
        self._silent_s = silent_s
        self._rng = rng
        self._spares_alone = spares_alone
        self._began = time.monotonic()
        self._spent: list[int] = []
        """Process ids of supervisors and Dask workers that were hit."""
        self._killed_alone: set[Item] = set()
        """Items that a worker process had alone when it was killed."""
        self._order: tuple[Path, float] | None = None
        """What was ordered and not followed yet, and when that was."""
        self.stopped: list[Fault] = []
        """Dask workers that do not go on yet."""

    def hit(self, kind: Kind) -> Fault | None:
        """Do a fault to a process or a node; None: there is nobody at the moment."""
        self._trace.read()
        if kind in NODE_FAULTS:
            return self._hit_node(kind)
        victims = [e for e in self._living() if e.ended is None]
        if kind in ORDERS:
            return self._have_followed(kind, victims)
        if self._spares_alone:  # an item that was cut off alone is forgiven one death, not two
            victims = [e for e in victims if not self._killed_alone.issuperset(e.items)]
        if not victims:
            return None
        victim = self._rng.choice(victims)
        self._killed_alone.update(victim.items[:1] if len(victim.items) == 1 else ())
        sent = processes.send(victim.pid, signal.SIGKILL, self._cluster.mark)
        return _now(kind, victim.pid) if sent else None

    def release(self, *, at_last: bool = False) -> None:
        """Let Dask workers go on whose time has come, or (`at_last`) that were to stay away."""
        for fault in list(self.stopped):
            if (at_last and fault.until == math.inf) or time.monotonic() >= fault.until:
                self.stopped.remove(fault)
                processes.send(fault.pid, signal.SIGCONT, self._cluster.mark)
                fault.until = time.monotonic()

    # -- inside ------------------------------------------------------------------------------

    def _living(self) -> list[Execution]:
        """The latest call of `run()` of every worker process of this sitting that lives."""
        return [
            execution
            for execution in self._trace.latest.values()
            if execution.began >= self._began
            and self._cluster.mark in processes.environment(execution.pid)
        ]

    def _have_followed(self, kind: Kind, victims: list[Execution]) -> Fault | None:
        """Order something of a worker process; it follows when its next mini-batch begins."""
        if self._order is not None:
            order, given = self._order
            if not order.exists():
                self._order = None
                return _now(kind, int(order.name))
            if time.monotonic() - given < FOLLOW_S:
                return None
            order.unlink(missing_ok=True)  # it has no work any more, or no life
            self._order = None
        if victims:
            order = self._orders / str(self._rng.choice(victims).pid)
            draft = order.with_suffix(".draft")
            draft.write_text(self._rng.choice(ORDERS[kind]))
            draft.replace(order)
            self._order = order, time.monotonic()
        return None

    def _hit_node(self, kind: Kind) -> Fault | None:
        stopped = {fault.pid for fault in self.stopped}
        nodes = sorted({(e.supervisor, e.worker) for e in self._living()})
        self._rng.shuffle(nodes)
        for supervisor, worker in nodes:
            # A Dask worker on which three nodes were lost is not tried again: that is no bug.
            if worker in stopped or self._spent.count(worker) >= 2 or supervisor in self._spent:
                continue
            if processes.state(worker) is None or SUPERVISOR not in processes.command(supervisor):
                continue
            self._spent += [supervisor, worker]
            return self._send(kind, supervisor, worker)
        return None

    def _send(self, kind: Kind, supervisor: int, worker: int) -> Fault | None:
        mark = self._cluster.mark
        if kind == Kind.SUPERVISOR_KILL:
            sent = processes.send(supervisor, signal.SIGKILL, mark)
            return _now(kind, supervisor) if sent else None
        if kind == Kind.WORKER_KILL:
            sent = processes.send(worker, signal.SIGKILL, mark)
            return _now(kind, worker) if sent else None
        if not processes.send(worker, signal.SIGSTOP, mark):
            return None
        fault = _now(kind, worker)
        # Back before it is missed; back with results that nobody waits for; not back while this lasts.
        fault.until += self._silent_s * self._rng.choice((0.3, 1.5, math.inf))
        self.stopped.append(fault)
        return fault


def _now(kind: Kind, pid: int) -> Fault:
    now = time.monotonic()
    return Fault(kind=kind, at=now, until=now, pid=pid)
