"""One mini-batch after the other: load, `run()`, encode, send; what fails is a result like any other."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from prefect_parallelrun_runtime import (
    ahead,
    channel,
    encode,
    failures,
    inbox,
    load,
    outbox,
    page,
    path_values,
    process_log,
    profiling,
    result_header,
    returned,
    script,
)

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Error, Result, Settings, Task


_INTERRUPTED = 130
"""Exit code of what is interrupted, by custom."""


class Failed(Exception):
    """An attempt failed; the record says why."""

    def __init__(self, error: Error, ends_process: BaseException | None = None) -> None:
        super().__init__(error["message"])
        self.error = error
        self.ends_process = ends_process
        """What the script raised to end its process; None: it can go on."""


class Attempts:
    """Runs the mini-batches of a worker process."""

    def __init__(
        self,
        entry: script.Script,
        settings: Settings,
        incoming: inbox.Inbox,
        outgoing: outbox.Outbox,
        status: page.StatusPage,
        log: process_log.ProcessLog,
        profiler: profiling.Profiler,
    ) -> None:
        self._entry = entry
        self._run = profiler.profiled(entry.run)
        self._settings = settings
        self._inbox = incoming
        self._outbox = outgoing
        self._page = status
        self._log = log
        self._profiler = profiler
        self._pid = os.getpid()
        self._ahead: tuple[tuple[int, int], ahead.Ahead] | None = None
        self._error_file = failures.process_file(settings, "error")

    def serve(self) -> None:
        """Work until the supervisor says stop."""
        while (work := self._inbox.next()) is not None:
            began = time.monotonic()
            for position, task in enumerate(work.tasks):
                if self._run_one(work, position, task, began):
                    break
            self._page.set(page.IDLE)
            if not work.tasks:
                self._outbox.send(self._bundle_end(work, 0))
            if self._ahead is not None and self._ahead[0][0] == work.tag:
                self._ahead = None  # of the rest of a bundle that ended early
            self._profiler.save_now_and_then()

    def _run_one(self, work: inbox.Work, position: int, task: Task, bundle_began: float) -> bool:
        """Run one mini-batch and send its result; return whether the bundle ended with it."""
        started_at = time.time()
        header: Result = {
            "position": position,
            "process": self._settings["process"],
            "outcome": "succeeded",
            "items": -1,
            "rows": 0,
            "started_at": started_at,
            "load_s": 0.0,
            "run_s": 0.0,
        }
        picked_up, cpu = self._page.pick_up(work.tag, position)
        # Before anything of it is done: whatever it does to the process, this line is there.
        self._log.picked_up(task, started_at)
        data, end = b"", None
        try:
            loaded = self._load(work, position, task, header)
            header["items"] = loaded.items
            if loaded.items:  # a byte range in which no row begins has nothing to run
                data = self._call(work, position, task, loaded, header, picked_up)
        except Failed as failed:
            header["outcome"], header["error"] = "failed", failed.error
            end = failed.ends_process
            self._write_down(task, failed.error)
        now = self._page.set(page.SENDING, work.tag, position, header["items"], picked_up)
        header["elapsed_s"] = now - picked_up
        header["cpu_s"] = time.process_time() - cpu
        self._log.ended(task, header)
        before = channel.pack_before(
            channel.RESULT, work.tag, result_header.encode(header), len(data)
        )
        finished = position + 1
        if end is not None:
            self._log.flush()
            self._outbox.send(before)
            # Before the bundle's end is sent: so the supervisor, which looks then, gives it no other.
            self._page.set(page.LEAVING)
            self._outbox.send(self._bundle_end(work, finished))
            # Of a KeyboardInterrupt, Python would make a death by a signal that nobody sent.
            raise end if isinstance(end, SystemExit) else SystemExit(_INTERRUPTED)
        is_last = finished == len(work.tasks)
        if is_last or "error" in header or now - bundle_began > self._settings["bundle_limit_s"]:
            self._log.flush()
            self._outbox.send(before, data, self._bundle_end(work, finished))
            return True
        self._outbox.send(before, data)
        return False

    def _load(self, work: inbox.Work, position: int, task: Task, header: Result) -> load.Loaded:
        """Return the data, loaded ahead or now; how long that was waited for goes into the header."""
        begun, self._ahead = self._ahead, None
        began = time.monotonic()
        try:
            if begun is not None and begun[0] == (work.tag, position):
                return begun[1].take()
            return load.load(task[3], self._reader(task))
        except BaseException as error:
            raise Failed(self._describe(error, "load", "load"), _ending(error)) from None
        finally:
            header["load_s"] = time.monotonic() - began

    def _call(
        self,
        work: inbox.Work,
        position: int,
        task: Task,
        loaded: load.Loaded,
        header: Result,
        picked_up: float,
    ) -> bytes:
        """Call `run()`; return the rows, encoded."""
        arguments = [loaded.data]
        if self._entry.wants_context:
            key = path_values.key_of(task[3], self._reader(task))
            arguments.append(script.MiniBatchContext(task[0], loaded.dataset, key))
        if isinstance(loaded.data, load.FileList):
            loaded.data.task_id = task[0]
        self._load_ahead(work, position)
        began = self._page.set(page.RUNNING, work.tag, position, loaded.items, picked_up)
        try:
            result = self._run(*arguments)
        except BaseException as error:
            leave_if_forked(self._pid, error)
            ending = _ending(error)
            category = "exception" if ending is None else "exit"
            raise Failed(self._describe(error, "run", category), ending) from None
        finally:
            header["run_s"] = time.monotonic() - began
        leave_if_forked(self._pid)
        self._page.set(page.ENCODING, work.tag, position, loaded.items, picked_up)
        return self._encode(result, header)

    def _encode(self, result: Any, header: Result) -> bytes:
        settings = self._settings
        try:
            encoded = encode.encode(
                result,
                settings["output_action"],
                settings["append_row"],
                settings["output_format"],
            )
        except returned.BadReturn as error:
            record = self._describe(error, "result", "bad_return")
            raise Failed({**record, "where": self._place_of_run()}) from None
        except Exception as error:
            raise Failed(self._describe(error, "result", "bad_return")) from None
        header["rows"] = encoded.rows
        if encoded.columns is not None:
            header["columns"] = encoded.columns
        return encoded.data

    def _load_ahead(self, work: inbox.Work, position: int) -> None:
        """Begin to load the mini-batch after this one, if there is data to read."""
        if self._settings["profiling_module"]:
            return  # from Python 3.12 on, cProfile would take what this thread does for the script's
        following: inbox.Work | None = work
        position += 1
        if position == len(work.tasks):
            if not load.needs_reading(work.tasks[position - 1][3]):
                return  # nor will the next one need it, most likely: spare the look
            following, position = self._inbox.peek(), 0
        if following is None or not following.tasks:
            return
        task = following.tasks[position]
        if load.needs_reading(task[3]):
            # Where the script's limits leave no thread, it is loaded when it is its turn.
            with contextlib.suppress(RuntimeError, MemoryError):
                self._ahead = ((following.tag, position), ahead.Ahead(task[3], self._reader(task)))

    def _reader(self, task: Task) -> dict[str, Any]:
        # A mini-batch without input has the index -1, and files need no reader.
        inputs = self._settings["inputs"]
        return inputs[task[2]] if 0 <= task[2] < len(inputs) else {}

    def _describe(self, error: BaseException, stage: str, category: str) -> Error:
        return failures.describe(error, self._settings, stage=stage, category=category)

    def _place_of_run(self) -> str:
        code = getattr(self._entry.run, "__code__", None)
        if code is None:
            return ""
        source = self._settings["source_folder"]
        return failures.place(code.co_filename, code.co_firstlineno, code.co_name, source)

    def _write_down(self, task: Task, error: Error) -> None:
        heading = failures.heading(task, error["stage"])
        failures.append_to_log(self._error_file, heading, error, failures.first_items(task[3]))

    def _bundle_end(self, work: inbox.Work, finished: int) -> bytes:
        header = {"finished": finished, "process": self._settings["process"]}
        return channel.pack(channel.BUNDLE_END, work.tag, header)


def _ending(error: BaseException) -> BaseException | None:
    """Return `error` if it is meant to end the process."""
    return error if isinstance(error, (SystemExit, KeyboardInterrupt)) else None


def leave_if_forked(pid: int, error: BaseException | None = None) -> None:
    """End a child that the script forked and that came back out of the script; `pid` is the worker process.

    The child is not this process, and must not read or answer in its place.
    """
    if os.getpid() != pid:
        os._exit(_exit_code(error))


def _exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
