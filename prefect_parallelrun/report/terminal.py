"""The progress bar: one row per step that runs, and everything else above the rows."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from prefect_parallelrun.report.observer import Observer
from prefect_parallelrun.report.progress import RUNNING, Standing, clock, pace

REDRAW_S = 0.1
"""How often the rows are drawn anew."""


class TerminalBar(Observer):
    """A row of progress on standard error where that is a terminal; nothing elsewhere.

    Several may be there at once, also in several threads.

    Args:
        step: name of the step.
        level: from which on the log shows anything (see `logging`); a bar is information.
        kept: whether its row stays on the terminal when it is over.
    """

    def __init__(self, step: str, *, level: int, kept: bool = True) -> None:
        self._step = step
        self._quiet = level > logging.INFO
        self._kept = kept
        self._row: TaskID | None = None

    def __enter__(self) -> TerminalBar:
        if not self._quiet:
            with suppress(OSError):  # the terminal is gone, and the run goes on
                self._row = _screen.add(self._step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the row as it was last, among the lines above, if it is kept."""
        if self._row is not None:
            with suppress(OSError):
                _screen.remove(self._row, kept=self._kept)

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal that it is drawn on."""
        return self._row is not None

    def progress(self, stage: str, standing: Standing | None) -> None:
        """Draw where the run stands; see `overview.Overview` for the stages."""
        if self._row is not None:
            _screen.update(self._row, stage, standing)


class _Screen:
    """The rows of all steps of this process: a terminal has one last line.

    One thread at a time writes to it: where the rows are is known only as long as nobody else writes.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rows: _Rows | None = None
        self._above = ExitStack()

    def add(self, step: str) -> TaskID | None:
        """Begin a row; None where standard error is no terminal that can redraw one."""
        with self._lock:
            if self._rows is None:
                file = _real(sys.stderr)
                if not _is_terminal(file):
                    return None
                console = Console(file=file)
                if not console.is_interactive:
                    return None
                rows = _Rows(console=console)
                with ExitStack() as above:
                    _write_above(above, rows.above, self._lock)
                    rows.start()
                    self._above = above.pop_all()
                self._rows = rows
                threading.Thread(
                    target=self._redraw, args=(rows,), name="parallelrun-bar", daemon=True
                ).start()
            return self._rows.add_task(
                step, total=None, stage="starting", standing=None, ended=False
            )

    def _redraw(self, rows: _Rows) -> None:
        while not rows.ended.wait(REDRAW_S):
            with self._lock, suppress(OSError):
                if self._rows is rows:
                    rows.write_above()
                    rows.refresh()

    def update(self, row: TaskID, stage: str, standing: Standing | None) -> None:
        """Change what a row shows."""
        rows = self._rows
        assert rows is not None
        rows.update(
            row,
            total=standing.planned if standing is not None else None,
            completed=standing.settled if standing is not None else 0,
            stage=stage,
            standing=standing,
        )

    def remove(self, row: TaskID, *, kept: bool) -> None:
        """End a row: if kept, it stays above those of the steps that go on."""
        with self._lock:
            rows = self._rows
            assert rows is not None
            rows.update(row, ended=True)
            last = rows.make_tasks_table([task for task in rows.tasks if task.id == row])
            rows.remove_task(row)
            try:
                rows.write_above()
                if kept:
                    rows.console.print(last)
            finally:
                if not rows.tasks:
                    self._rows = None
                    rows.ended.set()
                    with self._above:  # to its end: as long as there are rows, nobody else writes
                        rows.stop()


