"""What stops a run from outside: signals, a cancelled or interrupted flow, a Dask worker that closes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.settings import (
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Cancelled
from prefect.transactions import get_transaction

from prefect_parallelrun import inside_dask
from prefect_parallelrun.errors import RunCancelled

ASK_EVERY_S = 1.0
"""How often Prefect is asked whether the flow run still goes on."""
ANSWER_S = 2.0
"""How long its answer may take."""
_LOOK_EVERY_S = 0.1


@contextlib.contextmanager
def stops_on_sigterm() -> Iterator[None]:
    """Where SIGTERM would end this process without a word, let it end what is under way first.

    Like `kill` does, it ends the program: with exit code 143. A second one, which some senders add at
    once, changes nothing. Prefect has a handler of its own in a flow, and this one stands back.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, _: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class FlowWatch:
    """Notices that the flow run of this task run is cancelled or interrupted.

    A signal to the flow's process raises in its main thread, where Prefect has it; a step that a task
    runner runs in another thread, or in a Dask worker, has to look for itself. A thread of its own
    does, so that a Prefect server that hesitates holds nothing up.
    """

    def __init__(self) -> None:
        task_run, flow_run = TaskRunContext.get(), FlowRunContext.get()
        assert task_run is not None
        self.cancelled = False
        """Whether somebody cancelled the flow run; else it was interrupted."""
        self._why: str | None = None
        self._flow_run = flow_run.flow_run if flow_run is not None else None
        self._flow_run_id = task_run.task_run.flow_run_id
        # Not by get_client(): that would start a temporary server anew when Ctrl-C has ended it.
        self._api_url = str(task_run.client.api_url)
        self._runner = flow_run.task_runner if flow_run is not None else None
        self._hosting = inside_dask.host()
        self._ended = threading.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._watch,), name="parallelrun-flow-watch", daemon=True
        )

    def __enter__(self) -> FlowWatch:
        """Begin to look; without a flow there is nothing to look at."""
        self._host = self._hosting.__enter__()
        if self._flow_run_id is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look no more; an answer of Prefect that is under way is not waited for."""
        self._ended.set()
        self._hosting.__exit__(kind, error, trace)

    def check(self) -> None:
        """Raise if the run is to stop; never waits.

        Raises:
            RunCancelled: the flow run was cancelled or interrupted.
            CancelledError: the asynchronous flow that called the step was interrupted: its event loop
                cannot say so as long as the step has its thread.
        """
        if self._why is not None:
            raise RunCancelled(self._why)
        with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError("the flow was interrupted")

    def end_task_run(self, error: RunCancelled) -> State[None]:
        """Return the state for the task run of a run that was stopped, or raise for an interrupted one.

        Raises:
            TerminationSignal: the flow run was interrupted; the task run is Crashed then.
        """
        if not self.cancelled:
            raise TerminationSignal(signal.SIGTERM) from error
        return _cancelled(error)

    def end_by_signal(self, error: TerminationSignal) -> State[None]:
        """Return the state for a task run that was cancelled by a signal, or raise the signal again.

        Whoever runs the flow cancels it by SIGTERM, so only Prefect knows which it was.
        """
        if self._flow_run_id is None:
            raise error
        with self._connected() as ask:
            state = ask()
        if state is None or not _is_cancelled(state):
            raise error
        return _cancelled(error)

    # -- inside ------------------------------------------------------------------------------

    def _watch(self) -> None:
        asked = time.monotonic()
        with self._connected() as ask:
            while not self._ended.wait(_LOOK_EVERY_S):
                left = self._flow_left()
                closes = self._host is not None and self._host.left
                if not left and not closes and time.monotonic() - asked < ASK_EVERY_S:
                    continue
                state = ask()
                asked = time.monotonic()
                if state is None and left and self._flow_run is not None:
                    state = self._flow_run.state  # as this process knows it
                self._judge(state, left=left, closes=closes)
                if left or self._why is not None:
                    return

    def _flow_left(self) -> bool:
        """Return whether the flow function is left, however: then its task runner wants to end."""
        # Private to Prefect, whose runner for threads sets these events, all at once.
        events: dict[object, threading.Event] = getattr(self._runner, "_cancel_events", {})
        return any(event.is_set() for event in list(events.values()))

    def _judge(self, state: State | None, *, left: bool, closes: bool) -> None:
        """Decide whether the run is to stop.

        A flow that completed or failed, or waits to be run again, lets finish what nobody waited for,
        as long as that can go on.

        Args:
            state: of the flow run, where it is known.
            left: whether the flow function is left.
            closes: whether the Dask worker that the step is on closes.
        """
        run = f"flow run {self._flow_run_id}"
        if state is not None and _is_cancelled(state):
            self.cancelled = True
            self._why = f"{run} was cancelled"
        elif state is not None and state.is_crashed():
            self._why = f"{run} crashed"
        elif closes or (left and (state is None or state.is_running())):
            self._why = f"{run} was interrupted"

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Callable[[], State | None]]:
        """Yield a function that returns the state of the flow run; None where Prefect does not answer."""
        flow_run_id, api = self._flow_run_id, get_current_settings().api
        assert flow_run_id is not None

        def ask() -> State | None:
            # Whatever goes wrong between here and the server: a run does not end for that.
            with contextlib.suppress(Exception):
                return client.read_flow_run(flow_run_id).state
            return None

        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            SyncPrefectClient(
                self._api_url,
                api_key=api.key.get_secret_value() if api.key else None,
                auth_string=api.auth_string.get_secret_value() if api.auth_string else None,
                httpx_settings={"timeout": ANSWER_S},
            ) as client,
        ):
            yield ask


def raise_cause(state: State, *, signals_only: bool) -> None:
    """Raise what cancelled a task run: a signal always, so that the flow ends as well."""
    cause = getattr(state.data, "result", None)
    if isinstance(cause, TerminationSignal) or (
        isinstance(cause, RunCancelled) and not signals_only
    ):
        raise cause


def _cancelled(error: BaseException) -> State[None]:
    transaction = get_transaction()
    if transaction is not None:
        # Prefect would store the state as a result, and take it for one the next time.
        transaction.write_on_commit = False
    return Cancelled(message=str(error) or "the flow run was cancelled", data=error)


def _is_cancelled(state: State) -> bool:
    return state.is_cancelling() or state.is_cancelled()
