"""Events for a thread that signals may interrupt at any moment."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Takes events in from any thread, and gives them to one: the driver's.

    The waiting is done on a bare lock, the only thing that is right whatever a signal does. Before Python
    3.13, `SimpleQueue.get()` waits for ever, whatever its limit, where the handler of a signal returns
    later than that: so a Ctrl-C in an asynchronous flow was lost. And where the handler raises, a `Queue`
    may keep its mutex, for good.
    """

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._news = threading.Lock()
        """Free when something may have come."""
        self._news.acquire()

    def put(self, event: T) -> None:
        """Take in an event; never waits."""
        self._events.put(event)
        with contextlib.suppress(RuntimeError):  # it is free already
            self._news.release()

    def collect(self, timeout_s: float) -> list[T]:
        """Return what has come, waiting at most `timeout_s` seconds for the first of it."""
        self._news.acquire(timeout=timeout_s)
        # Whether or not it was free: an exception may have come between that and this.
        events: list[T] = []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        return events
