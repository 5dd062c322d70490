"""A compute target becomes a Dask client: an embedded cluster, one by its address, or the user's own object."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import dask
import distributed
from distributed.comm.core import CommClosedError

from prefect_parallelrun.checks import COMPUTE_TARGET_BLOCK
from prefect_parallelrun.compute_target import DaskComputeTarget
from prefect_parallelrun.driver import described, task_runner
from prefect_parallelrun.driver.described import Described
from prefect_parallelrun.driver.watched import settled
from prefect_parallelrun.errors import ClusterError
from prefect_parallelrun.node import gpus, threads

REMEMBERED_MESSAGES = 10
"""Each of Dask's connections keeps its last 1,000 messages for debugging. Ours carry the paths of up to
5,000 files each: hundreds of megabytes in the flow's process."""
ANSWER_S = 5.0
"""How long the scheduler may take to say which Dask workers it has."""
CONNECT_S = 30.0
"""How long it may take to become a client of the scheduler: Dask itself waits for ever for an answer."""
CLOSE_S = 3.0
"""How long letting go of the scheduler may take; it may be a process that does not answer."""
DASK_SETTINGS = {
    "distributed.admin.low-level-log-length": REMEMBERED_MESSAGES,
    # A hundred times a second it asks for the frames of all threads, which in Python 3.11
    # before 3.11.9 can lock up the whole process for good when a garbage collection and
    # the start of a thread coincide with it (CPython's gh-106883; a flow froze so). Each
    # bundle starts a thread, and all that they do is wait: there is nothing to profile.
    "distributed.worker.profile.enabled": False,
}
"""For what is made in the flow's process: our connections, and embedded Dask workers."""


class _Client(distributed.Client):
    """A Dask client that is made at once, connects beside the driver's thread, and comes back."""

    connecting: Future[Any]

    def start(self, **keywords: Any) -> None:
        """Begin to connect."""
        self._loop_runner.start()
        loop: Any = self.loop
        work = self._start(**keywords)  # type: ignore[no-untyped-call]
        self.connecting = asyncio.run_coroutine_threadsafe(work, loop.asyncio_loop)

    async def _ensure_connected(self, timeout: float | None = None) -> None:
        """Connect; what is no greeting is a failure like others, and tried again.

        To a client that comes back the scheduler may send news in one message with its greeting; Dask
        only asserts that it does not, and would be deaf from then on, without ever giving up.
        """
        try:
            await super()._ensure_connected(timeout=timeout)  # type: ignore[no-untyped-call]
        except AssertionError as error:
            raise ConnectionError("the scheduler's greeting could not be read") from error


