"""The middle of a run: mini-batches out, results in, until all are settled or it is over."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import history, policy
from prefect_parallelrun.driver.attempt_records import MISFIT
from prefect_parallelrun.driver.bundle import Settled, results
from prefect_parallelrun.driver.cluster import Cluster
from prefect_parallelrun.driver.events import (
    BundleEnded,
    Event,
    NodeJoined,
    NodeLacks,
    NodeLost,
    NodeNews,
    NotKept,
    NoWorkerLeft,
)
from prefect_parallelrun.driver.outlook import Outlook
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun.driver.starts import Starts
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.driver.waits import Waits
from prefect_parallelrun.errors import ClusterError, EntryScriptError, ErrorThresholdExceeded
from prefect_parallelrun.models import AttemptError, AttemptRecord, MiniBatch, Outcome
from prefect_parallelrun.output.columns import admission
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import Plan
from prefect_parallelrun.report.observer import Observer
from prefect_parallelrun.report.overview import Overview
from prefect_parallelrun.report.progress import RUNNING
from prefect_parallelrun_runtime import failures, messages

TICK_S = 0.1
"""How long the driver waits for news before it looks at its limits, and whether it is to stop."""
SHOW_S = 0.2
"""How often whoever watches is told where the run stands."""
TROUBLE = {
    "logs_lost": "log files are lost, but nothing else",
    "gpus_lacking": "its GPUs are not as asked for",
    "monitor_trouble": "its resources are not watched as they should be",
}
"""What a node goes on without, by the event that tells of it."""


class Schedule:
    """Joins the tracker, which decides, with the cluster and the writer, which act.

    What the writer has of earlier sittings of the run is not run again.
    """

    def __init__(
        self,
        definition: StepDefinition,
        plan: Plan,
        settings: messages.Settings,
        fetched: Fetched,
        *,
        limits: policy.Limits,
        paths: RunPaths,
        writer: OutputWriter,
        log: logging.Logger,
        overview: Overview,
        observer: Observer,
        watch: Callable[[], None] | None = None,
        first_node: int = 0,
    ) -> None:
        self._definition = definition
        self._plan = plan
        self._settings = settings
        self._fetched = fetched
        self._limits = limits
        self._paths = paths
        self._writer = writer
        self._log = log
        self._overview = overview
        self._observer = observer
        self._watch = watch
        self._first_node = first_node
        self._tracker = Tracker(
            _to_run(plan, writer.done()),
            limits,
            paths.process_error,
            earlier=writer.earlier,
            admit=admission(definition.config.output_format, writer.journal),
        )
        now = self._began = time.monotonic()
        config = definition.config
        self._starts = Starts(
            str(config.entry_script),
            node_count=config.node_count,
            limit_s=settings["init_timeout_s"],
        )
        self._history = history.History(writer.note)
        self._waits = Waits(definition.options, settings, max_attempts=limits.max_attempts, now=now)
        self._waits.place = config.compute_target
        self._outlook = Outlook(self._tracker, self._starts, self._waits, began=now)
        self._last_shown = now
        self._shutdown_failures: list[messages.Event] = []
        self._first_errors: set[tuple[str, str]] = set()
        self._warned = False
        self._near: set[str] = set()
        self._unheard: deque[Event] = deque()
        """What has happened and is not handled yet: one event may end the run before the next."""

    @property
    def attempts(self) -> int:
        """Attempts that ended in this sitting."""
        return self._tracker.attempts

    @property
    def script_failures(self) -> list[messages.Event]:
        """Processes of which import, `init()` or `shutdown()` failed."""
        return self._starts.failures + self._shutdown_failures

    @property
    def planned(self) -> int | None:
        """Number of all mini-batches; None as long as only reading the input would tell."""
        known = self._plan.known_count
        return self._tracker.planned if known is None and self._tracker.planned_all else known

    def run(self) -> None:
        """Schedule until every mini-batch is settled.

        Raises:
            ParallelRunError: a threshold is exceeded, or a limit reached.
            Exception: what `watch` raises, to end the run.
        """
        if self._tracker.done:
            self._log.info("There is nothing to do: %s", self._why_nothing())
            return
        nodes = self._definition.config.node_count
        self._overview.stage("starting 1 node" if nodes == 1 else f"starting {nodes} nodes")
        self._cluster = Cluster(
            self._definition.config.compute_target,
            node_count=nodes,
            first_node=self._first_node,
            step=self._definition.name,
            log=self._log,
            watch=self._watch,
        )
        gracefully = False
        try:
            self._cluster.start(self._settings, self._paths, self._fetched)
            self._log.info("Dask dashboard: %s", self._cluster.dashboard)
            self._observer.cluster(self._cluster.dashboard)
            self._loop()
            gracefully = True
        finally:
            self._show(time.monotonic())
            self._overview.stage("ending the nodes")
            try:
                self._cluster.close(gracefully=gracefully)
            finally:
                self._hear_the_last()
                self._show(time.monotonic())
                self._history.end(history.STOPPED if gracefully else history.CANCELLED)

    def _hear_the_last(self) -> None:
        """Take note of what came since the loop ended.

        Of that only this still matters; the rest would act on a cluster that is closed, and hide why
        the run failed.
        """
        for event in [*self._unheard, *self._cluster.collect(0)]:
            match event:
                case BundleEnded() if event.frames:
                    self._keep(event)
                case NodeJoined():
                    self._history.node_joined(event)
                case NodeLost():
                    self._history.node_lost(event)
                case NodeNews() if event.event["name"] in ("shutdown_failed", *TROUBLE):
                    self._news(event.event)
                case NodeNews():
                    self._history.heard(event.event)

    def _keep(self, event: BundleEnded) -> None:
        """Write down what succeeded just before the run ended: it need not run again (R201).

        What failed is left out: it would get fresh attempts, and what is told of why the run ended is
        settled.
        """
        if not self._writer.has_room:
            return
        try:
            ended = results(event.frames)
            good = [one for one in ended if one[0]["outcome"] == Outcome.SUCCEEDED]
            self._take(self._tracker.bundle_ended(event.number, good))
        except Exception as error:  # it must not hide why the run ends
            self._log.warning("What ended last could not be kept, and runs again: %s", error)

    def _why_nothing(self) -> str:
        done = self._tracker.mini_batches_succeeded
        return f"all {done:,} mini-batches are done" if done else "the input holds no mini-batch"

    def _loop(self) -> None:
        while True:
            for bundle in self._tracker.next_bundles():
                self._cluster.submit(bundle)
                self._waits.submitted(bundle, time.monotonic())
            if self._tracker.done:
                return
            self._cluster.work_waits = self._tracker.work_waits
            self._unheard.extend(self._cluster.collect(TICK_S))
            while self._unheard:
                self._handle(self._unheard.popleft())
            self._look_around()

    # -- events ------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        match event:
            case BundleEnded():
                self._bundle_ended(event)
            case NodeNews():
                self._news(event.event)
            case NodeJoined():
                self._node_joined(event)
            case NodeLost():
                self._node_lost(event)
            case NodeLacks() | NotKept():
                raise event.error
            case NoWorkerLeft():
                raise self._starts.given_up() or ClusterError(
                    f"no Dask worker can be a node of this run: {event.reason}"
                )

    def _bundle_ended(self, event: BundleEnded) -> None:
        self._waits.ended(event.number)
        if event.frames == b"":
            self._tracker.bundle_returned(event.number)
            return
        self._settle(self._tracker.bundle_ended(event.number, results(event.frames)))

    def _settle(self, settled: list[Settled]) -> None:
        self._take(settled)
        if (extra := self._tracker.overlong) is not None and not self._warned:
            self._warned = True
            self._log.warning(
                "%s: run() returned more elements than mini-batch %d has items; each item counts once",
                self._definition.config.entry_script,
                extra.index,
            )
        self._warn_of_thresholds()
        if why := self._tracker.exceeded():
            raise ErrorThresholdExceeded(why)
        if why := self._tracker.hopeless():
            raise EntryScriptError(why)

    def _take(self, settled: list[Settled]) -> None:
        """Write attempts down that ended, and tell of those that failed."""
        if any(one.record.final for one in settled):
            self._waits.done(time.monotonic())
        for one in settled:
            self._writer.add(one.record, one.data, one.columns)
            if one.record.error is not None:
                self._tell(one)

    def _tell(self, one: Settled) -> None:
        """Log a failed attempt: the first of each kind to the flow as well."""
        record, error = one.record, one.record.error
        assert error is not None
        if error.type == MISFIT and record.log_file:
            _write_down(record, error)
        kind = (error.type, error.where)
        level = logging.DEBUG if kind in self._first_errors else logging.WARNING
        self._first_errors.add(kind)
        self._log.log(
            level,
            "Mini-batch %d (%s) attempt %d of %d failed on %s: %s: %s%s%s",
            record.mini_batch,
            ", ".join(record.items_sample),
            record.attempt,
            self._limits.max_attempts,
            f"{record.node} {record.process}".rstrip(),  # lost with its node, it has no process
            error.type,
            error.message,
            f" ({error.where})" if error.where else "",
            f"\nlog: {record.log_file}" if record.log_file else "",
        )
        if record.final:
            self._observer.mini_batch_failed(record)

    def _warn_of_thresholds(self) -> None:
        """Say once of each threshold that it is near; of a run that goes on, also if it was before."""
        for near in policy.near(self._limits, self._tracker.tally, self.planned):
            if near.threshold not in self._near:
                self._near.add(near.threshold)
                self._log.warning("%s", near)
                self._observer.threshold_near(near.threshold, near.failed, near.tolerated)

    def _news(self, news: messages.Event) -> None:
        name = news["name"]
        if name == "bundle_started":
            now = time.monotonic()
            self._tracker.bundle_started(news["bundle"])
            self._waits.begun(news["bundle"], now)
            if self._outlook.bundle_started(now):
                self._overview.stage(RUNNING)
            return
        if name == "bundle_fetched":
            self._tracker.bundle_fetched(news["bundle"], news["seconds"])
            return
        if name == "fetching":
            self._waits.node_fetches(now := time.monotonic())
            if self._outlook.node_fetches(news["node"], news["reason"], now):
                self._log.info("%s %s", news["node"], news["reason"])
            return
        self._log.debug("%s", news)
        self._starts.heard(news, time.monotonic())
        self._history.heard(news)
        if trouble := TROUBLE.get(name):
            self._log.warning("%s: %s: %s", news["node"], trouble, news["reason"])
        if name == "shutdown_failed":
            self._shutdown_failures.append(news)
            self._log.warning(
                "%s %s: shutdown() failed: %s: %s",
                news["node"],
                news["process"],
                news["error"]["type"],
                news["error"]["message"],
            )

    def _node_joined(self, event: NodeJoined) -> None:
        self._waits.node_joined(event.node, time.monotonic())
        self._starts.node_joined(event.node, event.processes)
        self._history.node_joined(event)
        self._tracker.node_joined(event.node, event.processes)
        self._outlook.node_known(event.node)
        self._overview.note(f"{event.node} joined: {event}")
        self._log.info("%s joined: %s", event.node, event)

    def _node_lost(self, event: NodeLost) -> None:
        self._log.log(logging.INFO if event.left else logging.WARNING, "%s", event)
        self._overview.note(str(event))
        self._outlook.node_known(event.node)
        self._waits.node_left(event.node, time.monotonic())
        self._starts.node_left(event.node)
        self._history.node_lost(event)
        self._settle(self._tracker.node_left(event.node, expected=event.expected))
        if not self._waits.nodes:
            self._log.warning("No node is left; waiting for a Dask worker")

    # -- limits ------------------------------------------------------------------------------

    def _look_around(self) -> None:
        if self._watch is not None:
            self._watch()
        now = time.monotonic()
        if now - self._last_shown >= SHOW_S:
            self._show(now)
        if error := self._starts.verdict(now - self._began) or self._waits.verdict(now):
            raise error

    def _show(self, now: float) -> None:
        self._last_shown = now
        joining = self._cluster.joining
        self._overview.show(self._outlook.standing(now, planned=self.planned, joining=joining))


def _write_down(record: AttemptRecord, error: AttemptError) -> None:
    """Put a failure that the driver found where the worker process puts those that it finds (R60)."""
    heading = failures.heading([record.mini_batch, record.attempt], error.stage)
    told = messages.Error(
        category=error.category,
        type=error.type,
        message=error.message,
        where=error.where,
        traceback=error.traceback,
        stage=error.stage,
    )
    failures.append_to_log(record.log_file, heading, told, list(record.items_sample))


def _to_run(plan: Iterable[MiniBatch], done: Iterator[int]) -> Iterator[MiniBatch]:
    """Yield the mini-batches that are not done; both are ascending, and neither is held in memory."""
    next_done = next(done, None)
    for mini_batch in plan:
        while next_done is not None and next_done < mini_batch.index:
            next_done = next(done, None)
        if next_done != mini_batch.index:
            yield mini_batch
