"""The artifacts of a run on Prefect's pages, kept up to date by a thread of their own."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from types import TracebackType

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import TaskRunContext

from prefect_parallelrun import api
from prefect_parallelrun.errors import RunCancelled
from prefect_parallelrun.models import RunSummary
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.observer import Observer
from prefect_parallelrun.report.progress import Standing
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import RunRecord
from prefect_parallelrun.ui import wording
from prefect_parallelrun.ui.artifacts import Artifact, Owner

FIRST_S = 0.5
"""How often it is looked whether there is anything to show, until something is shown."""
OFTEN_S = 3.0
SELDOM_S = 15.0
"""How often the pages are brought up to date: `OFTEN_S`, of a long run up to so seldom."""
ANSWER_S = 10.0
"""How long an answer of Prefect may take."""
END_S = 10.0
"""How long the end of a run waits until the pages show it."""
STOPPED_S = 2.0
"""The same, where it was stopped from outside: whoever did so waits."""
LAST_S = 60.0
"""For so long after the end it is tried to show it, where the process lives on."""
AGAIN_S = 1.0
REFUSALS = 3
"""So often the last is tried where Prefect refuses it."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Page(Observer):
    """Shows how a run gets on: its progress, the Dask dashboard, and at the end a summary and what failed.

    In the driver's thread it only takes notes. Where Prefect's API is slow or gone the run goes on, and
    the pages show the latest as soon as it answers.

    Args:
        paths: of the run.
        step: name of the step; the artifacts are called by it, so that the pages show them run by run.
        log: of the task run.
    """

    def __init__(self, paths: RunPaths, step: str, *, log: Log) -> None:
        context = TaskRunContext.get()
        assert context is not None
        self._paths = paths
        self._log = log
        self._api_url = api.url_of_this_task_run()
        owner = Owner(task_run_id=context.task_run.id, flow_run_id=context.task_run.flow_run_id)
        self._summary = Artifact(kind="markdown", key=f"{step}-summary", owner=owner)
        self._failed = Artifact(kind="table", key=f"{step}-failed-items", owner=owner)
        self._progress = Artifact(kind="progress", key=f"{step}-progress", owner=owner)
        # As Prefect's own links: of any kind unknown to them, its pages draw no graph of the flow run.
        self._dashboard = Artifact(kind="markdown", key=f"{step}-dask-dashboard", owner=owner)
        self._artifacts = [self._summary, self._failed, self._progress, self._dashboard]
        """What matters most at the end is first."""
        self._latest: tuple[str, Standing] | None = None
        self._url = ""
        self._opened = False
        self._ended: wording.Ended | None = None
        self._warned = False
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._run,),
            name="parallelrun-page",
            daemon=True,
        )

    def __enter__(self) -> Page:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until the pages show how the run ended, but not for long."""
        if self._ended is None and self._latest is not None:
            self._latest = f"left by its driver: {error}", self._latest[1]
        by_itself = error is None or isinstance(error, Exception)
        stopped = isinstance(error, RunCancelled) or not by_itself
        self._over.set()
        self._thread.join(STOPPED_S if stopped else END_S)
        if self._thread.is_alive():
            self._log.warning(
                "Prefect's pages do not show yet how the run ended, as its API does not answer; "
                "it is tried for another minute while this process lives"
            )

    # -- of the driver's thread --------------------------------------------------------------

    def began(self, record: RunRecord) -> None:
        """Note that what is in the run folder is of this sitting."""
        self._opened = True

    def cluster(self, dashboard: str) -> None:
        """Note where the Dask dashboard is."""
        self._url = dashboard

    def progress(self, stage: str, standing: Standing | None) -> None:
        """Note where the run stands."""
        if standing is not None:
            self._latest = stage, standing

    def ended(
        self,
        record: RunRecord,
        summary: RunSummary,
        *,
        result: ParallelRunResult | None,
        failure: str | None,
    ) -> None:
        """Note how the sitting ended."""
        self._ended = wording.Ended(
            record=record,
            summary=summary,
            output=(result.append_row_file or result.output) if result is not None else None,
            failure=failure,
            opened=self._opened,
            at=time.time(),
            took_s=time.monotonic() - self._began,
        )

    # -- of its own thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with api.connected(self._api_url, answer_s=ANSWER_S) as client:
                pause_s = FIRST_S
                while not self._over.wait(pause_s):
                    self._compose()
                    self._bring(client)
                    if self._progress.wanted is not None:
                        pause_s = pause_after_s(time.monotonic() - self._began)
                self._bring_the_last(client)
        except Exception as error:
            self._log.warning("Prefect's pages show no more of the run: %s", api.why(error))

    def _bring_the_last(self, client: SyncPrefectClient) -> None:
        """Show how the run ended; while Prefect cannot take it, again and again."""
        self._compose()
        deadline = time.monotonic() + LAST_S
        refusals = 0
        while errors := self._bring(client):
            refusals = refusals + 1 if all(map(api.is_refusal, errors)) else 0
            if refusals >= REFUSALS or time.monotonic() > deadline:
                self._log.warning(
                    "Prefect's pages do not show how the run ended: no %s (%s)",
                    ", ".join(one.key for one in self._artifacts if one.is_due),
                    api.why(errors[-1]),
                )
                return
            time.sleep(AGAIN_S)

    def _compose(self) -> None:
        """Settle what the artifacts are to show now."""
        latest, ended = self._latest, self._ended
        if latest is not None:
            self._progress.wanted = wording.progress(*latest, ended)
        if self._url.startswith("http"):
            self._dashboard.wanted = wording.dashboard(self._url, self._paths.root.name)
        if ended is not None:
            self._summary.wanted = wording.summary(self._paths, ended)
            self._failed.wanted = wording.failed_items(self._paths, ended)

    def _bring(self, client: SyncPrefectClient) -> list[Exception]:
        """Bring the pages up to date; return the errors of the artifacts that are not.

        One that Prefect does not take keeps the others from nothing; an API that is gone does.
        """
        errors: list[Exception] = []
        for artifact in [one for one in self._artifacts if one.is_due]:
            try:
                artifact.bring(client)
            # Whatever is wrong with the answers: it costs the run nothing.
            except Exception as error:
                errors.append(error)
                if not self._warned:
                    self._warned = True
                    why = api.why(error)
                    self._log.warning("On Prefect's pages %s is late: %s", artifact.key, why)
                if isinstance(error, httpx.TransportError):
                    break
        return errors


def pause_after_s(elapsed_s: float) -> float:
    """Return how long the pages may be behind, so long after the start: the longer a run, the longer."""
    return min(SELDOM_S, max(OFTEN_S, elapsed_s / 100))
