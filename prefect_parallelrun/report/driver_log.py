"""The controller's log file (R53), and that of the exceptions of its own code (R80)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.wording import visible

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextmanager
def driver_log(
    paths: RunPaths, run_id: str, *, level: str = "INFO", forward_to: Log | None = None
) -> Iterator[logging.Logger]:
    """Yield the run's own logger, which writes to `logs/70_driver_log.txt` as long as this lasts.

    Each run has a logger of its own, so that two runs in one process do not write into each
    other's file. What it takes goes to `forward_to` too (the flow's log), else up to the loggers
    `prefect_parallelrun` and root. What is logged with an exception (`exc_info`) is in
    `logs/sys/error/driver.txt` too.
    """
    paths.driver_log.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(f"prefect_parallelrun.run.{run_id}")
    handlers: list[logging.Handler] = [_File(paths.driver_log), _Exceptions(paths.driver_error)]
    for handler in handlers:
        handler.setFormatter(_Utc("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s"))
    if forward_to is not None:
        handlers.append(_Forward(forward_to, paths.driver_error))
    before = logger.level, logger.propagate
    logger.setLevel(level)
    logger.propagate = forward_to is None
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield logger
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            # What a full disk does not take is no reason to fail, and must not hide why the run did.
            with suppress(OSError):
                handler.close()
        logger.level, logger.propagate = before


class _Utc(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = None

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; its messages may hold anything."""
        return visible(super().format(record))


class _File(logging.FileHandler):
    """A file that costs nobody anything where the disk does not take it."""

    def __init__(self, path: Path, *, delay: bool = False) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=delay)
        self._given_up = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; what opens the file late may fail as well."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once, to whoever else listens, that lines are lost; not with a stack trace for each."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._given_up:
            self._given_up = True
            log = logging.getLogger(record.name)
            log.warning("%s cannot be written, lines are lost: %s", self.baseFilename, error)


class _Exceptions(_File):
    """Keeps what is logged with an exception; without any there is no file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)
        self.addFilter(lambda record: bool(record.exc_info))

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


class _Forward(logging.Handler):
    """Passes records on to another logger, under its name and in its way."""

    def __init__(self, target: Log, exceptions: Path) -> None:
        super().__init__()
        self._target = target
        self._exceptions = exceptions

    def emit(self, record: logging.LogRecord) -> None:
        """Log the finished text: it may hold anything, so it is no format string any more."""
        text = visible(record.getMessage())
        if record.exc_info:
            text += f"\nstack trace: {self._exceptions}"
        self._target.log(record.levelno, "%s", text)
