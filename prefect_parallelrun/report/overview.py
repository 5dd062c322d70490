"""How a sitting gets on, told while it does: in files, in the log, and to whoever watches."""

from __future__ import annotations

import contextvars
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType

from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.observer import Observer
from prefect_parallelrun.report.progress import Standing, clock
from prefect_parallelrun.report.wording import visible

PROGRESS_S = 10.0
"""The overview is never silent for longer."""
OFTEN_S = 120.0
"""For so long from its start the log says as often where the run stands; then every `SELDOM_S`."""
SELDOM_S = 60.0
"""A night has thousands of times ten seconds: that many lines would hide all others."""
FILE_S = 2.0
"""How often `progress.json` is written."""
BEAT_S = 0.5
"""How often it is looked whether anything is due."""
END_S = 5.0
"""How long the end of a sitting waits for a disk that does not take the last lines."""

_NOBODY = Observer()


class Overview:
    """Writes the overview (R54), the driver's role (R55) and `progress.json`, in a thread of its own.

    So the driver's thread never waits for these, and they go on while it waits for something else. What
    cannot be written is logged once, and costs the run nothing.

    Args:
        paths: of the run.
        step: name of the step.
        run_id: of the run.
        log: of the run; gets a few of the lines.
        observer: is told the stage of the sitting, and where the run stands if it runs.
        guard: raises when the run folder is not this driver's any more; then nothing more is written.
        monotonic: the clock for durations, in seconds.
        utc: the clock that people read.
    """

    def __init__(
        self,
        paths: RunPaths,
        *,
        step: str,
        run_id: str,
        log: logging.Logger,
        observer: Observer = _NOBODY,
        guard: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
        utc: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._paths = paths
        self._log = log
        self._observer = observer
        self._guard = guard
        self._monotonic = monotonic
        self._utc = utc
        self._stage = "starting"
        self._began = self._since = monotonic()
        self._standing: Standing | None = None
        self._shown_at = 0.0
        self._overview = _Lines()
        self._role = _Lines()
        self._told = _Told(self._began)
        self._day: date | None = None
        self._ours = True
        self._failed = False
        self._over = False
        self._ended = threading.Event()
        # The log may be Prefect's, which looks in the context for the run that a line belongs to.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="parallelrun-overview", daemon=True
        )
        self._say(
            f"Started: step {step}, run {run_id}, driver process {os.getpid()} on "
            f"{socket.gethostname()}"
        )

    def __enter__(self) -> Overview:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the last lines, and no more."""
        if error is not None and not self._over:
            self.end("Left as it was", str(error))
        self._ended.set()
        self._thread.join(END_S)

    # -- of the driver's thread --------------------------------------------------------------

    def stage(self, stage: str) -> None:
        """Say what the sitting does from now on, such as `planning`; `progress.RUNNING` while mini-batches run."""
        self._stage, self._since = stage, self._monotonic()
        self._say(f"{_sentence(stage)}.")
        self._show()

    def show(self, standing: Standing) -> None:
        """Take in where the run stands; a few times a second."""
        self._standing, self._shown_at = standing, self._monotonic()
        self._show()

    def note(self, text: str) -> None:
        """Put something of the driver's doings in its file: a node that joined, or left."""
        self._role.add(self._utc(), text)

    def end(self, state: str, text: str) -> None:
        """Say how the sitting ended, and on failure the error and where to start looking (R79)."""
        self._over = True
        if self._standing is not None:
            self._say(str(self._standing))  # a short sitting has had no other line of it (R54)
            self._standing = replace(self._standing, running=0, left_s=None, doing=())
        self._stage, self._since = state, self._monotonic()
        self._say(f"{state}: {text}")
        self._show()

    def _show(self) -> None:
        self._observer.progress(self._stage, self._standing)

    def _say(self, text: str) -> None:
        now = self._utc()
        self._overview.add(now, text)
        self._role.add(now, text)

    # -- of its own thread -------------------------------------------------------------------

    def _run(self) -> None:
        ended = False
        while self._ours:
            try:
                self.beat(last=ended)
            except Exception as error:
                self._fail(error)
            if ended:
                return
            ended = self._ended.wait(_beat_s())

    def beat(self, *, last: bool = False) -> None:
        """Write what is due now; `last`: all that is left."""
        try:
            self._guard()
        except Exception:
            self._ours = False
            return
        now, told = self._monotonic(), self._told
        if not last:
            self._say_what_is_due(now)
        try:
            self._write()
            if last or now - told.file_at >= FILE_S:
                told.file_at = now
                self._write_progress()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._log.warning(
                "The progress of the run cannot be written down: %s", error, exc_info=True
            )

    def _say_what_is_due(self, now: float) -> None:
        told, standing, moment = self._told, self._standing, self._utc()
        if standing is not None:
            self._tell_of_creation(standing, moment)
        if self._overview.waiting:
            told.overview_at = now
        # Of a stage that has only just begun there is nothing to say yet.
        silent_s = now - max(told.log_at, self._since)
        of_log = silent_s >= log_pause_s(now - self._began) - _beat_s()
        if not of_log and now - told.overview_at < PROGRESS_S - _beat_s():
            return
        line = self._line(now)
        told.overview_at = now
        told.settled = standing.settled if standing is not None else 0
        self._overview.add(moment, line)
        if of_log:
            told.log_at = now
            self._role.add(moment, line)
            self._log.info("%s", line)

    def _tell_of_creation(self, standing: Standing, moment: datetime) -> None:
        told, created = self._told, standing.created
        if told.all_created:
            return
        if created == standing.planned:
            told.all_created = True
            text = f"Scheduling finished. Created {standing.of_all} in {clock(standing.elapsed_s)}."
            self._overview.add(moment, text)
            self._role.add(moment, text)
        elif created >= 2 * told.created:
            told.created = max(1, created)
            of_all = "" if standing.planned is None else f" of {standing.planned:,}"
            self._role.add(moment, f"Created {created:,}{of_all} mini-batches.")

    def _line(self, now: float) -> str:
        """Return what to say now: where the run stands, or for how long it has been at a stage."""
        standing, silent_s = self._standing, now - self._shown_at
        if standing is None or self._shown_at < self._since:
            return f"{_sentence(self._stage)} for {clock(now - self._since)}."
        line = str(standing)
        if standing.doing and 0 < standing.settled == self._told.settled:
            line += f" None more since the last line: {'; '.join(standing.doing)}."
        if silent_s > PROGRESS_S:
            line += f" The driver was busy with something else for {clock(silent_s)}."
        return line

    def _write(self) -> None:
        while (first := self._overview.first) is not None:
            self._overview.write(self._file(first), until=first.date())
        self._role.write(self._paths.master_log)

    def _file(self, moment: datetime) -> Path:
        """Return the overview of that day, which may be one that an earlier sitting began."""
        if self._day != moment.date():
            midnight = self._paths.progress_overview(moment.replace(hour=0))
            there = [p for p in self._paths.progress_overviews() if p >= midnight]
            self._day = moment.date()
            self._path = max(there, default=self._paths.progress_overview(moment))
        return self._path

    def _write_progress(self) -> None:
        standing = self._standing
        told = {
            "at": self._utc().timestamp(),
            "stage": self._stage,
            "standing": None if standing is None else asdict(standing),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        draft = self._paths.progress.with_suffix(".tmp")
        draft.write_text(json.dumps(told), encoding="utf-8")
        draft.replace(self._paths.progress)


class _Told:
    """When what was told last; seconds of the monotonic clock."""

    def __init__(self, now: float) -> None:
        self.overview_at = self.log_at = now
        self.file_at = now - FILE_S
        self.settled = 0
        """Mini-batches settled, as the last line had it."""
        self.created = 0
        self.all_created = False


class _Lines:
    """Lines on their way into a file, each with its moment; one thread may add while another writes."""

    def __init__(self) -> None:
        self._lines: deque[tuple[datetime, str]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._lines)

    @property
    def first(self) -> datetime | None:
        """Return the moment of the first line, if there is one."""
        return self._lines[0][0] if self._lines else None

    def add(self, moment: datetime, text: str) -> None:
        """Add a text; it may have several lines."""
        self._lines.append((moment, text))

    def write(self, path: Path, *, until: date | None = None) -> None:
        """Append them to a file, at most those of one day; what cannot be written is lost."""
        written = []
        while self._lines and (until is None or self._lines[0][0].date() == until):
            moment, text = self._lines.popleft()
            written.append(f"{moment:%Y-%m-%dT%H:%M:%S}Z {visible(text)}\n")
        if not written:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(written)


def log_pause_s(elapsed_s: float) -> float:
    """Return how long the log is silent between two lines, so long after the start."""
    return PROGRESS_S if elapsed_s <= OFTEN_S else SELDOM_S


def _beat_s() -> float:
    return min(BEAT_S, PROGRESS_S / 4)


def _sentence(stage: str) -> str:
    return stage[:1].upper() + stage[1:]
