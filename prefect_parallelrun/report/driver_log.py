"""The controller's log file (R53), and that of the exceptions of its own code (R80)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from prefect_parallelrun.errors import printable
from prefect_parallelrun.paths import RunPaths

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
    file = logging.FileHandler(paths.driver_log, encoding="utf-8", errors="backslashreplace")
    handlers: list[logging.Handler] = [file, _Exceptions(paths.driver_error)]
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


class _Exceptions(logging.FileHandler):
    """Keeps what is logged with an exception; without any there is no file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
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
        text = printable(record.getMessage())
        if record.exc_info:
            text += f"\nstack trace: {self._exceptions}"
        self._target.log(record.levelno, "%s", text)