class Target:
    """The Dask cluster of one run, and our client of it.

    Args:
        target: None for a cluster of in-process Dask workers that ends with the run, the address of
            a scheduler, a Dask cluster object, or the name of a block that describes one.
        node_count: Dask workers of an embedded cluster.
        log: of the run.
        watch: called several times a second until the scheduler has answered; ends that by raising.

    Raises:
        ClusterError: no scheduler answers there, or the cluster could not be started.
        ConfigError: the block cannot be read.
        Exception: what `watch` raises.
    """

    def __init__(
        self,
        target: Any,
        *,
        node_count: int,
        log: logging.Logger,
        watch: Callable[[], None] | None = None,
    ) -> None:
        self._log = log
        # Prefect prints all that Dask says at INFO. Of an embedded cluster nothing matters to the user:
        # even the closing of its connections is an error to Dask; what does matter, the driver tells.
        self._dask_log = logging.getLogger("distributed")
        self._dask_level = self._dask_log.level
        self._dask_log.setLevel(
            max(self._dask_level, logging.CRITICAL if target is None else logging.WARNING)
        )
        self.embedded = target is None
        """Whether the Dask workers are threads of this process."""
        self._end: Callable[[], object] | None = None
        """Ends the cluster, if it began with this run."""
        try:
            with dask.config.set(DASK_SETTINGS):
                found = self._find(target, node_count, watch)
                self._end = found.end
                if isinstance(found.place, str):
                    log.info("Connecting to the Dask scheduler at %s", found.place)
                self.client: distributed.Client = _connect(target, found, watch)
        except BaseException:
            self._close_own()
            self._dask_log.setLevel(self._dask_level)
            raise
        self._scalable: Any = found.place
        self._told = found.told

    def _find(self, target: Any, node_count: int, watch: Callable[[], None] | None) -> Described:
        """Return what the client connects to; started, where it is not there yet."""
        if target is None:
            cluster = _embedded(node_count)
            return Described(place=cluster, end=lambda: cluster.close(timeout=10))
        if target == "task-runner":
            return task_runner.find(watch)
        of_block = isinstance(target, str) and target.startswith(COMPUTE_TARGET_BLOCK)
        if of_block or isinstance(target, DaskComputeTarget):
            return described.find(target, log=self._log, watch=watch)
        return Described(place=target)

    @property
    def is_lost(self) -> bool:
        """Whether Dask has given up on the connection to the scheduler."""
        return self.client.status in ("closing", "closed")

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the client, in a thread of its own."""
        loop: Any = self.client.loop
        return loop.asyncio_loop  # type: ignore[no-any-return]

    @property
    def dashboard(self) -> str:
        """Address of the Dask dashboard, or empty."""
        if self.embedded:
            # In process, Dask would name the host's address; but it listens on loopback.
            scheduler = self._scalable.scheduler
            return f"http://127.0.0.1:{scheduler.services['dashboard'].port}/status"
        return str(self.client.dashboard_link or "")

    @property
    def may_grow(self) -> bool:
        """Whether Dask workers may come that nobody starts for this run: what else would start them?

        Of a cluster behind an address, or one that something else scales (an operator of Kubernetes),
        nobody knows.
        """
        return not isinstance(self._scalable, distributed.SpecCluster) or self._adaptive is not None

    @property
    def scaling_s(self) -> float | None:
        """The `target_duration` of the cluster's adaptive scaling in seconds, where it can be seen."""
        return getattr(self._adaptive, "target_duration", None)

    @property
    def _adaptive(self) -> Any:
        adaptive = getattr(self._scalable, "_adaptive", None)
        return None if getattr(adaptive, "state", None) in ("inactive", "stopped") else adaptive

    async def workers(self) -> dict[str, int]:
        """Return the threads of each Dask worker that takes work, by its address.

        Raises:
            OSError: the connection is broken.
            TimeoutError: the scheduler does not answer.
        """
        there = sorted((await self._known()).items())
        return {a: worker["nthreads"] for a, worker in there if worker["status"] == "running"}

    async def addresses(self) -> set[str]:
        """Return the addresses of all Dask workers that the scheduler knows, also of the paused.

        Raises:
            OSError: the connection is broken.
            TimeoutError: the scheduler does not answer.
        """
        return set(await self._known())

    async def _known(self) -> dict[str, dict[str, Any]]:
        if (scheduler := self.client.scheduler) is None:
            raise ConnectionError("the connection is closed")
        answer = await asyncio.wait_for(scheduler.identity(n_workers=-1), ANSWER_S)
        workers: dict[str, dict[str, Any]] = answer["workers"]
        return workers

    async def result(self, future: distributed.Future[bytes]) -> bytes:
        """Return what a Dask task has given back, when it has.

        Each is asked for alone: `Client.gather` joins all that is asked for meanwhile into one request,
        which waits for the slowest of their Dask workers, so that one which does not answer would hold
        back the results of all others (it did, for good).

        Raises:
            Exception: whatever became of the task, or of the connection, instead.
        """
        if (state := future._state) is not None:
            await state.wait()
        if future.status != "finished" or (scheduler := self.client.scheduler) is None:
            raise ConnectionError(f"the task is {future.status}")
        answer = await scheduler.gather(keys=[future.key])
        frames: bytes = answer["data"][future.key]
        return frames

    def ask_for_replacement(self, *, idle: int) -> None:
        """Ask the cluster for as many Dask workers as it was asked for before, if it has fewer.

        Only what starts its Dask workers itself is asked: a scheduler behind an address cannot be;
        Kubernetes, gateways and the like replace by themselves what dies; and an adaptive cluster has
        a mind of its own.

        Args:
            idle: so many of them are there, but do not answer; as many more are asked for.
        """
        cluster = self._scalable
        if not isinstance(cluster, distributed.SpecCluster):
            return
        if self._adaptive is not None:
            return
        wanted = len(cluster.plan) + idle
        there = len(cluster.scheduler_info["workers"])
        if wanted <= there:
            return
        self._log.info(
            "The Dask cluster has %d workers, and is asked for %d, to replace what was lost",
            there,
            wanted,
        )
        if not self.embedded:
            try:
                cluster.scale(wanted)
            except Exception as error:
                self._log.warning("The Dask cluster cannot be scaled: %s", self._told(error))
            return
        with dask.config.set(DASK_SETTINGS):
            cluster.scale(wanted)
            cluster.sync(cluster._correct_state)  # as long as the settings hold

    def close(self) -> None:
        """Let go of the cluster, however it is; end it if it is ours."""
        try:
            self.client.close(timeout=CLOSE_S)
        except (OSError, TimeoutError) as error:
            self._log.warning("The Dask scheduler did not answer at the end: %r", error)
        finally:
            self._close_own()
            self._dask_log.setLevel(self._dask_level)

    def _close_own(self) -> None:
        if self._end is not None:
            self._end()


