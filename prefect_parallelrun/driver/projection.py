"""How long a run would take, from some of its mini-batches run in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, stdev

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import inline
from prefect_parallelrun.driver.bundle import Pending
from prefect_parallelrun.node import threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What some mini-batches took here, and what all of them would take."""

    timed: int
    """So many mini-batches were run, evenly spread over the plan."""
    start_s: float
    """Seconds for importing the script, `init()` and `shutdown()`."""
    mean_s: float
    """Seconds per mini-batch, its loading included."""
    least_s: float
    most_s: float
    spread_s: float
    """Standard deviation; 0 of a single one."""
    processes: int
    """Worker processes of the run."""
    mini_batches: int
    """So many would have to run."""
    total_s: float
    """Seconds for all of them on so many processes, if each is as fast as this one."""
    doubt_s: float
    """By so much more or less the mean alone may be wrong, in two of three cases."""


def project(
    definition: StepDefinition,
    listings: Sequence[Sequence[FileItem]],
    *,
    timed: int,
    done: int = 0,
    on_error: inline.OnError | None = None,
) -> Projection:
    """Run some mini-batches in this process, `init()` once, and return how long all would take.

    Args:
        definition: of the step.
        listings: the files of each input.
        timed: so many are run; their output is thrown away.
        done: mini-batches that would not have to run.
        on_error: see `inline.OnError`.

    Raises:
        Exception: whatever the script raised, as it was.
    """
    with inline.prepared(definition, listings) as here:
        count = len(here.plan)
        every = max(1, count // timed)
        chosen = [Pending(one) for one in islice(here.plan, 0, every * timed, every)]
        began = time.perf_counter()
        here.run(chosen, on_error)
        elapsed_s, seconds = time.perf_counter() - began, here.seconds
    processes = process_count(definition.config)
    start_s = elapsed_s - sum(seconds)
    mean_s = fmean(seconds or [0.0])
    spread_s = stdev(seconds) if len(seconds) > 1 else 0.0
    left = max(0, count - done)
    share = left / processes
    return Projection(
        timed=len(seconds),
        start_s=start_s,
        mean_s=mean_s,
        least_s=min(seconds, default=0.0),
        most_s=max(seconds, default=0.0),
        spread_s=spread_s,
        processes=processes,
        mini_batches=left,
        total_s=start_s + mean_s * share if left else 0.0,
        doubt_s=spread_s / max(1, len(seconds)) ** 0.5 * share,
    )


def process_count(config: ParallelRunConfig) -> int:
    """Return how many worker processes a run has, if its nodes have as many cores as this machine."""
    return config.node_count * (config.process_count_per_node or threads.cores_here())
