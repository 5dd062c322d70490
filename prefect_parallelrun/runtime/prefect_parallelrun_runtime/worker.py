"""The worker process: imports the entry script once, then runs mini-batches until it is told to stop.

It is a plain interpreter, maybe another one than the driver's: the standard library alone, and of
that little, since each import costs every start.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from prefect_parallelrun_runtime import (
    attempts,
    channel,
    entry_script,
    failures,
    inbox,
    page,
    script,
)

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Settings


def main(channel_fd: int, page_fd: int, claims_fd: int) -> NoReturn:
    """Serve one supervisor; the descriptors are inherited from it."""
    pid = os.getpid()
    for fd in (channel_fd, page_fd, claims_fd):
        os.set_inheritable(fd, False)
    status = page.StatusPage(page_fd)
    faulthandler.register(page.STACKS_SIGNAL, file=status.stacks_file(), all_threads=True)
    letters = inbox.Inbox(channel_fd, claims_fd)
    settings = letters.settings()
    _set_up(settings)
    loaded = _start(settings, channel_fd, status, pid)
    attempts.Attempts(loaded, settings, letters, status, channel_fd).serve()
    status.set(page.ENDING)
    _shut_down(loaded, settings, channel_fd, pid)
    sys.exit(0)


def _set_up(settings: Settings) -> None:
    """Give the script the process that it expects (rules R67, R69, R70)."""
    entry_script.configure(settings)
    sys.path.append(os.path.join(settings["runtime_folder"], "fallback"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A print that cannot be encoded must not fail a mini-batch.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(entry_script.UtcFormatter(entry_script.LOG_FORMAT))
    logging.getLogger().addHandler(handler)  # its level is WARNING from the start


def _start(settings: Settings, channel_fd: int, status: page.StatusPage, pid: int) -> script.Script:
    """Import the script and call its `init()`; where one fails, say so and end."""
    path = os.path.join(settings["source_folder"], settings["entry_script"])
    status.set(page.STARTING)
    stage = "import"
    try:
        loaded = script.load_script(path, settings["source_folder"], settings["arguments"])
        attempts.leave_if_forked(pid)
        if loaded.init is not None:
            stage = "init"
            status.set(page.INIT)
            loaded.init()
            attempts.leave_if_forked(pid)
    except BaseException as error:
        attempts.leave_if_forked(pid, error)
        status.set(page.ENDING)
        _tell_failure("start_failed", stage, error, settings, channel_fd)
        sys.exit(1)
    status.set(page.IDLE)
    _say("process_ready", settings, channel_fd)
    return loaded


def _shut_down(loaded: script.Script, settings: Settings, channel_fd: int, pid: int) -> None:
    if loaded.shutdown is None:
        return
    try:
        loaded.shutdown()
        attempts.leave_if_forked(pid)
    except BaseException as error:
        attempts.leave_if_forked(pid, error)
        _tell_failure("shutdown_failed", "shutdown", error, settings, channel_fd)


def _tell_failure(
    name: str, stage: str, error: BaseException, settings: Settings, channel_fd: int
) -> None:
    record = failures.describe(error, settings, stage=stage)
    failures.append_to_log(failures.process_file(settings, "error"), stage, record, [])
    _say(name, settings, channel_fd, error=record)


def _say(name: str, settings: Settings, channel_fd: int, **more: Any) -> None:
    event = {"name": name, "node": settings["node"], "process": settings["process"]}
    attempts.send(channel_fd, channel.pack(channel.EVENT, 0, {**event, "pid": os.getpid(), **more}))
