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
    succeeded: int
    failed: int
    retried: int
    """Attempts after a first one."""
    running: int
    """Mini-batches in flight."""
    items_succeeded: int
    items_failed: int
    elapsed_s: float

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
