"""What stops a run from outside: signals, a cancelled or interrupted flow, a Dask worker that closes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.states import Cancelled
from prefect.transactions import get_transaction

from prefect_parallelrun import api
from prefect_parallelrun.errors import RunCancelled

if TYPE_CHECKING:
    from prefect_parallelrun.inside_dask import Host

ASK_EVERY_S = 1.0
"""How often Prefect is asked whether the flow run still goes on."""
ANSWER_S = 2.0
"""How long an answer of it may take."""
ANSWERS_S = 5.0
"""How long all of them together may take, where a flow that was sent SIGTERM waits for them."""
SIGNAL_SOON_S = 1.5
"""How soon a runner or worker of Prefect's sends the signal that cancels, once the flow run is cancelled."""
SIGNAL_S = 15.0
"""The same where it has no websocket: then it asks every 10 s."""
_LOOK_EVERY_S = 0.1


_RUN_HERE = "PREFECT__FLOW_RUN_ID"
"""Where Prefect tells a process which flow run it was started for, by a runner or a worker."""


class Terminated(SystemExit):
    """Ends the program after SIGTERM; told from a script that calls `sys.exit()` in this process."""


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
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class FlowWatch:
    """Notices that the flow run of this task run, or one that it is a subflow of, is cancelled or interrupted.

    A signal to the flow's process raises in its main thread, where Prefect has it; a step that a task
    runner runs in another thread, or in a Dask worker, has to look for itself. A thread of its own
    does, so that a Prefect server that hesitates holds nothing up.
    """

    def __init__(self, *, dask: bool = True) -> None:
        """Look for what this task run belongs to.

        Args:
            dask: whether to look, too, whether the Dask worker that it is on closes, and hold that.
        """
        task_run, flow_run = TaskRunContext.get(), FlowRunContext.get()
        assert task_run is not None
        self._cancelled: UUID | None = None
        """The flow run that somebody cancelled; without one it was interrupted."""
        self._seen: float | None = None
        """When it was first seen that the flow run is cancelled for which this process was started."""
        self._why: str | None = None
        self._flow_run = flow_run.flow_run if flow_run is not None else None
        self._flow_run_id = task_run.task_run.flow_run_id
        self._api_url = api.url_of_this_task_run()
        self._runner = flow_run.task_runner if flow_run is not None else None
        self._hosting = _hosting() if dask else contextlib.nullcontext()
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
        if self._cancelled is None:
            raise TerminationSignal(signal.SIGTERM) from error
        try:
            if _is_run_here(self._cancelled):
                self._await_signal()
        except TerminationSignal as came:
            return _cancelled(came, str(error))
        return _cancelled(error, str(error))

    def end_by_signal(self, error: TerminationSignal) -> State[None]:
        """Return the state for a task run that was cancelled by a signal, or raise the signal again.

        Whoever runs the flow cancels it by SIGTERM, so only Prefect knows which it was. Where it does
        not say so in time, the signal goes on.
        """
        if self._flow_run_id is None or not any(map(_is_cancelled, self._states().values())):
            raise error
        return _cancelled(error, "\n".join(getattr(error, "__notes__", ())))

    # -- inside ------------------------------------------------------------------------------

    def _watch(self) -> None:
        asked, was_left = time.monotonic(), False
        if self._ended.wait(_LOOK_EVERY_S):
            return  # a client takes longer to make than most steps that are reused
        with self._connected() as ask:
            while self._why is None and not self._ended.wait(_LOOK_EVERY_S):
                left = self._flow_left() and not was_left
                closes = self._worker_left()
                if not left and not closes and time.monotonic() - asked < ASK_EVERY_S:
                    continue
                states = ask()
                asked, was_left = time.monotonic(), was_left or left
                self._judge(states, left=left, closes=closes)

    def _states(self) -> Mapping[UUID, State]:
        """Return what `_connected` yields, asked once; none if that takes too long."""
        answers: list[Mapping[UUID, State]] = []

        def ask_once() -> None:
            with self._connected() as ask:
                answers.append(ask())

        # An answer that comes byte by byte is within each limit of a request, and may last for ever.
        asking = threading.Thread(
            target=contextvars.copy_context().run,
            args=(ask_once,),
            name="parallelrun-flow-states",
            daemon=True,
        )
        asking.start()
        asking.join(ANSWERS_S)
        return answers[0] if answers else {}

    def _is_due(self, flow_run_id: UUID) -> bool:
        """Return whether the signal that cancels a flow run may well be on its way to this process.

        It would break into a run that is ending already, in the middle of its last reports.
        """
        if not _is_run_here(flow_run_id):
            return False
        now = time.monotonic()
        self._seen = self._seen or now
        return now - self._seen < SIGNAL_SOON_S

    def _await_signal(self) -> None:
        """Wait until whoever runs the flow's process has noticed, too, that it is cancelled.

        Only they end the flow run as Cancelled, and call its hooks; of a process that is gone they do not.
        """
        deadline = time.monotonic() + SIGNAL_S
        while not (self._flow_left() or self._worker_left()) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)

    def _worker_left(self) -> bool:
        """Return whether the Dask worker that the step is on closes, or took the task back."""
        return self._host is not None and self._host.left

    def _flow_left(self) -> bool:
        """Return whether the flow function is left, however: then its task runner wants to end."""
        # Private to Prefect, whose runner for threads sets these events, all at once.
        events: dict[object, threading.Event] = getattr(self._runner, "_cancel_events", {})
        return any(event.is_set() for event in list(events.values()))

    def _judge(self, states: Mapping[UUID, State], *, left: bool, closes: bool) -> None:
        """Decide whether the run is to stop.

        A flow that completed or failed, or waits to be run again, lets finish what nobody waited for,
        as long as that can go on.

        Args:
            states: of the flow run and those above it, where they are known.
            left: whether the flow function was left just now.
            closes: whether the Dask worker that the step is on closes.
        """
        for flow_run_id, state in states.items():
            what = _stopped(state)
            due = _is_cancelled(state) and not left and not closes and self._is_due(flow_run_id)
            if what is not None and not due:
                self._cancelled = flow_run_id if _is_cancelled(state) else None
                self._why = f"flow run {flow_run_id} {what}"
                return
        own = states.get(self._flow_run_id) if self._flow_run_id is not None else None
        if own is None and left and self._flow_run is not None:
            own = self._flow_run.state  # as this process knows it
        if closes or (left and (own is None or own.is_running())):
            self._why = f"flow run {self._flow_run_id} was interrupted"

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Callable[[], Mapping[UUID, State]]]:
        """Yield a function that returns the states of the flow run and of those that it is a subflow of.

        Where Prefect does not answer, it returns none.
        """
        flow_run_id = self._flow_run_id
        assert flow_run_id is not None
        flow_runs = [flow_run_id]
        complete = False

        def ask() -> Mapping[UUID, State]:
            nonlocal complete
            # Whatever goes wrong between here and the server: a run does not end for that.
            with contextlib.suppress(Exception):
                while not complete:
                    above = _parent(client, flow_runs[-1])
                    complete = above is None
                    if above is not None:
                        flow_runs.append(above)
                wanted = FlowRunFilter(id=FlowRunFilterId(any_=flow_runs))
                found = client.read_flow_runs(flow_run_filter=wanted)
                return {run.id: run.state for run in found if run.state is not None}
            return {}

        with api.connected(self._api_url, answer_s=ANSWER_S) as client:
            yield ask


