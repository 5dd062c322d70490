from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    TaskRunFilter,
    TaskRunFilterName,
)
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunStep
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord

SCRIPT = """
import sys
from pathlib import Path

def run(mini_batch):
    word = sys.argv[2] if len(sys.argv) > 2 else "row"
    return [f"{word} {path.name} {text(path)}" for path in map(Path, mini_batch)]

def text(path):
    return path.read_text().strip().replace("\\n", "|")
"""


@pytest.fixture(autouse=True)
def _prefect(prefect_server, tmp_path, monkeypatch):
    """Every test here runs against the session's server, with run folders of its own."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))


class Files:
    """A script and three input files, from which steps are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "scripts" / "score.py"
        self.script.parent.mkdir()
        self.script.write_text(SCRIPT)
        self.data = folder / "data"
        self.data.mkdir()
        for name in "abc":
            (self.data / f"{name}.txt").write_text(name.upper())

    def step(self, name="score-files", inputs=None, config=None, **settings):
        settings = {"arguments": ["--word", "row"], **settings}
        return ParallelRunStep(
            name,
            ParallelRunConfig(
                str(self.script),
                **{"mini_batch_size": 2, "process_count_per_node": 1, **(config or {})},
            ),
            [FileDataset.from_files(str(self.data))] if inputs is None else inputs,
            **settings,
        )

    def rows(self, word="row"):
        """What a step over these files gives, in input order."""
        return [f"{word} {p.name} {p.read_text()}" for p in sorted(self.data.iterdir())]

    def runs(self, name="score-files"):
        """The run folders of a step, oldest first."""
        folder = self.folder / "runs" / name
        return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def files(tmp_path):
    """A script and three input files."""
    return Files(tmp_path)


def rows_of(result):
    """The lines of a step's output."""
    return Path(result.append_row_file).read_text().splitlines()


@pytest.fixture
def read_rows():
    """The function that reads a step's output."""
    return rows_of


STUCK_SCRIPT = """
import os, subprocess, time

def run(mini_batch):
    (path,) = mini_batch
    if os.path.exists({flag!r}) and path[-5] not in "ab":
        # Not to be found among our children, nor by its process group.
        subprocess.Popen(["sleep", "300"], start_new_session=True)
        open({flag!r} + "-" + path[-5], "w").close()
        time.sleep(300)
    return [path[-5]]
"""

PROGRAM = """
import asyncio, os, sys, time
from prefect import flow
from prefect_dask import DaskTaskRunner
from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunStep

mode, name, script, data, output = sys.argv[1:]
step = ParallelRunStep(
    "score-files",
    ParallelRunConfig(script, mini_batch_size=1, process_count_per_node=2, run_invocation_timeout=600),
    [FileDataset.from_files(data)],
    output=output,
)

@flow(flow_run_name=name)
def main():
    return step()

@flow(flow_run_name=name)
def thread():
    return step.submit().result()

@flow(flow_run_name=name, task_runner=DaskTaskRunner(cluster_kwargs={"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}))
def dask():
    return step.submit().result()

@flow(flow_run_name=name + "-sub")
def sub():
    return step.submit().result()

@flow(flow_run_name=name)
def subflow():
    return sub()

@flow(flow_run_name=name)
def timeout():
    future = step.submit()
    while not os.path.exists(output + "-late"):
        time.sleep(0.05)
    raise TimeoutError("as with timeout_seconds")

@flow(flow_run_name=name)
async def async_main():
    return step()

@flow(flow_run_name=name)
async def async_submit():
    return await asyncio.to_thread(step.submit().result)

if __name__ == "__main__":
    if mode == "plain":
        step()
    elif mode.startswith("async"):
        asyncio.run(globals()[mode]())
    else:
        globals()[mode]()
"""


