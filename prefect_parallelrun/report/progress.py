"""Where a run stands: a record, a line for the log, a bar for a terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


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
    """Mini-batches in flight."""
    items_succeeded: int
    items_failed: int
    rows: int
    """Rows returned in this sitting by mini-batches that succeeded."""
    rate: float
    """Mini-batches settled per second, over the last minute or so."""
    left_s: float | None
    """Seconds until all are settled, at that rate; None where nobody can tell."""
    elapsed_s: float
    """Since the sitting began to schedule."""
    doing: tuple[str, ...] = ()
    """What each node is at, in words: `node000: 2 processes in init() for 31 s, 1 ready, 1 running`."""

    def __str__(self) -> str:
        done = self.succeeded + self.failed
        of_all = "" if self.planned is None else f" of {self.planned:,}"
        if not done:
            return f"No mini-batch has been processed yet; {self.running:,}{of_all} in flight"
        left = ""
        if self.planned is not None:
            left = f", about {(self.planned - done) * self.elapsed_s / done:.0f} s left"
        return (
            f"Processed {done:,}{of_all} mini-batches in {self.elapsed_s:.0f} s: "
            f"{self.failed:,} failed, {self.retried:,} retries, {self.items_succeeded:,} items done"
            f"{left}"
        )


class TerminalBar:
    """A progress bar on standard error where that is a terminal; nothing elsewhere."""

    def __init__(self, step: str) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[trouble]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(step, total=None, trouble="")

    def __enter__(self) -> TerminalBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, standing: Standing) -> None:
        """Draw where the run stands."""
        self._bar.update(
            self._task,
            total=standing.planned,
            completed=standing.succeeded + standing.failed,
            trouble=f"{standing.failed:,} failed, {standing.retried:,} retries",
        )
