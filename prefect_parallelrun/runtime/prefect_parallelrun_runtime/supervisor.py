"""The supervisor: one small process per node and run that starts, times, kills and replaces worker processes.

It has one thread, waits on nothing but its poll, and is the subreaper of all that the scripts start.
When the socket to its node's agent closes, for whatever reason, it kills every descendant and ends. So
time-outs hold while the Dask worker is stuck in C code, and nothing outlives the run.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import NoReturn

from prefect_parallelrun_runtime import channel, failures, link, node, reaper
from prefect_parallelrun_runtime.messages import PROTOCOL, Settings

_LONGEST_WAIT_S = 1.0
_REST_S = 0.002
"""After a round that had much to relay: more comes meanwhile, and in one go it is cheaper."""
_BUSY_ROUND = 16
_FAREWELL_S = 10.0
"""For the agent to take what is still unsent at the end."""
_DEATH_MS = 200
"""From the end of the agent's socket to that of its process, if that is why it closed."""


def command(fd: int) -> list[str]:
    """Return the command line of a supervisor that talks over the inherited socket `fd`."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); "
        f"from prefect_parallelrun_runtime.supervisor import main; main({fd})"
    )
    # Isolated and without site: nothing of the user's can get in its way, and it starts in 20 ms.
    return [sys.executable, "-I", "-S", "-c", code]


def main(fd: int) -> NoReturn:
    """Serve the agent at the other end of the socket `fd` until it says stop, or is gone."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    # A Ctrl-C in the user's terminal is the driver's business; the driver says what is to be done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_on_signal)
    os.set_inheritable(fd, False)
    reaper.become_subreaper()
    supervisor = Supervisor(link.Link(socket.socket(fileno=fd)))
    code = 0
    try:
        supervisor.serve()
    except Exception:
        supervisor.report_own_failure()
        code = 1
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reaper.kill_everything()
        supervisor.leave()
    os._exit(code)


def _end_on_signal(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


class Supervisor:
    """Brings what comes in on sockets and pidfds to the node's books, and the answers out again."""

    def __init__(self, agent: link.Link) -> None:
        self._agent = agent
        self._agent_process = os.pidfd_open(os.getppid())
        self._poll = select.epoll()
        self._poll.register(agent.fileno(), select.EPOLLIN)
        self._sending = False
        self._node: node.Node | None = None
        self._settings: Settings | None = None

    def serve(self) -> None:
        """Work until a stop is complete or the agent is gone."""
        relayed = 0
        while not self._agent.closed:
            for fd, _mask in self._poll.poll(self._wait_s()):
                if fd == self._agent.fileno():
                    self._from_agent()
                elif self._node is not None:
                    self._node.readable(fd)
            if self._node is not None:
                relayed = self._node.tend(time.monotonic())
                self._to_agent()
                if self._node.is_done:
                    self._send_the_rest()
                    return
            if relayed >= _BUSY_ROUND:
                time.sleep(_REST_S)

    def _wait_s(self) -> float:
        if self._node is None:
            return _LONGEST_WAIT_S
        return max(0.0, min(_LONGEST_WAIT_S, self._node.next_check - time.monotonic()))

    def _from_agent(self) -> None:
        frames = self._agent.receive()
        if self._agent.garbled:
            raise ValueError("what came from the agent is no frame")
        for kind, tag, data in frames:
            if kind == channel.SETTINGS:
                (frame,) = channel.frames(data)
                self._begin(frame.json())
            elif self._node is None:
                raise ValueError(f"frame {kind} came before the settings")
            elif kind == channel.BUNDLE:
                self._node.add(tag, data)
            elif kind == channel.CANCEL:
                self._node.cancel(tag)
            elif kind == channel.STOP:
                self._node.stop()

    def _begin(self, settings: Settings) -> None:
        self._settings = settings
        if settings["protocol"] != PROTOCOL:
            raise ValueError(
                f"the agent speaks protocol {settings['protocol']}, this is {PROTOCOL}"
            )
        self._node = node.Node(settings, self._agent, self._poll)

    def _to_agent(self) -> None:
        self._agent.flush()
        sending = self._agent.unsent > 0
        if sending != self._sending:
            self._sending = sending
            mask = select.EPOLLIN | select.EPOLLOUT if sending else select.EPOLLIN
            self._poll.modify(self._agent.fileno(), mask)

    def _send_the_rest(self) -> None:
        deadline = time.monotonic() + _FAREWELL_S
        poll = select.poll()
        poll.register(self._agent.fileno(), select.POLLOUT)
        while self._agent.unsent and time.monotonic() < deadline:
            poll.poll(100)  # milliseconds
            self._agent.flush()

    def leave(self) -> None:
        """Write the last lines, and remove what the run has put on this node: the agent may be gone."""
        if self._node is not None:
            try:
                self._node.killed()
            except Exception:
                self.report_own_failure()
        if self._settings is not None:
            import shutil  # slow to import, and not needed before

            shutil.rmtree(self._settings["work_folder"], ignore_errors=True)
            if (private := self._settings["private_folder"]) and self._agent_has_died():
                shutil.rmtree(private, ignore_errors=True)

    def _agent_has_died(self) -> bool:
        # A process that is killed closes its sockets first, and is seen as dead a moment later.
        poll = select.poll()
        poll.register(self._agent_process, select.POLLIN)
        return bool(poll.poll(_DEATH_MS))

    def report_own_failure(self) -> None:
        """Write down the exception of this program's own code that is being handled (rule R80)."""
        if self._settings is not None:
            failures.append_own(self._settings, "supervisor")
            return
        with contextlib.suppress(OSError):
            os.write(2, traceback.format_exc().encode())