class Flow:
    """A flow in a process of its own, of which two mini-batches end at once, and the others never."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flag = folder / "slow"
        self.flag.write_text("")
        self.data = folder / "data"
        self.data.mkdir()
        for letter in "abcdef":
            (self.data / f"{letter}.txt").write_text("")
        self.script = folder / "scripts" / "score.py"
        self.script.parent.mkdir()
        self.script.write_text(STUCK_SCRIPT.format(flag=str(self.flag)))
        self.program = folder / "flow.py"
        self.program.write_text(PROGRAM)
        self.log = folder / "log.txt"
        self.name = f"flow-{folder.parent.name}-{folder.name}".lower()

    def start(self, mode):
        self.mode = mode
        values = [mode, self.name, self.script, self.data, self.folder / "out"]
        environment = {
            **os.environ,
            "PREFECT_HOME": str(PREFECT_HOME.value()),
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(self.program), *map(str, values)],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        return self.process

    def reads_long(self):
        """Let its inputs take many minutes to be read, before there is a run."""
        self.long = self.data / "long.bin"
        self.long.touch()
        os.truncate(self.long, 2**39)
        program = self.program.read_text()
        assert "from_files(data)" in program
        self.program.write_text(
            program.replace("from_files(data)", "from_files(data, content=True)")
        )

    def is_reading(self):
        """Whether it reads its inputs."""
        with contextlib.suppress(OSError):
            files = Path(f"/proc/{self.process.pid}/fd").iterdir()
            return str(self.long) in {os.readlink(file) for file in files}
        return False

    def started(self):
        """Wait until something is done and written down, and two mini-batches that never end have begun.

        The second that is done may wait, in a bundle, for the one after it.
        """
        wait_until(lambda: len(list(self.folder.glob("slow-*"))) >= 2, 60, self.said)
        wait_until(lambda: self.done() >= 1, 10, self.said)
        assert len(self.left()) == 4  # two worker processes, two grandchildren

    def done(self):
        with Journal(self.paths.journal) as journal:
            return journal.totals().mini_batches_succeeded

    @property
    def has_run(self):
        return (self.folder / "runs" / "score-files").exists()

    @property
    def paths(self):
        (run,) = (self.folder / "runs" / "score-files").iterdir()
        return RunPaths(run)

    @property
    def record(self):
        return RunRecord.read(self.paths)

    def left(self):
        """The processes of the run that are still there, grandchildren included."""
        mark = f"PARALLELRUN_PROCESS={self.paths.root.name}".encode()
        return [
            pid
            for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
            if mark in environ_of(pid)
        ]

    def gone(self, since):
        """Wait until no process of the run is left; return the seconds that this took."""
        wait_until(lambda: not self.left(), 30, self.said)
        self.gone_s = time.monotonic() - since
        return self.gone_s

    def said(self):
        return self.log.read_text()[-6000:]

    def run_again(self):
        """Run the same flow, which nothing holds up now, and return what it came to."""
        self.killed = self.process.pid
        self.flag.unlink()
        assert self.start("plain").wait(60) == 0, self.said()
        assert (self.folder / "out" / "parallel_run_step.txt").read_text() == "a\nb\nc\nd\ne\nf\n"
        return self.record

    def run_out_of_time(self):
        """Let the flow end as one does that took longer than its timeout_seconds."""
        (self.folder / "out-late").touch()

    def flow_run(self):
        with get_client(sync_client=True) as client:
            wanted = FlowRunFilter(name=FlowRunFilterName(any_=[self.name]))
            (run,) = client.read_flow_runs(flow_run_filter=wanted)
            return run

    def task_state(self):
        """The final state of the step's task run, as Prefect has it."""
        flows = FlowRunFilter(name=FlowRunFilterName(any_=[self.name, f"{self.name}-sub"]))
        tasks = TaskRunFilter(name=TaskRunFilterName(any_=["score-files"]))
        states = []

        def ended():
            with get_client(sync_client=True) as client:
                runs = client.read_task_runs(flow_run_filter=flows, task_run_filter=tasks)
            states[:] = [run.state for run in runs]
            return states and states[0].is_final()

        wait_until(ended, 15, lambda: f"{states}\n{self.said()}")
        return states[0]


def environ_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def wait_until(condition, seconds, said):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.02)


@pytest.fixture
def started(tmp_path):
    """Return a function that starts a flow, and kills what a failed test leaves of it."""
    flows = []

    def start(mode, *, reading=False):
        one = Flow(tmp_path)
        flows.append(one)
        if reading:
            one.reads_long()
            one.start(mode)
            wait_until(one.is_reading, 60, one.said)
        else:
            one.start(mode)
            one.started()
        return one

    yield start
    for one in flows:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()
        for pid in one.left() if one.has_run else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