def _connect(target: Any, found: Described, watch: Callable[[], None] | None) -> _Client:
    """Become a client of a scheduler.

    Raises:
        ClusterError: nothing is there, or nothing that answers, or such a client cannot be made.
        Exception: what `watch` raises.
    """
    try:
        client = _Client(  # type: ignore[no-untyped-call]
            found.place, **{"security": found.security, **found.client_kwargs}, set_as_default=False
        )
    except Exception as error:
        its = f"client_kwargs={dict(found.client_kwargs)!r}" + (" and tls_…" * bool(found.security))
        raise ClusterError(
            f"compute_target={target!r}: no Dask client can be made with {its}: {found.told(error)}"
        ) from None
    try:
        is_settled = settled(client.connecting, CONNECT_S, watch)
        wrong = client.connecting.exception() if is_settled else None
        if wrong is not None or not is_settled:
            why = f"nothing for {CONNECT_S:g} seconds" if wrong is None else found.told(wrong)
            raise ClusterError(
                f"compute_target={target!r}: no Dask scheduler answers there: {why}{_of_tls(found, wrong)}"
            )
    except BaseException:
        client.connecting.cancel()
        # Now: at the end of the process its loop stands still, and the client would wait for it.
        with contextlib.suppress(OSError):
            client.close(timeout=CLOSE_S)  # type: ignore[no-untyped-call]
        raise
    return client


def _of_tls(found: Described, wrong: BaseException | None) -> str:
    """Return what to look at where it is, or may be, an encrypted cluster that does not answer."""
    if not isinstance(found.place, str):
        return ""
    if not found.place.startswith("tls:"):
        # Somebody was there, and hung up at once.
        may_be_encrypted = isinstance(wrong, CommClosedError)
        return ". If it is encrypted, its address begins with tls://" * may_be_encrypted
    if found.security is None and "security" not in found.client_kwargs:
        return (
            ". A tls:// cluster wants certificates of its clients: give a DaskComputeTarget with tls_ca, "
            'tls_certificate and tls_key, or with client_kwargs={"security": …}'
        )
    return (
        ". Is the scheduler encrypted, and are the client's certificates of the authority that it trusts, "
        "and still valid?"
    )


def _embedded(node_count: int) -> distributed.LocalCluster:
    """Start in-process Dask workers: scripts run in processes of their own, so Dask needs none.

    `memory_limit=0`: the workers would pause whenever the flow itself uses memory.
    """
    cores = threads.cores_here()
    gpu_count = gpus.find({}).count
    return distributed.LocalCluster(
        n_workers=node_count,
        threads_per_worker=max(1, cores // node_count),
        processes=False,
        memory_limit=0,
        # Each sees them all; which process has which is settled host-wide.
        resources={gpus.RESOURCE: gpu_count} if gpu_count else {},
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )
