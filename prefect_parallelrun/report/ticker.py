"""Signs of life in the log, of what goes on before there is a run folder with an overview (R54)."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect_parallelrun.report.overview import log_pause_s
from prefect_parallelrun.report.progress import clock


@contextmanager
def ticking(
    doing: str, log: logging.Logger | logging.LoggerAdapter[logging.Logger]
) -> Iterator[None]:
    """Let the log say for how long something has been going on, as often as it does for a run.

    Args:
        doing: what it is: `listing the inputs`.
        log: of the task run.
    """
    began, ended = time.monotonic(), threading.Event()

    def tick() -> None:
        while not ended.wait(log_pause_s(time.monotonic() - began)):
            log.info("%s for %s.", doing.capitalize(), clock(time.monotonic() - began))

    # Prefect's logger looks in the context for the run that a line belongs to.
    context = contextvars.copy_context()
    threading.Thread(
        target=context.run, args=(tick,), name="parallelrun-ticker", daemon=True
    ).start()
    try:
        yield
    finally:
        ended.set()
