"""Waiting for the event loop of the Dask client in the driver's thread, which goes on being watched."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

LOOK_S = 0.1
"""How often whoever watches is asked."""


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
