"""The worker process: imports the entry script once, then runs mini-batches until it is told to stop.

It is a plain interpreter, maybe another one than the driver's: the standard library alone, and of
that little, since each import costs every start.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from prefect_parallelrun_runtime import (
    attempts,
    entry_script,
    failures,
    inbox,
    outbox,
    page,
    process_log,
    profiling,
    script,
    streams,
)

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Settings


def main(channel_fd: int, page_fd: int, claims_fd: int, *lease_fds: int) -> NoReturn:
    """Serve one supervisor; the descriptors are inherited from it, and by no program that the script starts.

    Those of leases are only held: a program that outlives this process shall not keep its GPUs.
    """
    for fd in (channel_fd, page_fd, claims_fd, *lease_fds):
        os.set_inheritable(fd, False)
    status = page.StatusPage(page_fd)
    faulthandler.register(page.STACKS_SIGNAL, file=status.stacks_file(), all_threads=True)
    incoming, outgoing = inbox.Inbox(channel_fd, claims_fd), outbox.Outbox(channel_fd, status)
    settings = incoming.settings()
    _set_up(settings)
    log, profiler = process_log.ProcessLog(settings), profiling.start(settings)
    try:
        loaded = _start(settings, outgoing, status, log, profiler)
        attempts.Attempts(loaded, settings, incoming, outgoing, status, log, profiler).serve()
        status.set(page.ENDING)
        _shut_down(loaded, settings, outgoing, profiler)
    except Exception:
        failures.append_own(settings, settings["process"])
        raise
    finally:
        profiler.save()
    status.set(page.LEAVING)
    sys.exit(0)


def _set_up(settings: Settings) -> None:
    """Give the script the process that it expects (rules R67, R69, R70)."""
    entry_script.configure(settings)
    sys.path.append(os.path.join(settings["runtime_folder"], "fallback"))
    streams.open_logs()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(entry_script.UtcFormatter(entry_script.LOG_FORMAT))
    logging.getLogger().addHandler(handler)  # its level is WARNING from the start


def _start(
    settings: Settings,
    outgoing: outbox.Outbox,
    status: page.StatusPage,
    log: process_log.ProcessLog,
    profiler: profiling.Profiler,
) -> script.Script:
    """Import the script and call its `init()`; where one fails, say so and end."""
    path = os.path.join(settings["source_folder"], settings["entry_script"])
    pid, seconds = os.getpid(), 0.0
    status.set(page.STARTING)
    stage = "import"
    try:
        loaded: script.Script = profiler.call(
            script.load_script, path, settings["source_folder"], settings["arguments"]
        )
        attempts.leave_if_forked(pid)
        if loaded.init is not None:
            stage = "init"
            began = status.set(page.INIT)
            profiler.call(loaded.init)
            attempts.leave_if_forked(pid)
            seconds = round(time.monotonic() - began, 6)
    except BaseException as error:
        attempts.leave_if_forked(pid, error)
        status.set(page.LEAVING)
        _tell_failure("start_failed", stage, error, settings, outgoing)
        sys.exit(1)
    profiler.save_now_and_then()
    status.set(page.IDLE)
    log.say(f"ready | init_s={seconds}")
    outgoing.say("process_ready", settings, seconds=seconds)
    return loaded


def _shut_down(
    loaded: script.Script,
    settings: Settings,
    outgoing: outbox.Outbox,
    profiler: profiling.Profiler,
) -> None:
    if loaded.shutdown is None:
        return
    pid = os.getpid()
    try:
        profiler.call(loaded.shutdown)
        attempts.leave_if_forked(pid)
    except BaseException as error:
        attempts.leave_if_forked(pid, error)
        _tell_failure("shutdown_failed", "shutdown", error, settings, outgoing)


def _tell_failure(
    name: str, stage: str, error: BaseException, settings: Settings, outgoing: outbox.Outbox
) -> None:
    record = failures.describe(error, settings, stage=stage)
    failures.append_to_log(failures.process_file(settings, "error"), stage, record, [])
    outgoing.say(name, settings, error=record)