class _Rows(Progress):
    """One row per step, with as many columns as the terminal has room for."""

    def __init__(self, *, console: Console) -> None:
        self._drawn_on = console  # it draws before it has one
        self.ended = threading.Event()
        self.above: list[str] = []
        """Lines that are to come to stand above the rows."""
        super().__init__(
            console=console,
            auto_refresh=False,
            transient=True,  # what is left at the end has been written above
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Draw the rows for the width that the terminal has now."""
        width = self._drawn_on.width
        self.columns = tuple(column for least, column in _COLUMNS if width >= least)
        return super().get_renderables()

    def write_above(self) -> None:
        """Write the lines that have come since the last time: all at once, as the rows are drawn after it."""
        if self.above:
            text = "\n".join(self.above)
            self.above.clear()
            self.console.out(text, highlight=False)


class _Words(ProgressColumn):
    """What a function makes of where a step stands; nothing where nobody knows yet."""

    def __init__(self, say: Callable[[Standing], str], style: str = "") -> None:
        super().__init__(Column(no_wrap=True))
        self._say = say
        self._style = style

    def render(self, task: Task) -> Text:
        standing = task.fields["standing"]
        return Text("" if standing is None else self._say(standing), style=self._style)


class _Name(ProgressColumn):
    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text(task.description, style="bold")


class _Work(ProgressColumn):
    """A bar while mini-batches run; else a sign of life, and what the step is at."""

    def __init__(self) -> None:
        super().__init__(Column(max_width=40, no_wrap=False))
        self._bar = BarColumn(bar_width=None)
        self._spinner = SpinnerColumn()

    def render(self, task: Task) -> RenderableType:
        if task.fields["stage"] == RUNNING and task.total is not None:
            return self._bar.render(task)
        if task.fields["ended"]:
            return Text(task.fields["stage"])
        return Text.assemble(cast("Text", self._spinner.render(task)), " ", task.fields["stage"])


def _done(standing: Standing) -> str:
    of_all = "" if standing.planned is None else f"/{standing.planned:,}"
    return f"{standing.settled:,}{of_all}"


def _left(standing: Standing) -> str:
    return f"{clock(standing.left_s)} left" if standing.left_s else ""


def _trouble(standing: Standing) -> str:
    return f"{standing.failed:,} failed, {standing.retried:,} retried"


_COLUMNS: tuple[tuple[int, ProgressColumn], ...] = (
    (0, _Name()),
    (0, _Work()),
    (0, _Words(_done, "green")),
    (115, _Words(lambda standing: f"{standing.items_succeeded:,} items")),
    (85, _Words(lambda standing: pace(standing.rate))),
    (70, _Words(_trouble)),
    (100, TimeElapsedColumn()),
    (50, _Words(_left, "cyan")),
)
"""The columns, each with the least width of a terminal that has room for it."""


class _Above:
    """Stands for a stream to the terminal: whole lines come to stand above the rows, with the next redraw.

    An unfinished line waits for its end, as what comes after it could not be put beside it. Where there
    are no rows, what comes goes straight to the terminal: a handler of logging, or a `print()` that
    waits for the lock, may hold this for longer than the rows are there.
    """

    def __init__(self, file: TextIO, lock: threading.RLock) -> None:
        self.file = file
        self._lock = lock
        self._lines: list[str] | None = None
        self._begun: list[str] = []
        self._ended_line = False
        self._process = os.getpid()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def begin(self, lines: list[str]) -> None:
        """From now on put lines here."""
        self._lines, self._ended_line, self._process = lines, False, os.getpid()

    def end(self) -> None:
        """The rows are gone: let go of the unfinished line, and write straight to the terminal."""
        self._lines = None
        if self._begun:
            self._ended_line = True
            self.file.write("".join([*self._begun, "\n"]))
            self._begun.clear()

    def write(self, text: str) -> int:
        if self._is_elsewhere:
            return self.file.write(text)
        with self._lock:
            if self._lines is None:
                self._write_through(text)
                return len(text)
            whole, newline, begun = text.rpartition("\n")
            if newline:
                self._lines.append("".join([*self._begun, whole]))
                self._begun.clear()
            if begun:
                self._begin(begun)
        return len(text)

    def _write_through(self, text: str) -> None:
        if self._ended_line:  # maybe by a `print()` whose own end of the line comes now
            self._ended_line = False
            text = text.removeprefix("\n")
        self.file.write(text)

    def _begin(self, text: str) -> None:
        """Go on with the unfinished line; what a carriage return lets it write over is gone."""
        back = text.rfind("\r", 0, -1)
        if back >= 0 or (self._begun and self._begun[-1].endswith("\r")):
            self._begun.clear()
        self._begun.append(text[back + 1 :])

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Do nothing where there are rows: the next redraw is soon."""
        if self._is_elsewhere or self._lines is None:
            self.file.flush()

    @property
    def _is_elsewhere(self) -> bool:
        """Whether this is a forked process, in which nobody draws anything."""
        return os.getpid() != self._process


_stand_ins: list[_Above] = []
"""One for each stream that was ever stood for, and never given up: `print()`, at least that of Python
3.11, has no reference of its own to the `sys.stdout` that it writes to, and crashes the process if that
goes away meanwhile (it did)."""


def _write_above(held: ExitStack, lines: list[str], lock: threading.RLock) -> None:
    """Send above the rows what this process writes to the terminal, until `held` is closed.

    A handler of logging keeps the stream that it found when it was made, so each is given the new one.
    """
    for name in ("stdout", "stderr"):
        file: TextIO = _real(getattr(sys, name))
        if not _is_terminal(file):
            continue
        stand_in = _stand_in(file, lock)
        above = cast("TextIO", stand_in)
        stand_in.begin(lines)
        setattr(sys, name, above)
        held.callback(_put_back, sys, name, above, file)
        for handler in _handlers():
            of_handler = getattr(handler, "console", None)
            if isinstance(of_handler, Console) and of_handler.file is file:
                of_handler.file = above
                held.callback(_put_back, of_handler, "file", above, file)
            if handler.stream is file:
                handler.stream = above
                held.callback(_put_back, handler, "stream", above, file)
        held.callback(stand_in.end)


def _stand_in(file: TextIO, lock: threading.RLock) -> _Above:
    """Return what stands for a stream, the same as before where it was stood for."""
    for known in _stand_ins:
        if known.file is file:
            return known
    _stand_ins.append(_Above(file, lock))
    return _stand_ins[-1]


def _real(stream: Any) -> Any:
    """Return a stream itself where it is one that stands for it, which somebody has kept and put back."""
    return stream.file if isinstance(stream, _Above) else stream


def _is_terminal(file: TextIO | None) -> bool:
    """Whether people look at it; a process that has let go of its terminal may have none, or a closed one."""
    return file is not None and not file.closed and file.isatty()


def _handlers() -> set[logging.StreamHandler[TextIO]]:
    loggers = [logging.root, *logging.Logger.manager.loggerDict.values()]
    found = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    return {handler for handler in found if isinstance(handler, logging.StreamHandler)}


def _put_back(owner: object, name: str, above: TextIO, file: TextIO) -> None:
    """Undo a replacement, unless somebody has replaced it since."""
    if getattr(owner, name) is above:
        setattr(owner, name, file)


_screen = _Screen()
