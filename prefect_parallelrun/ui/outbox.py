"""Events on their way to Prefect: sent by a thread of its own, which the run never waits for."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import TaskRun
from prefect.events import Event, RelatedResource
from prefect.events.related import object_as_related_resource, tags_as_related_resources
from prefect.exceptions import ObjectNotFound

from prefect_parallelrun import api

ANSWER_S = 10.0
"""How long Prefect's answer may take; a server that is slow gets its time."""
AGAIN_S = 1.0
"""How long after a failure it is tried again."""
END_S = 2.0
"""How long after its last event the end of a run waits for what is not sent yet."""
TO_STOP_S = 0.1
"""How long it waits at least: a thread with nothing left to send is over by then."""
AFTER_S = 60.0
"""How long it is tried after that, while the program goes on."""
HELD = 1000
"""So many events are held while Prefect cannot be reached; of more, the oldest spare ones are lost."""
AT_ONCE = 50
"""Events in one request, at most."""


class Outbox:
    """Sends events of a task run to Prefect, in order, and again after a failure.

    Not by Prefect's own `emit_event`: where the API is gone that tries each event for many seconds, and
    the end of the program waits for all of them.

    Args:
        task_run: whose events they are.
        log: says once at the end how many could not be sent.
        spare: name of the events that there may be many of: these are lost where too many wait.
    """

    def __init__(
        self, task_run: TaskRun, log: logging.Logger | logging.LoggerAdapter[Any], *, spare: str
    ) -> None:
        self._task_run = task_run
        self._log = log
        self._spare = spare
        self._url = api.url_of_this_task_run()
        self._lock = threading.Lock()
        """Of the two below: both threads take events away."""
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._one_by_one = False
        """Whether one of the events may be why Prefect did not take them."""
        self._aside: list[Event] = []
        """Each sent by itself, and not taken, like all that was sent since."""
        self._doubted: set[UUID] = set()
        """Each sent by itself, and not taken, unlike the one sent next to it."""
        self._why = ""
        """Why events were lost, of late."""
        self._related: list[RelatedResource] | None = None
        self._last_at = time.monotonic()
        """Of the monotonic clock: when the last event came."""
        self._until: float | None = None
        """Of the monotonic clock: when what is not sent is given up; None as long as the run goes on."""
        self._news = threading.Event()
        self._ended = threading.Event()
        # Settings may be those of this context alone, and the log looks in it for the run.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="parallelrun-events", daemon=True
        )

    def __enter__(self) -> Outbox:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait a moment for what is not sent yet; where the program goes on, so does the sending.

        The moment begins with the last event: whoever waited for something else since has waited for it.
        """
        self._until = time.monotonic() + AFTER_S
        self._ended.set()
        self._news.set()
        self._thread.join(max(TO_STOP_S, self._last_at + END_S - time.monotonic()))

    def put(self, event: Event) -> None:
        """Have an event sent; never waits."""
        with self._lock:
            if len(self._waiting) >= HELD:
                self._drop_spare()
            self._waiting.append(event)
        self._last_at = time.monotonic()
        self._news.set()

    def _drop_spare(self) -> None:
        spare = (at for at, one in enumerate(self._waiting) if one.event == self._spare)
        at = next(spare, None)
        if at is not None:
            del self._waiting[at]
            self._lost += 1
            self._why = self._why or f"more than {HELD:,} were waiting"

    # -- of its own thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with api.connected(self._url, answer_s=ANSWER_S) as client:
                self._send_until_the_end(client)
        # Whatever is wrong with the settings: it costs the run nothing.
        except Exception as error:
            self._why = api.why(error)
        self._ended.wait()
        lost = self._lost + len(self._aside) + len(self._waiting)
        if lost:
            self._log.warning("Events that could not be sent to Prefect: %d (%s)", lost, self._why)

    def _send_until_the_end(self, client: SyncPrefectClient) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            ended = self._ended.is_set()
            try:
                while self._waiting:
                    self._send(client)
            # Whatever is wrong with the answers: it costs the run nothing.
            except Exception as error:
                self._why = api.why(error)
                if self._too_late():
                    return
                if ended:
                    time.sleep(AGAIN_S)
                else:
                    self._ended.wait(AGAIN_S)
                self._news.set()
                continue
            if ended:
                return

    def _too_late(self) -> bool:
        return self._until is not None and time.monotonic() + AGAIN_S > self._until

    def _send(self, client: SyncPrefectClient) -> None:
        """Send what waits; where Prefect did not take it just now, one event, to find which it is.

        An event that is not taken lets the next go first. Once one is taken, it is tried again, and left
        out if it is not taken then either. While none is taken, it is not for the events: all are kept.
        """
        most = 1 if self._one_by_one else AT_ONCE
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        try:
            self._post(client, batch)
        except Exception as error:
            self._one_by_one = _may_be_for_one(error)
            with self._lock:
                if self._one_by_one and len(batch) == 1:
                    self._pass_over(batch[0])
                else:
                    self._waiting.extendleft(reversed(batch))
            raise
        self._one_by_one = False
        self._doubted = {one.id for one in self._aside}
        with self._lock:
            self._bring_back()

    def _pass_over(self, event: Event) -> None:
        if event.id in self._doubted:
            self._lost += 1
            # Of the others it is not known: Prefect may take nothing again since that one was taken.
            self._doubted.clear()
        else:
            self._aside.append(event)
        if not self._waiting:
            self._bring_back()

    def _bring_back(self) -> None:
        self._waiting.extendleft(reversed(self._aside))
        self._aside.clear()

    def _post(self, client: SyncPrefectClient, batch: list[Event]) -> None:
        if self._related is None:
            self._related = _related(client, self._task_run)
        for event in batch:
            event.related = self._related
        client.request("POST", "/events", json=[one.model_dump(mode="json") for one in batch])


def _may_be_for_one(error: Exception) -> bool:
    # A server answers 500 when its database is gone, and when it stumbles over what it was sent.
    failed = isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 500
    return failed or api.is_refusal(error)


def _related(client: SyncPrefectClient, task_run: TaskRun) -> list[RelatedResource]:
    """Return what Prefect's own events of a task run name as related."""
    if task_run.flow_run_id is None:
        return tags_as_related_resources(task_run.tags)
    flow_run = client.read_flow_run(task_run.flow_run_id)
    found: list[tuple[str, Any]] = [("flow-run", flow_run)]
    ways: list[tuple[str, Callable[[Any], Any], Any]] = [
        ("flow", client.read_flow, flow_run.flow_id),
        ("deployment", client.read_deployment, flow_run.deployment_id),
        ("work-queue", client.read_work_queue, flow_run.work_queue_id),
        ("work-pool", client.read_work_pool, flow_run.work_pool_name),
    ]
    for kind, read, name in ways:
        if name is not None:
            with suppress(ObjectNotFound):  # somebody removed it meanwhile
                found.append((kind, read(name)))
    tags = {tag for one in (task_run, *(one for _, one in found)) for tag in _tags(one)}
    return [
        *(object_as_related_resource(kind, kind, one) for kind, one in found),
        *tags_as_related_resources(tags),
    ]


def _tags(of: Any) -> list[str]:
    return getattr(of, "tags", None) or []
