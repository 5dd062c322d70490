"""Pure decisions: what is tried again, what is too much, how much one bundle carries.

Nothing here keeps state, reads a clock or does anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from prefect_parallelrun.models import AttemptError, RunSummary
from prefect_parallelrun.report.wording import counted

MAX_LOST = 3
"""A mini-batch that was running on so many nodes when they were lost has failed: it takes nodes down."""
MAX_NEAR_LOST = 10
"""A mini-batch that was in flight on so many lost nodes has failed as well: the news that it was running
may be lost with the node, and a run must end."""

INIT_TIMEOUTS = 3
INIT_GRACE_S = 30.0
"""A process may be in import and `init()` for 3 times the run time-out and 30 seconds (R90)."""
STARTUP_S = 120.0
"""A run may be so old before failed starts of processes alone end it (R89)."""
STARTUP_FAILURES = 2
"""Failed starts that are tolerated until then, per process that is wanted (R89)."""

NEAR_PERCENT = 80
"""A threshold is near when so much of what is tolerated has failed."""

ALIKE_LEAST = 10
ALIKE_PER_PROCESS = 3
"""So many failures for good in the same way end a run in which nothing has succeeded (R209)."""

BUNDLE_S = 0.5
"""What one Dask task should last: long enough that its 1.4 ms (measured, 2 cores) do not show."""
BUNDLE_LIMIT_S = 0.7
"""A bundle that has lasted longer ends early: its results reach the driver only with its end, and what
is left of it may suit others. With the wait for the journal's commit (`writer.COMMIT_EVERY_S`) a kill
costs each process less than a second of finished work (R201), and the mini-batch that ended last."""
BUNDLE_MOST = 2048
"""Mini-batches in one bundle, at most."""
AHEAD_MOST = 16_384
"""Mini-batches taken from the plan that no bundle holds yet, about: they are held in memory."""
BUNDLE_ITEMS = 5_000
"""Files named in one bundle, about: their paths travel through the scheduler."""
BUNDLE_BYTES = 16 * 1024**2
"""Rows that one bundle brings back, about: they are held in memory on the way."""
WINDOW_S = 2.0
"""Work in flight per process: a busy thread in the flow's process slows Dask thirtyfold (measured)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is tolerated, from the step's config; None is not given."""

    max_attempts: int
    error_threshold: int | None
    """Failed items (R26)."""
    allowed_failed_count: int | None
    """Failed mini-batches (R100)."""
    allowed_failed_percent: float | None
    """Failed mini-batches in percent of all (R100)."""
    rows_wanted: bool
    """With `append_row` a run in which nothing succeeded has failed (R104)."""
    isolate: bool = False
    """Whether a mini-batch that used up its attempts is split until the failing items stand alone (R203)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Where a run stands, in final mini-batches and items."""

    mini_batches_succeeded: int
    mini_batches_failed: int
    items_succeeded: int
    items_failed: int

    @classmethod
    def of(cls, summary: RunSummary) -> Tally:
        """Return where a run stands by what it came to, of all its sittings together."""
        return cls(
            mini_batches_succeeded=summary.mini_batches.succeeded,
            mini_batches_failed=summary.mini_batches.failed,
            items_succeeded=summary.items.succeeded,
            items_failed=summary.items.failed,
        )


def exceeded(limits: Limits, tally: Tally, planned: int | None) -> str | None:
    """Return which threshold is exceeded, in words, or None.

    `planned` is the number of all mini-batches once each has been scheduled: the percentage is
    checked only then (R100). Strictly more than the threshold exceeds it.
    """
    if _over(tally.items_failed, limits.error_threshold):
        return f"{counted(tally.items_failed, 'item')} failed; error_threshold={limits.error_threshold}"
    if _over(tally.mini_batches_failed, limits.allowed_failed_count):
        return (
            f"{counted(tally.mini_batches_failed, 'mini-batch')} failed; "
            f"allowed_failed_count={limits.allowed_failed_count}"
        )
    if planned and limits.allowed_failed_percent is not None:
        percent = 100 * tally.mini_batches_failed / planned
        if percent > limits.allowed_failed_percent:
            return (
                f"{tally.mini_batches_failed:,} of {planned:,} mini-batches ({percent:.4g} %) failed; "
                f"allowed_failed_percent={limits.allowed_failed_percent:g}"
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """A threshold that a run may soon exceed."""

    threshold: str
    """The setting, such as `error_threshold`."""
    failed: int
    tolerated: int
    noun: str
    """What has failed: `item` or `mini-batch`."""

    def __str__(self) -> str:
        return (
            f"{counted(self.failed, self.noun)} failed, and {self.threshold} tolerates "
            f"{self.tolerated:,}"
        )


def near(limits: Limits, tally: Tally, planned: int | None) -> list[Near]:
    """Return the thresholds that are near, exceeded or not; one that tolerates nothing never is.

    `planned` is the number of all mini-batches, where that is known.
    """
    if not tally.items_failed and not tally.mini_batches_failed:
        return []
    percent, of_all = limits.allowed_failed_percent, None
    if percent is not None and planned is not None:
        of_all = math.floor(planned * percent / 100)
    settings = (
        ("error_threshold", limits.error_threshold, tally.items_failed, "item"),
        (
            "allowed_failed_count",
            limits.allowed_failed_count,
            tally.mini_batches_failed,
            "mini-batch",
        ),
        ("allowed_failed_percent", of_all, tally.mini_batches_failed, "mini-batch"),
    )
    return [
        Near(threshold=name, failed=failed, tolerated=tolerated, noun=noun)
        for name, tolerated, failed, noun in settings
        if tolerated is not None and tolerated > 0 and 100 * failed >= NEAR_PERCENT * tolerated
    ]


def _over(failed: int, threshold: int | None) -> bool:
    return threshold is not None and threshold != -1 and failed > threshold


def verdict(limits: Limits, tally: Tally) -> str | None:
    """Return why a run that tried everything has failed all the same, or None.

    Without any threshold a single failed item fails the run, at its end (R26); with `append_row`
    a run without one succeeded item fails whatever the thresholds (R104).
    """
    if limits.rows_wanted and tally.items_failed and not tally.items_succeeded:
        return f"no item succeeded: all {tally.items_failed:,} failed"
    given = (limits.error_threshold, limits.allowed_failed_count, limits.allowed_failed_percent)
    if tally.items_failed and all(threshold is None for threshold in given):
        return (
            f"{counted(tally.items_failed, 'item')} failed, and no threshold is set: give error_threshold "
            "(items), allowed_failed_count or allowed_failed_percent (mini-batches) to tolerate some, "
            "or -1 to tolerate all"
        )
    return None


def takes_nodes_down(lost: int, near_lost: int) -> bool:
    """Return whether a mini-batch is to blame for the loss of nodes on which it was running, or in flight."""
    return lost >= MAX_LOST or near_lost >= MAX_NEAR_LOST


def hopeless(limits: Limits, *, alike: int, processes: int, error: AttemptError) -> str | None:
    """Return why a run in which nothing has succeeded is not worth going on with, or None (R209).

    Args:
        limits: a step that tolerates every failure is never stopped.
        alike: what has failed for good in the way that most have: mini-batches, or where these are
            split until the failing items stand alone, such items.
        processes: of all nodes.
        error: of the first of them.
    """
    if limits.error_threshold == -1 or alike < max(ALIKE_LEAST, ALIKE_PER_PROCESS * processes):
        return None
    what = "items tried alone, or mini-batches," if limits.isolate else "mini-batches"
    message = error.message.partition("\n")[0]
    place = f" ({error.where})" if error.where else ""
    return (
        f"nothing has succeeded, and {alike:,} {what} have failed for good in the same way: "
        f"{error.type}: {message}{place}. The others would most likely fail like them, so they are not "
        "tried: mend the script or its input and run the step again, or give error_threshold=-1 to "
        "have all of them tried"
    )


def init_limit_s(run_timeout_s: float) -> float:
    """Return how many seconds a process may be in import and `init()` (R90)."""
    return INIT_TIMEOUTS * run_timeout_s + INIT_GRACE_S


def init_failed(
    *, age_s: float, ever_ready: bool, failures: int, node_count: int, processes_per_node: int
) -> str | None:
    """Return why a run has failed in which no process gets ready for its first mini-batch, or None (R89).

    Args:
        age_s: of the run.
        ever_ready: whether any process of it has come through `init()`.
        failures: starts that failed, of all nodes, in all.
        node_count: that are wanted.
        processes_per_node: that are wanted.
    """
    tolerated = STARTUP_FAILURES * node_count * processes_per_node
    if ever_ready or age_s <= STARTUP_S or failures < tolerated:
        return None
    return (
        f"no init() has succeeded in {age_s:.0f} seconds, and {counted(failures, 'start')} of worker "
        f"processes failed (with {counted(node_count, 'node')} of "
        f"{counted(processes_per_node, 'process')}, {tolerated:,} are enough)"
    )


def init_stuck(*, stuck: int, processes: int, limit_s: float) -> str | None:
    """Return why a run makes no progress of which all processes are stuck in `init()`, or None (R90).

    Args:
        stuck: processes that have been in import or `init()` for longer than `limit_s`, since the last
            one that came through it.
        processes: that run, or would, on all nodes.
        limit_s: see `init_limit_s`.
    """
    if not stuck or stuck < processes:
        return None
    return (
        f"import and init() did not end in {limit_s:g} seconds in any of {counted(processes, 'process')}; "
        f"allowed are {INIT_TIMEOUTS} times run_invocation_timeout and {INIT_GRACE_S:g} seconds"
    )


def bundle_size(
    mean_s: float | None, mean_bytes: float, grown: int, left: int | None, processes: int
) -> int:
    """Return how many mini-batches the next bundle holds, at least 1.

    Args:
        mean_s: what a mini-batch takes, in seconds; None before the first has ended.
        mean_bytes: rows of a mini-batch, in bytes.
        grown: the largest bundle that has ended; the next is at most four times that, since a few
            quick mini-batches at the start prove little.
        left: how many are not scheduled yet, where that is known (towards the end): they are
            spread over all processes.
        processes: of all nodes.
    """
    if mean_s is None:
        return 1
    size = min(BUNDLE_MOST, 4 * grown, int(BUNDLE_S / max(mean_s, 1e-6)))
    if mean_bytes > 0:
        size = min(size, int(BUNDLE_BYTES / mean_bytes))
    if left is not None:
        size = min(size, left // (2 * max(processes, 1)))
    return max(size, 1)


def window(mean_s: float | None) -> int:
    """Return how many bundles may be in flight per process: two seconds of work, two bundles at least.

    Bundles, not mini-batches: each waits in a thread of the Dask worker, and thousands of small ones
    would smother it before the first durations are known (measured: 1,000/s instead of 20,000/s).
    """
    if mean_s is None:
        return 2
    return max(2, math.ceil(WINDOW_S / max(mean_s, BUNDLE_S)))
