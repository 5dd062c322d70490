"""Our code in a Dask worker: relays bundles to the node's supervisor and results back, unopened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import distributed
import psutil

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun.errors import ClusterError
from prefect_parallelrun.node import process_settings, snapshot
from prefect_parallelrun.node.driver_files import DriverFiles, Requests
from prefect_parallelrun.node.fetching import Fetching
from prefect_parallelrun.node.homeward import Taken
from prefect_parallelrun.node.interpreters import NoEnvironment
from prefect_parallelrun.node.metrics import Metrics, Tally
from prefect_parallelrun.node.monitor import Monitor
from prefect_parallelrun.node.own_errors import noted
from prefect_parallelrun.node.own_thread import in_own_thread
from prefect_parallelrun.node.process_tree import ProcessTree
from prefect_parallelrun.node.run_folder import NodeRunFolder
from prefect_parallelrun.node.side_inputs import leading_nowhere, with_paths
from prefect_parallelrun.node.sources import Sources
from prefect_parallelrun.node.supervision import Supervision
from prefect_parallelrun.node.transfer import Stopped, Unavailable
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun_runtime import messages

logger = logging.getLogger(__name__)

STALE = b""
"""What a bundle comes back as when no process ever had it: no agent, or it lost its supervisor."""

BEAT_S = 2.0
"""How often a node says that it is there."""
LEASE = "node"
"""Word in the key of a node's lease, before the id of its agent."""
LEASE_S = 8.0
"""A node whose lease has not come by then was admitted for a driver that died meanwhile."""
KEPT_S = 60.0
"""How long a node that has ended keeps what is to come home, when nobody asks for it any more."""
LAST_NEWS = ("shutdown_failed", "process_ended", "monitor_trouble")
"""What is told with the node's end, when it comes in the course of that."""