def _hosting() -> contextlib.AbstractContextManager[Host | None]:
    # Here, since it brings distributed: what runs nothing does not wait for that.
    from prefect_parallelrun import inside_dask

    return inside_dask.host()


def raise_cause(state: State, *, signals_only: bool) -> None:
    """Raise what cancelled a task run: a signal always, so that the flow ends as well."""
    cause = getattr(state.data, "result", None)
    if isinstance(cause, TerminationSignal) or (
        isinstance(cause, RunCancelled) and not signals_only
    ):
        raise cause


def _cancelled(error: BaseException, message: str) -> State[None]:
    transaction = get_transaction()
    if transaction is not None:
        # Prefect would store the state as a result, and take it for one the next time.
        transaction.write_on_commit = False
    return Cancelled(message=message or "the flow run was cancelled", data=error)


def _is_run_here(flow_run_id: UUID) -> bool:
    """Return whether a runner or a worker of Prefect's started this process for a flow run."""
    return os.environ.get(_RUN_HERE) == str(flow_run_id)


def _is_cancelled(state: State) -> bool:
    return state.is_cancelling() or state.is_cancelled()


def _stopped(state: State) -> str | None:
    """Return in words how a flow run was stopped; None where it was not."""
    if _is_cancelled(state):
        return "was cancelled"
    if state.is_crashed():
        return "crashed"
    # Nobody is left to wait for the step, unlike in a flow that failed by itself.
    return "timed out" if state.name == "TimedOut" else None


def _parent(client: SyncPrefectClient, flow_run_id: UUID) -> UUID | None:
    """Return the flow run of which this one is a subflow; None where it is none, or that is gone."""
    try:
        task_run_id = client.read_flow_run(flow_run_id).parent_task_run_id
        return client.read_task_run(task_run_id).flow_run_id if task_run_id is not None else None
    except ObjectNotFound:
        return None
