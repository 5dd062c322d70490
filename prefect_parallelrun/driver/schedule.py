"""The middle of a run: mini-batches out, results in, until all are settled or it is over."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.bundle import Ended, Settled
from prefect_parallelrun.driver.cluster import (
    BundleEnded,
    Cluster,
    Event,
    NodeJoined,
    NodeLost,
    NodeNews,
)
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.errors import (
    ClusterError,
    ErrorThresholdExceeded,
    InitFailed,
    NoProgress,
)
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import Plan
from prefect_parallelrun.report.progress import Standing
from prefect_parallelrun_runtime import channel, messages

TICK_S = 0.2
"""How long the driver waits for news before it looks at its limits."""
SHOW_S = 0.2
"""How often whoever watches is told where the run stands."""
WAITING = "Waiting for a Dask worker: none is there that can be a node of this run"
STAGES = {
    "import": "its import failed",
    "init": "init() failed",
    "idle": "processes died before their first mini-batch",
}
PROGRESS_S = 10.0
"""How often the log says where the run stands."""


class Schedule:
    """Joins the tracker, which decides, with the cluster and the writer, which act."""

    def __init__(
        self,
        definition: StepDefinition,
        plan: Plan,
        settings: messages.Settings,
        *,
        limits: policy.Limits,
        paths: RunPaths,
        run_id: str,
        writer: OutputWriter,
        log: logging.Logger,
        on_progress: Callable[[Standing], None] | None,
    ) -> None:
        self._definition = definition
        self._plan = plan
        self._settings = settings
        self._limits = limits
        self._paths = paths
        self._run_id = run_id
        self._writer = writer
        self._log = log
        self._on_progress = on_progress
        self._tracker = Tracker(plan, limits, paths.process_error)
        self._began = time.monotonic()
        self._last_news = self._last_shown = self._last_line = self._last_tend = self._began
        self.script_failures: list[messages.Event] = []
        """Processes of which import, `init()` or `shutdown()` failed."""
        self._first_errors: set[tuple[str, str]] = set()
        self._warned = False

    @property
    def planned(self) -> int | None:
        """Number of all mini-batches; None as long as only reading the input would tell."""
        known = self._plan.known_count
        return self._tracker.planned if known is None and self._tracker.planned_all else known

    def run(self) -> None:
        """Schedule until every mini-batch is settled.

        Raises:
            ParallelRunError: a threshold is exceeded, or a limit reached.
        """
        if self._tracker.done:
            self._log.info("There is nothing to do: the input holds no mini-batch")
            return
        self._cluster = Cluster(
            self._definition.config.compute_target,
            node_count=self._definition.config.node_count,
            step=self._definition.name,
            run_id=self._run_id,
            log=self._log,
        )
        gracefully = False
        try:
            self._cluster.start(self._settings, self._paths)
            self._log.info("Dask dashboard: %s", self._cluster.dashboard)
            self._loop()
            gracefully = True
        finally:
            self._cluster.close(gracefully=gracefully)
            # Of what came since the loop ended only this still matters; the rest would act on a
            # cluster that is closed, and hide why the run failed.
            for event in self._cluster.collect(0):
                if isinstance(event, NodeNews) and event.event["name"] == "shutdown_failed":
                    self._news(event.event)

    def _loop(self) -> None:
        while True:
            for bundle in self._tracker.next_bundles():
                self._cluster.submit(bundle)
            if self._tracker.done:
                return
            for event in self._cluster.collect(TICK_S):
                self._last_news = time.monotonic()
                self._handle(event)
            self._look_around()

    # -- events ------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        match event:
            case BundleEnded():
                self._bundle_ended(event)
            case NodeNews():
                self._news(event.event)
            case NodeJoined():
                self._tracker.node_joined(event.node, event.processes)
                self._log.info("%s joined: %s", event.node, event.description)
            case NodeLost():
                self._node_lost(event)

    def _bundle_ended(self, event: BundleEnded) -> None:
        if event.frames == b"":
            self._tracker.bundle_returned(event.number)
            return
        self._settle(self._tracker.bundle_ended(event.number, _results(event.frames)))

    def _settle(self, settled: list[Settled]) -> None:
        for one in settled:
            self._writer.add(one.record, one.data, one.columns)
            if one.record.error is not None:
                self._tell(one)
        if (extra := self._tracker.overlong) is not None and not self._warned:
            self._warned = True
            self._log.warning(
                "%s: run() returned more elements than mini-batch %d has items; each item counts once",
                self._definition.config.entry_script,
                extra.index,
            )
        if why := self._tracker.exceeded():
            raise ErrorThresholdExceeded(why)

    def _tell(self, one: Settled) -> None:
        """Log a failed attempt: the first of each kind to the flow as well."""
        record, error = one.record, one.record.error
        assert error is not None
        kind = (error.type, error.where)
        level = logging.DEBUG if kind in self._first_errors else logging.WARNING
        self._first_errors.add(kind)
        self._log.log(
            level,
            "Mini-batch %d (%s) attempt %d of %d failed on %s %s: %s: %s%s\nlog: %s",
            record.mini_batch,
            ", ".join(record.items_sample),
            record.attempt,
            self._limits.max_attempts,
            record.node,
            record.process,
            error.type,
            error.message,
            f" ({error.where})" if error.where else "",
            record.log_file,
        )

    def _news(self, news: messages.Event) -> None:
        name = news["name"]
        if name == "bundle_started":
            self._tracker.bundle_started(news["bundle"])
            return
        self._log.debug("%s", news)
        if name in ("start_failed", "shutdown_failed"):
            self.script_failures.append(news)
            if name == "shutdown_failed":
                self._log.warning(
                    "%s %s: shutdown() failed: %s: %s",
                    news["node"],
                    news["process"],
                    news["error"]["type"],
                    news["error"]["message"],
                )
        elif name == "gave_up":
            self._log.warning(
                "%s: no process could be started, it is not tried any more", news["node"]
            )
            self._drop(news["node"], for_good=True)
            if not self._cluster.nodes:
                raise self._init_failed()

    def _node_lost(self, event: NodeLost) -> None:
        self._log.warning("%s is lost: %s", event.node, event.reason)
        self._drop(event.node, for_good=event.for_good)
        self._cluster.tend()
        if self._cluster.nodes:
            return
        if event.for_good:
            raise ClusterError(f"no Dask worker can be a node of this run: {event.reason}")
        self._log.warning("No node is left; waiting for a Dask worker")

    def _drop(self, node: str, *, for_good: bool) -> None:
        self._cluster.forget(node, for_good=for_good)
        self._settle(self._tracker.node_left(node))

    # -- limits ------------------------------------------------------------------------------

    def _look_around(self) -> None:
        now = time.monotonic()
        self._report(now)
        if now - self._last_tend > 1.0:
            self._last_tend = now
            self._cluster.tend()
        options = self._definition.options
        waited = now - self._began
        if not self._cluster.nodes and now - self._last_news > options.first_task_creation_timeout:
            raise ClusterError(
                f"no Dask worker could be made a node for {now - self._last_news:.0f} seconds "
                f"(--first_task_creation_timeout {options.first_task_creation_timeout:g})"
            )
        if (
            not self._tracker.attempts
            and not self._tracker.running
            and waited > options.first_task_creation_timeout
        ):
            raise NoProgress(
                f"no mini-batch was handed out within --first_task_creation_timeout "
                f"{options.first_task_creation_timeout:g} seconds"
            )
        if now - self._last_news > self._no_progress_s:
            raise NoProgress(f"No progress update in {now - self._last_news:.0f} seconds.")

    @property
    def _no_progress_s(self) -> float:
        """Seconds without any news that end a run: what is asked for, else what no living node exceeds."""
        asked = self._definition.options.progress_update_timeout
        if asked is not None:
            return asked
        s = self._settings
        return s["init_timeout_s"] + 2 * s["load_timeout_s"] + s["run_timeout_s"] + 60

    def _report(self, now: float) -> None:
        if now - self._last_shown < SHOW_S:
            return
        self._last_shown = now
        tracker = self._tracker
        standing = Standing(
            planned=self.planned,
            succeeded=tracker.mini_batches_succeeded,
            failed=tracker.mini_batches_failed,
            retried=tracker.retries,
            running=tracker.running,
            items_succeeded=tracker.items_succeeded,
            items_failed=tracker.items_failed,
            elapsed_s=now - self._began,
        )
        if self._on_progress is not None:
            self._on_progress(standing)
        if now - self._last_line >= PROGRESS_S:
            self._last_line = now
            self._log.info("%s", standing if self._cluster.nodes else WAITING)

    def _init_failed(self) -> InitFailed:
        stages = {news["error"]["stage"] for news in self.script_failures}
        what = [said for stage, said in STAGES.items() if stage in stages]
        return InitFailed(
            f"{self._definition.config.entry_script}: no worker process is left on any node, and none "
            f"can be started: {' and '.join(what)}, {len(self.script_failures)} times"
        )


def _results(frames: bytes) -> list[Ended]:
    """Return the results among a bundle's frames; the headers are decoded in one go, for speed."""
    results = [frame for frame in channel.frames(frames) if frame.kind == channel.RESULT]
    headers = json.loads(b"[" + b",".join([frame.header for frame in results]) + b"]")
    return list(zip(headers, [frame.payload for frame in results], strict=True))