class NodeAgent(distributed.WorkerPlugin):
    """One node of one run: owns the supervisor, what observes it, and the node's private folder."""

    def __init__(
        self,
        agent_id: str,
        settings: messages.Settings,
        run_folder: Path,
        topic: str,
        sources: Sources,
    ) -> None:
        self._id = agent_id
        self._held = self._ended = False
        self._released = threading.Event()
        self._settings = settings
        self._home = run_folder
        self._topic = topic
        self._birth = threading.Lock()
        """Held while the supervisor starts: an end that comes meanwhile must find all of it, or nothing."""
        self._supervision: Supervision | None = None
        self._monitor: Monitor | None = None
        self._tally = Tally()
        self._metrics = Metrics(settings, self._tally)
        self._last_news: list[dict[str, Any]] = []
        self._files: NodeRunFolder | None = None
        self.requests = Requests(self._publish, lambda: self._ended)
        self._kept_until: float | None = None
        """How long what is to come home is kept, after the end (monotonic seconds)."""
        self._fetching = Fetching(
            sources,
            run_id=settings["run_id"],
            node=settings["node"],
            readers=settings["inputs"],
            limit_s=settings["load_timeout_s"],
            tell=self._publish,
            driver=self.requests,
        )
        self._beating: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its end has begun."""
        return self._ended

    def setup(self, worker: distributed.Worker) -> None:
        """Know the Dask worker, so that the node can be ended from here on."""
        self._worker = worker

    def start(self) -> dict[str, Any]:
        """Start the supervisor; return what the driver wants to know of the node.

        Raises:
            ClusterError: the run is over already.
            NoEnvironment: the Python environment cannot be had.
            Unavailable: a side input cannot be had.
            Stopped: the node ends.
        """
        expected = (ClusterError, NoEnvironment, Unavailable, Stopped)
        with noted(self._settings, "starting the node", but=expected):
            return self._start()

    def _start(self) -> dict[str, Any]:
        settings = self._settings
        folder = Path(tempfile.mkdtemp(prefix="parallelrun-"))
        files = self._files = NodeRunFolder(self._home, settings["run_id"], folder)
        # mypy knows no keys that are not written out.
        settings["files"] = messages.Files(**files.paths.node_files(settings["node"]))  # type: ignore[typeddict-item]
        destination = settings["output_folder"]
        settings["output_folder"] = files.output(destination)
        gpu_trouble = process_settings.settle(
            settings,
            self._worker,
            log=files.paths.environment_log(settings["node"]),
            stopping=lambda: self._ended,
            tell=self._publish,
        )
        side_inputs = self._fetching.begin(folder, shares=files.shared)
        settings["arguments"] = with_paths(
            settings["arguments"], side_inputs, output=settings["output_folder"]
        )
        settings["source_folder"] = str(folder / "source")
        settings["work_folder"] = str(folder)
        if not files.shared:  # what is to come home stays when the supervisor has ended
            settings["private_folder"], settings["work_folder"] = str(folder), str(folder / "work")
            (folder / "work").mkdir()
        snapshot.unpack(self._source(files), folder / "source")
        with self._birth:
            if self._ended:  # while the source was unpacked
                raise ClusterError("the run is over")
            supervision = self._supervision = Supervision(
                settings, frame_came=self._tally.came, event_came=self._heard
            )
            self._observe(supervision.pid, files.paths)
        return {
            "apart": not files.shared,
            "unseen": self._fetching.unseen,
            "nowhere": [] if files.shared else leading_nowhere(settings["arguments"], destination),
            "processes": settings["process_count"],
            "gpus": settings["gpu_count"],
            # What is published so early may come before the driver is subscribed to it.
            "news": [
                {"name": "gpus_lacking", "node": settings["node"], "reason": told}
                for told in gpu_trouble
            ],
            "host": socket.gethostname(),
            "pid": supervision.pid,
        }

    def run(self, number: int, header: messages.BundleHeader, tasks: bytes) -> bytes:
        """Hand a bundle to the supervisor, wait for its end, return its frames.

        Waits without a limit of its own: the supervisor keeps every deadline, and its end ends this.
        """
        if (supervision := self._supervision) is None:
            return STALE
        with (
            noted(self._settings, f"relaying bundle {number}"),
            supervision.expecting(number) as expected,
        ):
            if expected is None:
                return STALE
            with contextlib.suppress(Stopped), self._fetching.staged(number, tasks) as ready:
                supervision.give(number, header, ready)
                expected.ended.wait()
            return b"".join(expected.frames) if expected.whole else STALE

    def hold(self) -> None:
        """Wait until the node ends; see `hold_node`."""
        self._released.wait()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Watch the lease: Dask lets go of its task when the driver's connection is gone."""
        if not str(key).endswith(f"-{LEASE}-{self._id}"):
            return
        self._held = True
        if start != "memory" and finish in ("cancelled", "released", "forgotten"):
            self._worker.loop.add_callback(self._end_orphaned)

    def begin(self) -> None:
        """Say from now on that the node is there, for as long as its Dask worker is, and how it gets on."""
        self._metrics.show(self._worker)
        self._beating = asyncio.ensure_future(self._beat())

    async def _beat(self) -> None:
        """Beat on the Dask worker's own loop: where that does not run, no result comes either."""
        began = time.monotonic()
        try:
            while True:
                self._publish({"name": "alive"})
                await asyncio.sleep(BEAT_S)
                if self._kept_until is not None and time.monotonic() > self._kept_until:
                    self._worker.loop.add_callback(remove, self._id, self._worker)
                if not self._held and time.monotonic() - began > LEASE_S:
                    self._worker.loop.add_callback(self._end_orphaned)
        except asyncio.CancelledError:
            # Without a nanny, a Dask worker that gets SIGTERM closes nothing: its loop just ends.
            self._clean_up()
            raise

    async def _end_orphaned(self) -> None:
        if not self._ended:
            # The driver lets go of a node that has no supervisor any more.
            if self._supervision is None or not self._supervision.lost:
                run = self._settings["run_id"]
                logger.warning("The driver of %s is gone, or has let go of its node: it ends", run)
            await in_own_thread(self.stop, gracefully=False)
            await remove(self._id, self._worker)

    def stop(self, *, gracefully: bool, keep: bool = False) -> list[dict[str, Any]]:
        """End the worker processes (after their `shutdown()`, if gracefully) and the supervisor.

        Args:
            gracefully: let them finish what they are at.
            keep: leave what is to come home, for `KEPT_S` seconds after it was last asked for.

        Returns:
            What the worker processes ended in: a message of its own might come after the end of the run.
        """
        self._ended = True
        if keep and self._files is not None and not self._files.shared:
            self._kept_until = time.monotonic() + KEPT_S
        with noted(self._settings, "ending the node"):
            if self._monitor is not None:
                self._monitor.stop()
            if gracefully and self._supervision is not None:
                self._supervision.stop()
            self._clean_up()
        return self._last_news

    def at_home(self, text: str) -> str:
        """Return a text that names files of the run folder as the driver names them."""
        if self._files is None:
            return text
        return text.replace(str(self._files.paths.root), str(self._files.home.root))

    def take_home(self, arrived: int) -> Taken | None:
        """Return what is to come home, see `Homeward.take`; None once nothing is left of it here."""
        if self._kept_until is not None:
            self._kept_until = time.monotonic() + KEPT_S
        if self._files is None:
            return Taken(arrived, [], complete=True)
        return self._files.take(arrived)

    async def teardown(self, worker: distributed.Worker) -> None:
        """Leave nothing on the Dask worker when it closes or the run ends."""
        self._leave()
        self._kept_until = None
        self._metrics.hide(worker)
        await in_own_thread(self._clean_up)
        if self._beating is not None and self._beating is not asyncio.current_task():
            self._beating.cancel()

    # -- inside ------------------------------------------------------------------------------

    def _source(self, files: NodeRunFolder) -> bytes:
        if files.shared:
            return files.paths.source.read_bytes()
        return DriverFiles(self.requests).cat_file(str(files.home.source))

    def _observe(self, supervisor: int, paths: RunPaths) -> None:
        """Begin with what people look at; it never fails the node."""
        settings = self._settings
        name = f"{settings['run_id']}/{settings['node']}"
        # One for each of the two: they look at their own pace.
        with contextlib.suppress(psutil.NoSuchProcess):  # the reader tells of that
            self._metrics.watch(ProcessTree(supervisor, name))
            if settings["monitor_interval_s"]:
                folders = (settings["work_folder"], settings["output_folder"], "/")
                self._monitor = Monitor(
                    settings,
                    paths,
                    ProcessTree(supervisor, name),
                    disks=[paths.root, *map(Path, folders)],
                    tell=lambda told: self._publish({"name": "monitor_trouble", "reason": told}),
                )

    def _heard(self, event: dict[str, Any]) -> None:
        self._tally.heard(event)
        self._publish(event)
        if event["name"] == "supervisor_ended":
            self._fetching.stop()

    def _publish(self, event: dict[str, Any]) -> None:
        news = {**event, "node": self._settings["node"]}
        if self._ended and event["name"] in LAST_NEWS:
            self._last_news.append(news)
            return
        with contextlib.suppress(RuntimeError):  # the worker's loop is closed: nobody listens
            self._worker.log_event(self._topic, news)

    def _leave(self) -> None:
        """Tell the driver that the Dask worker closes: what ran here is not to blame for that (R214)."""
        if not self._ended:
            self._publish({"name": "leaving"})

    def _clean_up(self) -> None:
        self._ended = True
        self._released.set()
        self._fetching.stop()
        with self._birth:
            supervision, monitor = self._supervision, self._monitor
        self._metrics.end()
        if monitor is not None:
            monitor.stop()
        if supervision is not None:
            supervision.close()
        self._fetching.close()
        if self._files is not None and self._kept_until is None:
            self._files.remove()


def name_of(agent_id: str) -> str:
    """Return the name of the plugin."""
    return f"parallelrun-{agent_id}"


async def remove(agent_id: str, dask_worker: distributed.Worker) -> None:
    """Take the node off its Dask worker; nothing of it is left."""
    if name_of(agent_id) in dask_worker.plugins:
        await dask_worker.plugin_remove(name=name_of(agent_id))
