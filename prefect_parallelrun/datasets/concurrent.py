"""Several requests at a time, in order: alone, each would wait for the one before."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def mapped(
    call: Callable[[A], B], things: Iterable[A], *, at_once: int, joined: bool = False
) -> Iterator[B]:
    """Yield `call(thing)` for each thing, in order, at most `at_once` of them made at the same time.

    Args:
        call: made in other threads, unless there are none or only one is to be.
        things: taken as they are needed.
        at_once: how many.
        joined: whether the end, that by an error too, waits for the calls that are being made.
    """
    if at_once <= 1:
        yield from map(call, things)
        return
    waiting: deque[Future[B]] = deque()
    threads = _Threads(at_once)
    try:
        for thing in things:
            waiting.append(threads.submit(call, thing))
            if len(waiting) >= 2 * at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        threads.end(joined=joined)


class _Threads:
    """Threads for calls that may hang: unlike those of `concurrent.futures`, the end of Python waits for none."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, call: Callable[[A], B], thing: A) -> Future[B]:
        future: Future[B] = Future()

        def make() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(call(thing))
            except BaseException as error:
                future.set_exception(error)

        if len(self._threads) < self._count and not self._started() and not self._threads:
            make()  # where the system gives no thread, the one that asks makes all calls
        else:
            self._calls.put(make)
        return future

    def end(self, *, joined: bool) -> None:
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads if joined else ():
            thread.join()

    def _started(self) -> bool:
        thread = threading.Thread(target=self._work, daemon=True, name="parallelrun-storage")
        try:
            thread.start()
        except RuntimeError:
            return False
        self._threads.append(thread)
        return True

    def _work(self) -> None:
        while make := self._calls.get():
            make()
