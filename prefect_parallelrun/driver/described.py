"""A cluster that a block describes: the block is read, and where it says so a cluster is started."""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

import distributed
from distributed.utils import import_term

from prefect_parallelrun.compute_target import DaskComputeTarget
from prefect_parallelrun.driver.watched import begun, settled
from prefect_parallelrun.errors import ClusterError, ConfigError

BLOCKS = "prefect_parallelrun.blocks"
"""Loaded by name: the driver knows of Prefect only that it keeps such descriptions."""
LOOK_UP_S = 60.0
"""How long Prefect's API may take to give out a block."""
START_S = 900.0
"""How long the start of a cluster may take; machines may have to be rented for it."""
END_S = 60.0
"""How long its end may take."""
LATE_S = 60.0
"""How long the end of this process waits for a cluster whose start was given up, to end it."""
_OF_A_CLUSTER = ("scheduler_address", "close")
"""What the client and the end of the run need of a cluster."""
_SIGNALS = threading.Lock()

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a Dask client connects to."""

    place: Any
    """An address, or a cluster object."""
    end: Callable[[], object] | None = None
    """Ends the cluster, if it was started here."""
    client_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the client."""
    security: distributed.Security | None = None
    """Certificates of the client, where they are not the cluster's own."""
    told: Callable[[BaseException], str] = str
    """Says what went wrong with it, without what is secret."""


def find(
    given: DaskComputeTarget | str, *, log: logging.Logger, watch: Callable[[], None] | None
) -> Described:
    """Return the cluster that is described, started if it says how.

    Args:
        given: the description, or the name of the block that has it, `dask-compute-target/<name>`.
        log: of the run.
        watch: called several times a second meanwhile; ends that by raising.

    Raises:
        ConfigError: there is no such block, or its class cannot be imported.
        ClusterError: the cluster could not be started.
        Exception: what `watch` raises.
    """
    name = repr(given)
    if isinstance(given, DaskComputeTarget):
        target = given
    else:
        target = beside(
            lambda: _of_block(given),
            LOOK_UP_S,
            watch,
            f"compute_target={name}: Prefect's API is silent",
        )
    if target.address is not None:
        return Described(
            place=target.address,
            client_kwargs=target.client_kwargs,
            security=_security(target),
            told=target.told,
        )
    says = f", as {given} says" if isinstance(given, str) else ""
    log.info("Starting a Dask cluster, %s%s", target.cluster_class, says)
    cluster = beside(
        lambda: _started(target, name),
        START_S,
        watch,
        f"compute_target={name}: {target.cluster_class} has not started",
        late=lambda late: late.close(),
    )
    return Described(
        place=cluster,
        end=lambda: _end(cluster, target, log),
        client_kwargs=target.client_kwargs,
        told=target.told,
    )


def _of_block(name: str) -> DaskComputeTarget:
    target: DaskComputeTarget = import_module(BLOCKS).compute_target_of(name)
    return target


def _end(cluster: Any, target: DaskComputeTarget, log: logging.Logger) -> None:
    """End a cluster that was started here; how the run ended does not depend on it."""
    try:
        beside(cluster.close, END_S, None, "nothing was heard of it")
    except (Exception, SystemExit) as error:
        log.warning("The Dask cluster of this run could not be ended: %s", target.told(error))


def _security(target: DaskComputeTarget) -> distributed.Security | None:
    if target.tls_ca is None:
        return None
    return distributed.Security(
        tls_ca_file=target.tls_ca,
        tls_client_cert=target.tls_certificate,
        tls_client_key=target.tls_key,
        require_encryption=True,
    )


def _started(target: DaskComputeTarget, name: str) -> Any:
    """Start the cluster; what went wrong is told without what is secret."""
    try:
        with _no_signal_handled():
            make = import_term(target.cluster_class or "")
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"compute_target={name}: cluster_class={target.cluster_class!r} cannot be imported where "
            f"the flow runs: {error}"
        ) from None
    try:
        cluster = make(**{**target.cluster_kwargs, **target.cluster_secrets})
        is_cluster = all(hasattr(cluster, wanted) for wanted in _OF_A_CLUSTER)
    except (Exception, SystemExit) as error:
        raise ClusterError(
            f"compute_target={name}: {target.cluster_class} could not be started: {target.told(error)}"
        ) from None
    if not is_cluster:
        with contextlib.suppress(Exception):
            cluster.close()
        raise ConfigError(
            f"compute_target={name}: cluster_class={target.cluster_class!r} makes no Dask cluster, which "
            "has " + " and ".join(_OF_A_CLUSTER)
        )
    try:
        if target.adapt_kwargs:
            cluster.adapt(**target.adapt_kwargs)
    except (Exception, SystemExit) as error:
        with contextlib.suppress(Exception):
            cluster.close()
        raise ClusterError(
            f"compute_target={name}: adapt_kwargs={target.adapt_kwargs!r} do not suit "
            f"{target.cluster_class}: {target.told(error)}"
        ) from None
    return cluster


@contextlib.contextmanager
def _no_signal_handled() -> Iterator[None]:
    """Leave the handlers of signals alone, whatever is imported meanwhile in this thread.

    The import of dask-jobqueue (0.9.0; its issue 667) sets a handler of Ctrl-C. Only the main thread may,
    so that it fails here; and in the main thread it would take Ctrl-C away from the flow.
    """
    thread = threading.get_ident()
    with _SIGNALS:
        real = signal.signal

        def set_handler(number: int, handler: Any) -> Any:
            if threading.get_ident() == thread:
                return signal.getsignal(number)
            return real(number, handler)

        signal.signal = set_handler  # type: ignore[assignment]
        try:
            yield
        finally:
            signal.signal = real


def beside(
    make: Callable[[], T],
    limit_s: float,
    watch: Callable[[], None] | None,
    silent: str,
    late: Callable[[T], None] | None = None,
) -> T:
    """Do what may take long in a thread of its own, while the driver's thread goes on watching.

    Args:
        make: what is done; nothing can stop it.
        limit_s: how long it is waited for.
        watch: ends the waiting by raising.
        silent: what is said if it takes longer.
        late: what becomes of its result then.
    """
    done = begun(make, "compute-target")
    try:
        if not settled(done, limit_s, watch):
            raise ClusterError(f"{silent} for {limit_s:g} seconds")
    except BaseException:
        if late is not None:
            _await(done, late)
        raise
    return done.result()


def _await(done: Future[T], late: Callable[[T], None]) -> None:
    """Let `late` have what comes of `done`; the end of this process waits for that, within limits."""
    gone = threading.Event()

    def discard(ended: Future[T]) -> None:
        if ended.exception() is None:
            # Nobody is left whom it could be told.
            with contextlib.suppress(Exception, SystemExit):
                late(ended.result())
        gone.set()

    atexit.register(gone.wait, LATE_S)
    done.add_done_callback(discard)
