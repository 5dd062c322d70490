"""What Prefect's automations are told of a run; `docs/reference/events.md` has every field."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from prefect.context import TaskRunContext
from prefect.events import Event, Resource

from prefect_parallelrun import settings
from prefect_parallelrun.models import AttemptRecord, Counts, RunSummary
from prefect_parallelrun.report.observer import Observer
from prefect_parallelrun.report.wording import visible
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import CANCELLED, RunRecord
from prefect_parallelrun.ui.outbox import Outbox

STARTED = "parallelrun.run.started"
THRESHOLD_NEAR = "parallelrun.run.threshold-near"
MINI_BATCH_FAILED = "parallelrun.mini-batch.failed"
COMPLETED = "parallelrun.run.completed"
FAILED = "parallelrun.run.failed"
STOPPED = "parallelrun.run.cancelled"

BURST = 10
"""So many failed mini-batches are told of at once,"""
EVERY_S = 10.0
"""and then one in so many seconds."""

_NAME, _TEXT = 200, 1000
"""Characters of a name and of a text; of longer ones the end is left out."""
_ITEMS = 5
_ERRORS = 5


class RunEvents(Observer):
    """Emits the events of a run, as those of the task run that it belongs to.

    Args:
        log: says how many could not be sent, if any.
        monotonic: the clock for durations, in seconds.
    """

    def __init__(
        self,
        log: logging.Logger | logging.LoggerAdapter[Any],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        context = TaskRunContext.get()
        assert context is not None
        task_run = context.task_run
        self._resource = Resource(
            {
                "prefect.resource.id": f"prefect.task-run.{task_run.id}",
                "prefect.resource.name": task_run.name,
            }
        )
        self._outbox = Outbox(task_run, log, spare=MINI_BATCH_FAILED)
        self._monotonic = monotonic
        self._began = monotonic()
        self._allowance = _Allowance(self._began)
        self._run: dict[str, Any] = {}

    def __enter__(self) -> RunEvents:
        self._outbox.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait a moment for what is not sent yet."""
        self._outbox.__exit__(kind, error, trace)

    # -- what it is told ---------------------------------------------------------------------

    def began(self, record: RunRecord) -> None:
        """Tell that mini-batches are going to run."""
        self._run = _run(record)
        self._emit(
            STARTED,
            kind=record.kind,
            mini_batches=record.mini_batches,
            items=record.items,
            base=record.base,
        )

    def threshold_near(self, threshold: str, failed: int, tolerated: int) -> None:
        """Tell which threshold is near."""
        self._emit(THRESHOLD_NEAR, threshold=threshold, failed=failed, tolerated=tolerated)

    def mini_batch_failed(self, attempt: AttemptRecord) -> None:
        """Tell what failed, unless many others have just now."""
        not_told = self._allowance.take(self._monotonic())
        if not_told is None:
            return
        error = attempt.error
        assert error is not None
        self._emit(
            MINI_BATCH_FAILED,
            mini_batch=attempt.mini_batch,
            part=attempt.part,
            items=[_short(one, _NAME) for one in attempt.items_sample[:_ITEMS]],
            items_failed=attempt.items_failed,
            attempt=attempt.attempt,
            outcome=str(attempt.outcome),
            error={
                "category": error.category,
                "type": _short(error.type, _NAME),
                "message": _short(error.message, _TEXT),
                "where": _short(error.where, _NAME),
                "stage": error.stage,
            },
            node=attempt.node,
            process=attempt.process,
            log_file=visible(attempt.log_file),
            not_told=not_told,
        )

    def ended(
        self,
        record: RunRecord,
        summary: RunSummary,
        *,
        result: ParallelRunResult | None,
        failure: str | None,
    ) -> None:
        """Tell how the run ended, and what it came to."""
        self._run = _run(record)
        account = {
            "state": record.state,
            "mini_batches": _counts(summary.mini_batches),
            "items": _counts(summary.items),
            "attempts": summary.attempts,
            "rows": summary.rows,
            "elapsed_s": round(self._monotonic() - self._began, 3),
        }
        if result is not None:
            self._emit(
                COMPLETED,
                **account,
                reused=result.reused,
                output=visible(result.output),
                append_row_file=result.append_row_file and visible(result.append_row_file),
                report=result.report and visible(result.report),
            )
            return
        self._emit(
            STOPPED if record.state == CANCELLED else FAILED,
            **account,
            failure=_short(failure or "", _TEXT),
            errors=[
                {
                    "type": _short(one.type, _NAME),
                    "where": _short(one.where, _NAME),
                    "message": _short(one.message, _TEXT),
                    "count": one.count,
                    "first_mini_batch": one.first_mini_batch,
                }
                for one in summary.errors[:_ERRORS]
            ],
        )

    # -- inside ------------------------------------------------------------------------------

    def _emit(self, name: str, **payload: Any) -> None:
        self._outbox.put(
            Event(event=name, resource=self._resource, payload={**self._run, **payload})
        )


class _Allowance:
    """How many failures may be told of: some at once, and then one now and then."""

    def __init__(self, now: float) -> None:
        self._left = float(BURST)
        self._at = now
        self._not_told = 0

    def take(self, now: float) -> int | None:
        """Return how many were not told of since the last one that was; None: nor is this one."""
        self._left = min(BURST, self._left + (now - self._at) / EVERY_S)
        self._at = now
        if self._left < 1:
            self._not_told += 1
            return None
        self._left -= 1
        not_told, self._not_told = self._not_told, 0
        return not_told


def _run(record: RunRecord) -> dict[str, Any]:
    folder = settings.step_folder(record.step) / record.run_id
    return {
        "step": record.step,
        "run_id": record.run_id,
        "run_directory": visible(str(folder)),
    }


def _counts(counts: Counts) -> dict[str, int]:
    return {
        "total": counts.total,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "reused": counts.reused,
    }


def _short(text: str, longest: int) -> str:
    text = visible(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
