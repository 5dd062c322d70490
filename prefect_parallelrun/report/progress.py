"""Where a run stands: a record, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

NOTHING_YET = "No task has been processed yet."
"""In the words of Azure's overview, for which people and scripts search."""

RUNNING = "running"
"""The stage of a sitting in which mini-batches run; the others are in the words of `Overview.stage`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a run stands, for whoever watches it."""

    planned: int | None
    """Mini-batches in all, where that is known."""
    created: int
    """Mini-batches that have been cut from the input so far, those of earlier sittings included."""
    succeeded: int
    failed: int
    retried: int
    """Attempts after a first one."""
    running: int
    """Mini-batches that worker processes are at; what waits on nodes is none of them."""
    items_succeeded: int
    items_failed: int
    rows: int
    """Rows of mini-batches that succeeded, those of earlier sittings included."""
    rate: float
    """Mini-batches settled per second, over the last minute or so."""
    left_s: float | None
    """Seconds until all are settled, at that rate; None where nobody can tell."""
    elapsed_s: float
    """Since the sitting began to schedule."""
    doing: tuple[str, ...] = ()
    """What each node is at, in words: `node000: 2 processes in import or init() for 31 s, 1 ready`."""

    @property
    def settled(self) -> int:
        """Mini-batches that need no more work, those of earlier sittings included."""
        return self.succeeded + self.failed

    def __str__(self) -> str:
        """Return one line; as long as nothing is settled it says what the nodes are doing."""
        counts = [f"{self.created:,} created", f"{self.running:,} running"]
        if not self.settled:
            told = f"{NOTHING_YET} Of {self.of_all} {', '.join(counts)}, {self.retried:,} retried"
            return ". ".join([told, "; ".join(self.doing)]) if self.doing else told
        counts += [
            f"{self.succeeded:,} done",
            f"{self.failed:,} failed",
            f"{self.retried:,} retried",
            f"{self.rows:,} rows written",
            pace(self.rate, " mini-batches"),
        ]
        done = f"Processed {self.settled:,} of {self.of_all} in {clock(self.elapsed_s)}."
        left = "unknown" if self.left_s is None else clock(self.left_s)
        return f"{done} {', '.join(counts)}. Estimated remaining time {left}."

    @property
    def of_all(self) -> str:
        """How many mini-batches there are in all, in words."""
        if self.planned is None:
            return "an unknown number of mini-batches"
        return f"{self.planned:,} mini-batch" + ("" if self.planned == 1 else "es")


def clock(seconds: float) -> str:
    """Return a duration as people read it: `0:00:07`, `5:02:14`, `2 days, 3:00:00`."""
    return str(timedelta(seconds=max(0, round(seconds))))


def pace(per_second: float, what: str = "") -> str:
    """Return a rate in the unit in which it is a number that people can imagine: `0.5/s`, `3.2/h`."""
    number, unit = per_second, "s"
    for longer in ("min", "h"):
        if not number or number >= 0.1:
            break
        number, unit = number * 60, longer
    return f"{number:,.{0 if number >= 100 else 1}f}{what}/{unit}"
