"""A real supervisor with real worker processes, driven as a node's agent drives it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun.paths import RUNTIME_FOLDER, RunPaths
from prefect_parallelrun_runtime import channel, messages, supervisor

DEADLINE_S = 20.0


@dataclass
class Answer:
    """What came back for one bundle."""

    results: list[dict] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    finished: int | None = None

    @property
    def outcomes(self) -> list[str]:
        return [result["outcome"] for result in self.results]


class Node:
    """An agent's end of the socket, and everything that came out of it."""

    def __init__(self, root: Path):
        self.root = root
        self.paths = RunPaths(root / "run")
        self.source = root / "source"
        self.work = root / "work"
        self.output = root / "output"
        for folder in (self.source, self.work, self.output):
            folder.mkdir()
        self.answers: dict[int, Answer] = {}
        self.events: list[dict] = []
        self.order: list[tuple] = []
        self._next_tag = 1
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None

    # --- what the agent does

    def script(self, text: str, name: str = "score.py") -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def start(self, *, launcher: list[str] = (), **changes) -> Node:
        """Start the supervisor, as the last part of the command line `launcher` if there is one."""
        ours, theirs = socket.socketpair()
        self._socket, self._splitter = ours, channel.Splitter()
        self._process = subprocess.Popen(
            [*launcher, *supervisor.command(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.send(channel.pack(channel.SETTINGS, header={**self.settings(), **changes}))
        return self

    def settings(self) -> messages.Settings:
        return {
            "protocol": messages.PROTOCOL,
            "run_id": f"test-{os.getpid()}-{self.root.name}",
            "step": "test",
            "node": "node000",
            "process_count": 1,
            "gpus": [],
            "gpu_count": 0,
            "gpus_per_process": None,
            "niceness": 0,
            "python": sys.executable,
            "requirements": [],
            "environment_name": "",
            "environment": {"PATH": os.environ["PATH"]},
            "runtime_folder": str(RUNTIME_FOLDER),
            "source_folder": str(self.source),
            "source_directory": "",
            "entry_script": "score.py",
            "arguments": [],
            "work_folder": str(self.work),
            "private_folder": "",
            "output_folder": str(self.output),
            "files": self.paths.node_files("node000"),
            "logging_level": "INFO",
            "profiling_module": "",
            "monitor_interval_s": 0.0,
            "run_timeout_s": 30.0,
            "load_timeout_s": 30.0,
            "init_timeout_s": 30.0,
            "shutdown_timeout_s": 10.0,
            "bundle_limit_s": 30.0,
            "kill_grace_s": 0.3,
            "init_failures_allowed": 3,
            "output_action": "append_row",
            "append_row": {"header": False, "to_csv": {}},
            "output_format": "text",
            "inputs": [],
            "process": "",
            "address": "",
        }

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def bundle(self, *works: dict, avoid: list[str] = (), attempt: int = 1, index: int = 0) -> int:
        """Send a bundle; returns its tag."""
        tag = self._next_tag
        self._next_tag += 1
        tasks = [[index + place, attempt, 0, work] for place, work in enumerate(works)]
        header = {"count": len(tasks), "avoid": list(avoid)}
        self.send(channel.pack(channel.BUNDLE, tag, header, json.dumps(tasks).encode()))
        return tag

    def ranks(self, count: int = 1, **more) -> int:
        """Send a bundle of mini-batches without input."""
        return self.bundle(*({"rank": place} for place in range(count)), **more)

    def cancel(self, tag: int) -> None:
        self.send(channel.pack(channel.CANCEL, tag))

    def run(self, *works: dict, **more) -> Answer:
        """Send a bundle and wait for its end."""
        return self.answer(self.bundle(*works, **more))

    def answer(self, tag: int) -> Answer:
        """Wait for the end of a bundle."""
        self.until(lambda: self._answer(tag).finished is not None)
        return self.answers[tag]

    def event(self, name: str, **fields) -> dict:
        """Wait for an event."""
        found: list[dict] = []

        def seen() -> bool:
            found[:] = [
                event
                for event in self.events
                if event["name"] == name and fields.items() <= event.items()
            ]
            return bool(found)

        self.until(seen)
        return found[0]

    def named(self, name: str) -> list[dict]:
        """Return the events of that name that have come so far."""
        return [event for event in self.events if event["name"] == name]

    def until(self, condition, limit_s: float = DEADLINE_S) -> None:
        """Read what comes until the condition holds."""
        deadline = time.monotonic() + limit_s
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"waited {limit_s} s in vain; events: {self.events}; {self._stderr()}"
            self._socket.settimeout(min(left, 0.02))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            assert data, f"the supervisor is gone; {self._stderr()}"
            for _kind, _tag, raw in self._splitter.feed(data):
                (frame,) = channel.frames(raw)
                self._take(frame)

    def _take(self, frame: channel.Frame) -> None:
        header = frame.json()
        if frame.kind == channel.RESULT:
            answer = self._answer(frame.tag)
            assert answer.finished is None, "a result came after the end of its bundle"
            answer.results.append(header)
            answer.rows.append(frame.payload)
            self.order.append(("result", frame.tag, header["position"]))
        elif frame.kind == channel.BUNDLE_END:
            self._answer(frame.tag).finished = header["finished"]
            self.order.append(("end", frame.tag))
        else:
            self.events.append(header)
            self.order.append((header["name"], header.get("bundle", 0)))

    def _answer(self, tag: int) -> Answer:
        return self.answers.setdefault(tag, Answer())

    # --- looking at it

    def log(self, kind: str, process: str = "process000") -> str:
        """Return a log file's text, or an empty string when there is none."""
        path = Path(self.paths.node_files("node000")[kind].replace("{process}", process))
        return path.read_text() if path.exists() else ""

    def _stderr(self) -> str:
        folder = self.paths.logs
        return "\n".join(
            f"--- {path}\n{path.read_text()[-2000:]}"
            for path in folder.rglob("*.txt")
            if path.is_file()
        )

    def stop(self) -> int:
        """Say stop; wait for the supervisor's end; returns its exit code."""
        self.send(channel.pack(channel.STOP))
        return self.wait()

    def wait(self) -> int:
        """Read what comes until the supervisor has ended, to the last of it; return its exit code."""
        deadline = time.monotonic() + DEADLINE_S
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while (left := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not (data := self._socket.recv(1 << 16)):
                    break
                for _kind, _tag, raw in self._splitter.feed(data):
                    (frame,) = channel.frames(raw)
                    self._take(frame)
        return self._process.wait(timeout=1)

    def close(self) -> None:
        """End as an agent that dies: the socket closes."""
        if self._process is not None:
            self._socket.close()
            self._process.wait(timeout=DEADLINE_S)

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self._process.pid

    @staticmethod
    def is_alive(pid: int) -> bool:
        """Whether a process runs (a zombie does not)."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    @staticmethod
    def wait_for(condition, limit_s: float = DEADLINE_S) -> None:
        """Wait, without reading the socket, until the condition holds."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.005)

    def read_when_there(self, name: str) -> str:
        """Wait for a file that the script writes into the output folder; returns its text."""
        path = self.output / name
        self.wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
        return path.read_text().strip()


@pytest.fixture
def node(tmp_path):
    """A node that has not started yet; it is gone with all its processes after the test."""
    node = Node(tmp_path)
    yield node
    node.close()
