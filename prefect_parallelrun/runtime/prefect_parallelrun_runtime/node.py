"""One node's worker processes and bundles, joined: who gets what, and what every end means."""

from __future__ import annotations

import functools
import select
import time
from collections.abc import Iterator

from prefect_parallelrun_runtime import (
    bundles,
    channel,
    crew,
    deadlines,
    deaths,
    failures,
    link,
    page,
    process_log,
    processes,
    reaper,
    reports,
    watch,
)
from prefect_parallelrun_runtime.messages import Error, Settings

_UNSENT_LIMIT = 64 << 20
"""Bytes that the agent has not taken; beyond it, results wait in the worker processes."""
_IDLE_WAIT_S = 1.0


class Node:
    """Relays between the agent and the worker processes, and steps in where one fails."""

    def __init__(self, settings: Settings, agent: link.Link, poll: select.epoll) -> None:
        self._settings = settings
        self._agent = agent
        self._deadlines = deadlines.Deadlines(settings)
        self._bundles = bundles.Bundles()
        self._crew = crew.Crew(settings)
        self._deaths = deaths.Register()
        self._watch = watch.Watch(poll)
        self._logs_are_lost = False
        self._gave_up = False
        self._stopping = False
        self._paused = False
        self._relayed = 0
        self.next_check = 0.0
        """When a deadline could be over (monotonic seconds)."""
        self._say("supervisor_ready")
        for trouble in failures.make_log_folders(settings):
            self._tell_lost_logs(trouble)
        self._start_missing()

    # What the supervisor's loop calls.

    @property
    def is_done(self) -> bool:
        """Whether all processes have ended after a stop."""
        return self._stopping and not self._crew

    def add(self, tag: int, frame: bytes) -> None:
        """Queue a bundle."""
        (opened,) = channel.frames(frame)
        header = opened.json()
        self._bundles.add(bundles.Bundle(tag, frame, header["avoid"]))

    def cancel(self, tag: int) -> None:
        """Give up a bundle; kill what runs of it."""
        while (holder := self._bundles.holder(tag)) is not None:
            if not self._take_back(holder):
                process = self._crew[holder]
                self._kill(process, "cancelled", process.page.read())
                return
        dropped = self._bundles.drop(tag)
        if dropped is not None:
            self._agent.send(reports.bundle_end(dropped, 0, ""))

    def stop(self) -> None:
        """Take nothing new; let each process finish its mini-batches, call `shutdown()` and end."""
        self._stopping = True
        for process in self._crew:
            if not process.ready:
                self._kill(process, "stopped", process.page.read())
            else:
                while self._bundles.is_overloaded(process.name) and self._take_back(process.name):
                    pass
                self._stop_if_idle(process)

    def killed(self) -> None:
        """Write down that all processes have just been killed, whatever they were at."""
        for process in self._crew:
            self._settle(process, "cancelled", None, float("nan"))
            process.log(process.lines.now("ended | cancelled"))

    def readable(self, fd: int) -> None:
        """Handle what the poll reported."""
        self._watch.handle(fd)

    def tend(self, now: float) -> int:
        """Hand out work and look at the clock; returns how much was relayed since the last time."""
        self._hand_out()
        if now >= self.next_check:
            self._deaths.reap(self._crew.pids())
            self._start_missing()
            checks = [self._check(process, now) for process in self._crew]
            start = None if self._stopping else self._crew.start_at
            self.next_check = min([*checks, now + _IDLE_WAIT_S if start is None else start])
        self._set_pause()
        relayed, self._relayed = self._relayed, 0
        return relayed

    # Bundles.

    def _hand_out(self) -> None:
        if self._stopping or self._crew.is_lost:
            for bundle in self._bundles.drop_waiting():
                self._agent.send(reports.bundle_end(bundle, 0, ""))
            return
        self._give(self._bundles.hand_out_to_idle())
        for holder in self._bundles.overloaded():
            self._take_back(holder)
        self._give(self._bundles.hand_out_to_idle())
        self._give(self._bundles.hand_out_ahead())

    def _give(self, pairs: Iterator[tuple[str, bundles.Bundle]]) -> None:
        for name, bundle in pairs:
            process = self._crew[name]
            if self._bundles.current(name) is bundle:
                # Told before it is handed over: a script that takes the node down may be quicker (R86).
                self._say("bundle_started", process, bundle=bundle.tag)
                self._agent.flush()
            process.give(bundle.tag, bundle.frame)
            self._set_mask(process)

    def _take_back(self, holder: str) -> bool:
        tag = self._crew[holder].take_back()
        if tag is None:
            return False
        begins = self._bundles.take_back(holder, tag)
        if begins is not None:
            self._say("bundle_started", self._crew[holder], bundle=begins.tag)
        return True

    # Worker processes: what they say.

    def _from_worker(self, process: processes.WorkerProcess) -> None:
        if process.link.unsent:
            process.link.flush()
        self._relay(process, process.link.receive())
        process.moved_at = time.monotonic()
        if process.link.garbled:
            self._kill(process, "garbage", process.page.read())
        self._set_mask(process)

    def _relay(
        self, process: processes.WorkerProcess, frames: list[tuple[int, int, bytes]]
    ) -> None:
        for kind, tag, frame in frames:
            if not self._is_due(process, kind, tag, frame):
                # The script has written into the channel: nothing that comes can be trusted now.
                process.link.garbled = True
                return
            self._agent.send(frame)
            self._relayed += 1
            if kind == channel.RESULT:
                self._bundles.count_result(process.name)
                self._has_worked(process)
            elif kind == channel.BUNDLE_END:
                self._bundle_ended(process, tag)
            else:
                self._heard(process, frame)

    def _is_due(self, process: processes.WorkerProcess, kind: int, tag: int, frame: bytes) -> bool:
        """Return whether a frame is what the process can have to say now."""
        if kind in (channel.RESULT, channel.BUNDLE_END):
            bundle = self._bundles.current(process.name)
            return bundle is not None and bundle.tag == tag
        return kind == channel.EVENT and reports.is_event(frame)

    def _bundle_ended(self, process: processes.WorkerProcess, tag: int) -> None:
        if process.page.read().phase == page.LEAVING:
            # By sys.exit() in run(): what lies with it shall not wait until it is gone.
            self._bundles.retire(process.name)
            while self._take_back(process.name):
                pass
        begins = self._bundles.end(process.name, tag)
        if begins is not None:
            self._say("bundle_started", process, bundle=begins.tag)
        elif self._stopping:
            self._stop_if_idle(process)

    def _heard(self, process: processes.WorkerProcess, frame: bytes) -> None:
        (opened,) = channel.frames(frame)
        event = opened.json()
        if event["name"] == "process_ready":
            process.ready = True
            self._bundles.ready(process.name)
        elif event["name"] == "start_failed":
            process.start_failure = event["error"]

    def _stop_if_idle(self, process: processes.WorkerProcess) -> None:
        if process.stopping_at is None and self._bundles.current(process.name) is None:
            process.stop(time.monotonic())
            self._set_mask(process)

    # Worker processes: life and death.

    def _start_missing(self) -> None:
        if self._stopping or self._crew.start_at is None:
            return
        try:
            for process in self._crew.fill(time.monotonic()):
                self._bundles.join(process.name)
                self._watch.add(
                    process.link.fileno(), functools.partial(self._from_worker, process)
                )
                self._watch.add(process.pidfd, functools.partial(self._ended, process))
                self._set_mask(process)
                self._say("process_started", process)
                if process.log_trouble:
                    self._tell_lost_logs(process.log_trouble)
            for trouble in self._crew.gpu_troubles():
                self._say("gpus_lacking", reason=trouble)
        except processes.StartError as failure:
            self._could_not_start(failure)
        self.next_check = 0.0

    def _could_not_start(self, failure: processes.StartError) -> None:
        error = failures.describe(failure, self._settings, stage="import")
        failures.append_own(self._settings, "supervisor", error["traceback"])
        node = self._settings["node"]
        self._agent.send(reports.event("start_failed", node, process=failure.process, error=error))
        self._give_up_if_lost()

    def _give_up_if_lost(self) -> None:
        if self._crew.is_lost and not self._stopping and not self._gave_up:
            self._gave_up = True
            self._say("gave_up")

    def _tell_lost_logs(self, trouble: str) -> None:
        """Say once that log files cannot be written: it is likely to be so for all processes."""
        if not self._logs_are_lost:
            self._logs_are_lost = True
            failures.append_own(self._settings, "supervisor", trouble)
            self._say("logs_lost", reason=trouble)

    def _check(self, process: processes.WorkerProcess, now: float) -> float:
        """Kill the process if it has taken too long; return when to look again."""
        if process.doom is None:
            status = process.page.read()
            due = self._due(process, status)
            if due is None or now < due:
                # By then it may be at something else, with a deadline of its own.
                again = self._deadlines.look_again_at(now)
                return again if due is None else min(due, again)
            # It may have finished while nobody looked: what was complete in time counts.
            self._relay(process, process.link.drain())
            status = process.page.read()
            if self._due(process, status) != due:
                return now
            self._kill(process, "timeout", status)
        assert process.doom is not None
        if process.escalate(now):
            self._bury(process, deaths.unkillable(process.pid))
            return now
        return process.doom.next_at

    def _due(self, process: processes.WorkerProcess, status: page.Status) -> float | None:
        if process.stopping_at is not None:
            return self._deadlines.of_stop(process.stopping_at)
        since = status.since
        if status.phase in (page.STARTING, page.INIT):
            since = process.started_at  # they share one limit
        elif status.phase in (page.IDLE, page.SENDING):
            if self._paused or self._bundles.current(process.name) is None:
                return None  # it waits for us
            since = max(since, process.moved_at)
        return self._deadlines.of_phase(status.phase, since)

    def _kill(self, process: processes.WorkerProcess, reason: str, status: page.Status) -> None:
        if process.doom is None:
            # From here on it is not listened to: what it says while it is being killed is no result.
            self._watch.remove(process.link.fileno())
            self._bundles.retire(process.name)
            process.doom = processes.Doom(reason, status, time.monotonic())
            self.next_check = 0.0

    def _ended(self, process: processes.WorkerProcess) -> None:
        self._deaths.reap(self._crew.pids())
        death = self._deaths.take(process.pid)
        if death is not None:
            self._bury(process, death)

    def _bury(self, process: processes.WorkerProcess, death: deaths.Death) -> None:
        if process.doom is None:
            self._relay(process, process.link.drain())
        self._watch.remove(process.link.fileno())
        self._watch.remove(process.pidfd)
        self._crew.remove(process)
        reaper.kill_remains(process.pid, process.marker, self._crew.pids())
        reason, error = deaths.cause(process, death, self._deadlines, self._settings)
        blamed = self._settle(process, reason, error, death.cpu_s)
        if error is not None and not blamed:
            self._judge(process, error)
        told = process.start_failure or error
        why = process_log.because(told) if told is not None else ""
        process.log(process.lines.now(f"ended | {reason}{why}"))
        self._say("process_ended", process, reason=reason)
        process.close()
        self._start_missing()
        self._give_up_if_lost()

    def _settle(
        self, process: processes.WorkerProcess, reason: str, error: Error | None, cpu_s: float
    ) -> bool:
        """End the bundle of a dead process; charge its death to the mini-batch that was running, if any."""
        bundle = self._bundles.leave(process.name)
        if bundle is None:
            return False
        status = process.page.read() if process.doom is None else process.doom.status
        at_work = status.phase in page.BUSY and (status.bundle, status.position) == (
            bundle.tag,
            bundle.results,
        )
        blamed = at_work and error is not None
        if at_work:
            task = reports.task(bundle, status.position)
            result = reports.lost_attempt(status, process.name, reason, error, cpu_s)
            process.log(process.lines.ended(task, result))
            if error is not None:
                heading = failures.heading(task, error["stage"])
                self._log(process, heading, error, failures.first_items(task[3]))
                self._agent.send(channel.pack(channel.RESULT, bundle.tag, result))
                self._has_worked(process)
        self._agent.send(reports.bundle_end(bundle, bundle.results + blamed, process.name))
        return blamed

    def _has_worked(self, process: processes.WorkerProcess) -> None:
        if not process.has_worked:
            process.has_worked = True
            self._crew.succeeded()

    def _judge(self, process: processes.WorkerProcess, error: Error) -> None:
        """Tell of an end that is the failure of no mini-batch but of `shutdown()`, or of the start."""
        is_stopping = process.stopping_at is not None
        if is_stopping or (error["category"], error["stage"]) == ("timeout", "shutdown"):
            self._log(process, "shutdown", error, [])
        if is_stopping:
            self._say("shutdown_failed", process, error=error)
            return
        # One that dies after init() without having done anything is a start that failed, too: else
        # such processes would be replaced for ever.
        if process.has_worked:
            # One that leaves by sys.exit() has told so before.
            if error["stage"] != deaths.STAGES[page.LEAVING]:
                self._log(process, "between mini-batches", error, [])
            return
        if process.start_failure is None:
            self._log(process, "start", error, [])
            self._say("start_failed", process, error=error)
        self._crew.failed()

    # Small things.

    def _say(
        self, name: str, process: processes.WorkerProcess | None = None, **more: object
    ) -> None:
        if process is not None:
            more = {"process": process.name, "pid": process.pid, **more}
        self._agent.send(reports.event(name, self._settings["node"], **more))

    def _log(
        self, process: processes.WorkerProcess, heading: str, error: Error, items: list[str]
    ) -> None:
        failures.append_to_log(process.file("error"), heading, error, items)

    def _set_pause(self) -> None:
        paused = self._agent.unsent > (_UNSENT_LIMIT // 2 if self._paused else _UNSENT_LIMIT)
        if paused != self._paused:
            self._paused = paused
            for process in self._crew:
                process.moved_at = time.monotonic()
                self._set_mask(process)

    def _set_mask(self, process: processes.WorkerProcess) -> None:
        """Watch its socket for what is wanted of it now."""
        fd = process.link.fileno()
        if process.doom is not None or process.link.closed:
            self._watch.remove(fd)
            return
        mask = 0 if self._paused else select.EPOLLIN
        if process.link.unsent:
            mask |= select.EPOLLOUT
        self._watch.change(fd, mask)
