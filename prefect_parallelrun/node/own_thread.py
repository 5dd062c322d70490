"""Work that may take long, beside the event loop of a Dask worker, in a thread that ends with it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_own_thread(work: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
    """Return what `work` returns.

    The few threads that `asyncio.to_thread` has are the whole Dask worker's, and stay there for good: nodes
    that take minutes to start would hold up the end of others, and other people's work.

    Raises:
        Exception: what it raises.
    """
    threads = ThreadPoolExecutor(1, thread_name_prefix="parallelrun-call")
    try:
        call = functools.partial(work, *args, **keywords)
        return await asyncio.get_running_loop().run_in_executor(threads, call)
    finally:
        threads.shutdown(wait=False)
