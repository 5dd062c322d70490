"""Whoever watches a run: what it is told, and when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from prefect_parallelrun.models import AttemptRecord, RunSummary
from prefect_parallelrun.report.progress import Standing
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import RunRecord


class Observer:
    """Is told how a run gets on, and does nothing; subclasses do what they want with it.

    All is called in the driver's thread, which waits for it: whatever takes longer than some microseconds
    belongs in another thread.
    """

    def began(self, record: RunRecord) -> None:
        """The sitting is planned, and goes on or begins with this record; nothing has run yet."""

    def cluster(self, dashboard: str) -> None:
        """The nodes are being started; `dashboard` is the URL of Dask's, or empty."""

    def progress(self, stage: str, standing: Standing | None) -> None:
        """The sitting is at this stage, and the run stands so; a few times a second."""

    def mini_batch_failed(self, attempt: AttemptRecord) -> None:
        """A mini-batch, or a part of one, failed for good."""

    def threshold_near(self, threshold: str, failed: int, tolerated: int) -> None:
        """Most of the failures that are tolerated have occurred; told once for each threshold.

        Args:
            threshold: the setting, such as `error_threshold`.
            failed: so many have failed.
            tolerated: so many may.
        """

    def ended(
        self,
        record: RunRecord,
        summary: RunSummary,
        *,
        result: ParallelRunResult | None,
        failure: str | None,
    ) -> None:
        """The sitting is over.

        Args:
            record: of the run, with the state in which it ended.
            summary: what it came to.
            result: of a run that completed.
            failure: why it did not complete, for people; None if it did.
        """


class Observers(Observer):
    """Tells several observers; one that raises is told nothing more, and costs the run nothing.

    Args:
        observers: in the order in which they are told.
        log: of the run; says once which observer was given up, and why.
    """

    def __init__(self, observers: Iterable[Observer], log: logging.Logger) -> None:
        self._observers = list(observers)
        self._log = log

    def began(self, record: RunRecord) -> None:
        """See `Observer.began`."""
        self._each(lambda one: one.began(record))

    def cluster(self, dashboard: str) -> None:
        """See `Observer.cluster`."""
        self._each(lambda one: one.cluster(dashboard))

    def progress(self, stage: str, standing: Standing | None) -> None:
        """See `Observer.progress`."""
        self._each(lambda one: one.progress(stage, standing))

    def mini_batch_failed(self, attempt: AttemptRecord) -> None:
        """See `Observer.mini_batch_failed`."""
        self._each(lambda one: one.mini_batch_failed(attempt))

    def threshold_near(self, threshold: str, failed: int, tolerated: int) -> None:
        """See `Observer.threshold_near`."""
        self._each(lambda one: one.threshold_near(threshold, failed, tolerated))

    def ended(
        self,
        record: RunRecord,
        summary: RunSummary,
        *,
        result: ParallelRunResult | None,
        failure: str | None,
    ) -> None:
        """See `Observer.ended`."""
        self._each(lambda one: one.ended(record, summary, result=result, failure=failure))

    def _each(self, tell: Callable[[Observer], None]) -> None:
        for one in list(self._observers):
            try:
                tell(one)
            except Exception as error:
                self._observers.remove(one)
                self._log.warning(
                    "%s is told no more of the run: %r", type(one).__name__, error, exc_info=True
                )
