"""What became of nodes and worker processes, written down as the driver hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from prefect_parallelrun.driver.events import NodeJoined, NodeLost
from prefect_parallelrun.models import NodeRecord, ProcessRecord
from prefect_parallelrun_runtime import messages

NOT_STARTED = "not started"
"""`ProcessRecord.reason` of one that the system refused to start."""
STOPPED = "stopped"
"""See `messages.Event.reason`: it was told to end, and did."""
CANCELLED = "cancelled"
"""It was killed, whatever it was at."""


class History:
    """Turns what is heard of one sitting into records; it remembers only what has not ended.

    A node that never came to be has no record, and neither has what a lost node still says.

    Args:
        note: takes a record in the place of an earlier one of the same node or process.
    """

    def __init__(self, note: Callable[[NodeRecord | ProcessRecord], None]) -> None:
        self._note = note
        self._nodes: dict[str, NodeRecord] = {}
        self._processes: dict[tuple[str, str], ProcessRecord] = {}

    def node_joined(self, event: NodeJoined) -> None:
        """Note a node; something may have been heard of its processes before."""
        record = NodeRecord(
            node=event.node,
            host=event.host,
            address=event.address,
            processes=event.processes,
            gpus=event.gpus,
            joined_at=event.joined_at,
        )
        self._nodes[event.node] = record
        self._note(record)

    def node_lost(self, event: NodeLost) -> None:
        """Note why a node left; nobody saw the end of the processes that it had."""
        record = self._nodes.pop(event.node, None)
        if record is not None:
            self._note(replace(record, left_at=time.time(), reason=event.reason))
        if event.left:  # they tell of their end
            return
        for key in [key for key in self._processes if key[0] == event.node]:
            del self._processes[key]

    def heard(self, news: messages.Event) -> None:
        """Note the start, the readiness or the end of a worker process."""
        key = news["node"], news.get("process", "")
        at = news.get("at") or time.time()
        known = self._processes.get(key)
        match news["name"]:
            case "process_started":
                record = ProcessRecord(node=key[0], process=key[1], pid=news["pid"], started_at=at)
                self._keep(record)
            case "start_failed" if known is None:
                self._note(
                    ProcessRecord(
                        node=key[0],
                        process=key[1],
                        started_at=at,
                        ended_at=at,
                        reason=NOT_STARTED,
                    )
                )
            case "process_ready" if known is not None:
                self._keep(replace(known, ready_at=at, init_s=news.get("seconds", 0.0)))
            case "process_ended" if known is not None:
                del self._processes[key]
                self._note(replace(known, ended_at=at, reason=news["reason"]))

    def end(self, reason: str) -> None:
        """Note the end of the sitting, after which nothing that it had started is left.

        Args:
            reason: why the processes ended of which nothing was heard.
        """
        now = time.time()
        for process in self._processes.values():
            self._note(replace(process, ended_at=now, reason=reason))
        for node in self._nodes.values():
            self._note(replace(node, left_at=now))
        self._processes.clear()
        self._nodes.clear()

    def _keep(self, record: ProcessRecord) -> None:
        self._processes[record.node, record.process] = record
        self._note(record)
