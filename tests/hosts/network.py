"""Hosts that share nothing, made of the kernel's namespaces: one for the driver, the others for nodes.

Each has a network, a process table, a name and a view of the file system of its own; cables lead from all
of them to one switch. What the host of the tests itself has stays as it is: interfaces are made within
the namespaces, and all of it is gone with the first process of the switch, however the tests end.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.storage.servers import lacking

PORT = 8786
TCP_S = 11.0
"""`distributed.comm.timeouts.tcp` of the tests; Dask takes nothing below."""
GO = "go"
"""A file for which scripts may wait, so that all nodes are there before the first mini-batch is done."""
_SUBNET = "10.77.0"
_TOOLS = ("ip", "bridge", "unshare", "nsenter", "setpriv")
_REPOSITORY = Path(__file__).parents[2]
_OF_ITS_OWN = ("--mount", "--net", "--pid", "--uts", "--ipc")


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for a condition, and fail if it does not come; return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come"
        threading.Event().wait(0.05)
    return value


@dataclass
class Host:
    """A host, known by the process id of its first process."""

    name: str
    address: str
    first: int
    port: str
    """Its end of the cable at the switch."""
    hidden: Path
    """What the other hosts have there it does not see: it has a disk of its own there."""
    switch: Host | None
    logs: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    worker: subprocess.Popen[bytes] | None = None
    """Its Dask worker, with the nanny."""
    is_cut: bool = False

    @property
    def disk(self) -> Path:
        """Its folder for temporary files; that of another host is not to be seen here."""
        return self.hidden / "disk"

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs another one there."""
        user = [] if _may_make_them() else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.first}", *user, *_OF_ITS_OWN, "--", *command]

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a program there; what it prints is in a file of the test."""
        given = {
            **os.environ,
            "TMPDIR": str(self.disk),
            "PYTHONPATH": str(_REPOSITORY),
            **environment,
        }
        place = self.logs / f"{self.name}-{len(self.running)}.txt"
        with place.open("wb") as told:
            process = subprocess.Popen(
                self.inside(*command),
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=subprocess.STDOUT,
            )
        self.running.append(process)
        return process

    def call(self, *command: str) -> str:
        """Return what a program prints there."""
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr}"
        return done.stdout

    def left(self) -> list[str]:
        """Return what there is of runs on its disk."""
        found = self.call("find", str(self.disk), "-mindepth", "1").splitlines()
        return [
            one for one in found if "dask-scratch-space" not in one and one != str(self.disk / GO)
        ]

    def go(self) -> None:
        """Let scripts go on that wait for the file `GO` on its disk."""
        self.call("touch", str(self.disk / GO))

    def processes(self, marker: str) -> list[int]:
        """Return the processes there whose command line, or environment, has a text; by its own ids."""
        look = (
            "import os, sys, pathlib\n"
            "for one in pathlib.Path('/proc').iterdir():\n"
            "    if one.name.isdecimal() and int(one.name) != os.getpid():\n"
            "        try:\n"
            "            text = (one / 'cmdline').read_bytes() + (one / 'environ').read_bytes()\n"
            "        except OSError:\n"
            "            continue\n"
            "        if sys.argv[1].encode() in text:\n"
            "            print(one.name)\n"
        )
        return [int(pid) for pid in self.call(sys.executable, "-S", "-c", look, marker).split()]

    # -- its cable ---------------------------------------------------------------------------

    def cut(self) -> None:
        """Let nothing pass its cable any more, without a word to either end."""
        assert self.switch is not None
        self.switch.call("bridge", "link", "set", "dev", self.port, "state", "0")
        self.is_cut = True

    def heal(self) -> None:
        """Let all pass again."""
        assert self.switch is not None
        self.switch.call("bridge", "link", "set", "dev", self.port, "state", "3")
        self.is_cut = False


class Hosts:
    """The driver's host, and those of the nodes.

    Args:
        folder: where the test keeps its files; only the driver's host sees what is in there.
        count: nodes.
        tcp: `distributed.comm.timeouts.tcp` of all.
    """

    def __init__(self, folder: Path, count: int, *, tcp: str = "30s") -> None:
        self._count = count
        self._folder = folder
        self._hidden = folder / "files"
        self._hidden.mkdir()
        self._tcp = tcp
        self._made: list[subprocess.Popen[bytes]] = []
        self._hosts: list[Host] = []
        self._runs = self._joined = self._lost = 0

    def make(self) -> None:
        """Make them.

        Raises:
            OSError: the kernel refuses that.
            AssertionError: something else does.
        """
        self.switch = self._first("switch", None, 0)
        self.switch.call("sh", "-c", "ip link add br0 type bridge && ip link set br0 up")
        self.driver = self._plugged("driver", 10)
        self.nodes = [self._plugged(f"host{n}", 11 + n) for n in range(self._count)]
        for node in self.nodes:
            node.call("mount", "-t", "tmpfs", "none", str(self._hidden))
        for host in (self.driver, *self.nodes):
            host.call("mkdir", str(host.disk))

    @property
    def files(self) -> Path:
        """A folder that only the driver's host sees; a node has another one at the same path."""
        return self._hidden

    @property
    def scheduler(self) -> str:
        """Its address."""
        return f"tcp://{self.driver.address}:{PORT}"

    def begin(self, *, threads: int = 2) -> None:
        """Start a scheduler on the driver's host, and a Dask worker on each of the others."""
        at = ("--host", self.driver.address, "--port", str(PORT), "--no-dashboard")
        self.driver.start(*_dask("scheduler"), *at, **self._settings)
        for node in self.nodes:
            self.join(node, threads=threads)
        self._told("Register worker", self._joined)

    def join(self, node: Host, *, threads: int = 2) -> None:
        """Start a Dask worker."""
        self._joined += 1
        of_its_own = ("--nthreads", str(threads), "--memory-limit", "0", "--no-dashboard")
        where = ("--host", node.address, "--name", node.name)
        node.worker = node.start(
            *_dask("worker"), self.scheduler, *where, *of_its_own, **self._settings
        )

    def mend(self) -> None:
        """Heal what an earlier test has cut for good; a Dask worker that has ended is started again."""
        for node in self.nodes:
            if node.is_cut:
                assert node.worker is not None
                node.worker.wait(60)  # with its nanny: it does not come back by itself
                self._lost += 1
                # Before that, the scheduler refuses another one of the same name.
                self._told("Remove worker", self._lost)
                node.heal()
                self.join(node)
        self._told("Register worker", self._joined)

    def run(self, *definitions: Any, **settings: Any) -> Driver:
        """Start a driver on its host, which runs steps one after the other."""
        self.mend()
        self._runs += 1
        folder = self._hidden / f"drive{self._runs}"
        folder.mkdir()
        for node in self.nodes:
            node.call("rm", "-f", str(node.disk / GO))
        (folder / "steps.pickle").write_bytes(pickle.dumps(definitions))
        program = (sys.executable, str(Path(__file__).with_name("drive.py")), str(folder))
        return Driver(folder, self.driver.start(*program, **{**self._settings, **settings}))

    def close(self) -> None:
        """End all of it."""
        # The kernel kills what is in a table of processes whose first one has gone; those of the hosts
        # are within that of the switch.
        for process in reversed(self._made):
            process.kill()
        programs = [program for host in self._hosts for program in host.running]
        for process in (*self._made, *programs):
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()

    # -- inside ------------------------------------------------------------------------------

    def _told(self, what: str, count: int) -> None:
        """Wait until the scheduler has said something so often since the beginning."""
        told = self._folder / "driver-0.txt"
        until(lambda: told.read_text().count(what) >= count, 60)

    @property
    def _settings(self) -> dict[str, str]:
        return {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": self._tcp}

    def _plugged(self, name: str, number: int) -> Host:
        host = self._first(name, self.switch, number)
        lay = (
            f"ip link add {host.port} type veth peer name eth0 netns {self._seen_by_switch(host)} && "
            f"ip link set {host.port} master br0 && ip link set {host.port} up"
        )
        self.switch.call("sh", "-c", lay)
        host.call(
            "sh",
            "-c",
            f"hostname {name} && ip link set lo up && ip addr add {host.address}/24 dev eth0 && "
            "ip link set eth0 up",
        )
        return host

    def _seen_by_switch(self, host: Host) -> int:
        """Return the process id that a host's first process has within the table of the switch."""
        for line in Path(f"/proc/{host.first}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[2])
        raise AssertionError(f"{host.name} has no process table of its own")

    def _first(self, name: str, switch: Host | None, number: int) -> Host:
        """Start the first process of a host, with namespaces of its own."""
        mapped = ["--user", "--map-root-user"] if switch is None and not _may_make_them() else []
        new = ["unshare", *mapped, *_OF_ITS_OWN, "--fork", "--kill-child", "--mount-proc"]
        command = [*new, "sleep", "infinity"]
        if switch is None:
            command = [
                "setpriv",
                "--pdeathsig",
                "KILL",
                *command,
            ]  # with the tests, however they end
        else:
            command = switch.inside(*command)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._made.append(process)
        first = until(lambda: _sleeping(process), 10)
        host = Host(
            name=name,
            address=f"{_SUBNET}.{number}",
            first=first,
            port=f"p{number}",
            hidden=self._hidden,
            switch=switch,
            logs=self._folder,
        )
        self._hosts.append(host)
        return host


@dataclass
class Driver:
    """A driver at work."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What its log says so far."""
        log = self.folder / "log.txt"
        return log.read_text() if log.exists() else ""

    def results(self, seconds: float = 90) -> list[Any]:
        """Wait for its end; return for each step its result, or the exception."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended:\n{self.log}") from None
        done = self.folder / "results.pickle"
        assert done.exists(), f"it ended with {self.process.returncode}:\n{self.log}"
        return pickle.loads(done.read_bytes())

    def result(self, seconds: float = 90) -> Any:
        """Wait for its end; return the result of its only step."""
        (result,) = self.results(seconds)
        if isinstance(result, BaseException):
            raise result
        return result


@functools.cache
def _may_make_them() -> bool:
    """Return whether this process has CAP_SYS_ADMIN; without, it takes a namespace of users to have it in."""
    told = Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0]
    return bool(int(told, 16) & 1 << 21)


def _dask(what: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"distributed.cli.dask_{what}")


def _sleeping(process: subprocess.Popen[bytes]) -> int:
    """Return the process id, among those of the tests' host, of the `sleep` below a process; 0 as yet."""
    if process.poll() is not None:
        assert process.stdout is not None
        raise OSError(process.stdout.read().decode(errors="replace").strip())
    below = [process.pid]
    while below:
        pid = below.pop()
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
                return pid
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                below += map(int, children.read_text().split())
    return 0


@contextlib.contextmanager
def made(folder: Path, count: int, *, tcp: str = "30s") -> Iterator[Hosts]:
    """Make hosts; without the means for that the test is skipped, or fails where it is required."""
    if absent := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        lacking(
            "namespaces", f"there is no {', '.join(absent)} on PATH (Debian: iproute2, util-linux)"
        )
    hosts = Hosts(folder, count, tcp=tcp)
    try:
        try:
            hosts.make()
        except (OSError, AssertionError) as error:
            lacking("namespaces", f"hosts cannot be made of namespaces here: {error}")
        yield hosts
    finally:
        hosts.close()
