"""Waiting, in a thread that goes on being watched, for what another thread does."""

from __future__ import annotations

import concurrent.futures
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

LOOK_S = 0.1
"""How often whoever watches is asked."""

T = TypeVar("T")


def begun(make: Callable[[], T], thread: str) -> concurrent.futures.Future[T]:
    """Begin what may take long in a thread of its own, which nothing stops and the end of Python leaves.

    Args:
        make: what is done, in the context of the caller: Prefect keeps runs and settings there.
        thread: its name.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            done.set_result(make())
        except BaseException as error:
            done.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name=thread, daemon=True).start()
    return done


def settled(
    work: concurrent.futures.Future[Any], limit_s: float, watch: Callable[[], None] | None
) -> bool:
    """Wait for the end of `work` for at most `limit_s` seconds; return whether it has come.

    Raises:
        Exception: what `watch` raises, to end the waiting.
    """
    deadline = time.monotonic() + limit_s
    while not work.done() and (left := deadline - time.monotonic()) > 0:
        concurrent.futures.wait([work], timeout=min(LOOK_S, left))
        if watch is not None:
            watch()
    return work.done()
