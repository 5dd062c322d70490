"""A step that is itself a task on a Dask worker, as with Prefect's DaskTaskRunner: when that ends, the step does."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import distributed

HOLD_S = 3.5
"""How long a Dask worker that closes is held up for the end of a run; its nanny kills it after 4 s."""


class Host:
    """The Dask worker that runs the task which the calling thread is in."""

    def __init__(self, worker: distributed.Worker) -> None:
        self._worker: Any = worker
        self._key = worker.get_current_task()

    @property
    def left(self) -> bool:
        """Whether it closes, or Dask took the task back.

        It closes with the flow function whose task runner has the cluster; where the cluster is
        another's, it takes the task back when the flow's process is gone.
        """
        task = self._worker.state.tasks.get(self._key)
        taken_back = task is None or task.state == "cancelled"
        return taken_back or self._worker.status.name in ("closing", "closed", "failed")


@contextmanager
def host() -> Iterator[Host | None]:
    """Yield the Dask worker that runs this task; None where none does.

    It is not ours: it gets its thread back, since the driver of a run waits for hours and computes
    nothing, and nodes of the run may be on the same Dask worker. When it closes, it waits for the end
    of this, so that the run and its task run end as they should.
    """
    found, worker = _hosting()
    if found is None:  # not where that was caught, or it would stand above every error of the step
        yield None
        return
    distributed.secede()
    name, plugin = f"parallelrun-step-{uuid.uuid4().hex}", _Hold(threading.current_thread())
    worker.loop.add_callback(_begin, worker, name, plugin)
    try:
        yield found
    finally:
        if not found.left:
            worker.loop.add_callback(_end, worker, name, plugin)


def _hosting() -> tuple[Host | None, Any]:
    try:
        worker = distributed.get_worker()
        return Host(worker), worker
    except (ValueError, KeyError):
        return None, None


def _begin(worker: Any, name: str, plugin: _Hold) -> None:
    """Hold a Dask worker, on its loop; SIGTERM, too, closes it now, in place of killing it.

    Prefect's workers send that to all processes of a flow run that is cancelled.
    """
    # Not by its own way to add plugins, which would tell the user about them.
    plugin.handles_sigterm = any(other.handles_sigterm for other in _holds(worker))
    worker.plugins[name] = plugin
    if threading.current_thread() is not threading.main_thread():
        return  # in a flow's own process, where Prefect handles it
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        close = partial(worker.loop.add_callback, worker.close, nanny=False, reason="SIGTERM")
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, close)
        plugin.handles_sigterm = True


def _end(worker: Any, name: str, plugin: _Hold) -> None:
    """Let a Dask worker go, and with the last step that it hosts our handler of SIGTERM."""
    del worker.plugins[name]
    if plugin.handles_sigterm and not _holds(worker):
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


def _holds(worker: Any) -> list[_Hold]:
    return [plugin for plugin in worker.plugins.values() if isinstance(plugin, _Hold)]


class _Hold(distributed.WorkerPlugin):
    """Lets a Dask worker that closes wait for a thread: Prefect, too, has something to write down then."""

    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread
        self.handles_sigterm = False
        """Whether SIGTERM closes the worker since it, or one beside it, is there."""

    async def teardown(self, worker: object) -> None:
        """Wait for the thread."""
        deadline = time.monotonic() + HOLD_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
