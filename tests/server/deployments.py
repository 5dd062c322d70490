"""Flows that are deployed, each with one step, and what starts, cancels and looks at runs of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.deployments import run_deployment

from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord

START_S = 120.0
FILES = "abcdef"

SCRIPT = """
import os, subprocess, time
from pathlib import Path

def run(mini_batch):
    for path in mini_batch:
        if os.path.exists(SLOW) and path[-5] not in "ab":
            # Not to be found among our children, nor by its process group.
            subprocess.Popen(["sleep", "300"], start_new_session=True)
            Path(SLOW, os.environ["PARALLELRUN_PROCESS"].split("/")[0] + "-" + path[-5]).touch()
            time.sleep(300)
    return [path[-5] for path in mini_batch]
"""

PROGRAM = """
import sys
from pathlib import Path
from prefect import flow, serve
from prefect._internal import observers
from prefect_dask import DaskTaskRunner
from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunStep, PipelineParameter

HERE = Path(__file__).resolve().parent

def step(name):
    config = ParallelRunConfig(
        str(HERE / "scripts" / "score.py"),
        mini_batch_size=PipelineParameter("size", 1),
        run_max_try=PipelineParameter("tries", 3),
        process_count_per_node=2,
        run_invocation_timeout=600,
    )
    data = PipelineParameter("data", FileDataset.from_files(str(HERE / "data")))
    return ParallelRunStep(name, config, [data], output=str(HERE / "out" / name))

@flow
def score(name: str, size: int = 2, tries: int = 3, data: str | list | dict = str(HERE / "data")):
    return step(name)().run_id

@flow
def direct():
    return step("direct")().run_id

@flow
def thread():
    return step("thread").submit().result().run_id

@flow(task_runner=DaskTaskRunner(cluster_kwargs={"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}))
def dask():
    return step("dask").submit().result().run_id
def refuse(**_):
    raise ConnectionError("as behind a proxy that knows no websockets")

if __name__ == "__main__":
    if "polled" in sys.argv:
        observers.get_events_subscriber = refuse
    serve(*[one.to_deployment(sys.argv[1]) for one in (score, direct, thread, dask)])
"""

DEPLOY = """
import sys
from pathlib import Path
from prefect import flow

for name in sys.argv[1:]:
    flow.from_source(str(Path(__file__).resolve().parent), f"deployed.py:{name}").deploy(
        "worked", work_pool_name="processes", print_next_steps=False
    )
"""


@dataclass
class Started:
    """A flow run that was started through its deployment."""

    id: UUID
    name: str
    """Of its step."""
    project: Project

    @property
    def state(self):
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.id).state

    def ended(self):
        """Wait for its end; return the final state."""
        wait_until(
            lambda: self.state is not None and self.state.is_final(),
            START_S,
            lambda: f"{self.state}\n{self.project.said()}",
        )
        return self.state

    def task_runs(self):
        with get_client(sync_client=True) as client:
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=[self.id]))
            return client.read_task_runs(flow_run_filter=wanted)

    @property
    def paths(self):
        (run,) = (self.project.folder / "runs" / self.name).iterdir()
        return RunPaths(run)

    @property
    def record(self):
        return RunRecord.read(self.paths)

    def stuck(self):
        """Wait until two mini-batches have begun that never end."""
        wait_until(lambda: len(self._begun()) >= 2, START_S, self.project.said)
        assert len(self.left()) == 4  # two worker processes, two grandchildren

    def _begun(self):
        runs = self.project.folder / "runs" / self.name
        names = os.listdir(runs) if runs.exists() else []
        return [one for one in os.listdir(self.project.slow) if one.rpartition("-")[0] in names]

    def left(self):
        """The processes of the run that are still there, grandchildren included."""
        mark = f"PARALLELRUN_PROCESS={self.paths.root.name}".encode()
        return [
            pid
            for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
            if mark in environ_of(pid)
        ]


class Project:
    """A folder with flows, a script and six files; who serves and runs them ends with it."""

    def __init__(self, folder: Path, server) -> None:
        self.folder = folder
        self.slow = folder / "slow"
        """While it is there, four of the six files take for ever."""
        self.log = folder / "log.txt"
        self._environment = {
            **server.environment(folder / "runs"),
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        self._started: list[subprocess.Popen[bytes]] = []
        for name in ("scripts", "data"):
            (folder / name).mkdir()
        for letter in FILES:
            (folder / "data" / f"{letter}.txt").touch()
        script = f"SLOW = {str(self.slow)!r}\n{SCRIPT}"
        (folder / "scripts" / "score.py").write_text(script)
        (folder / "deployed.py").write_text(PROGRAM)
        (folder / "deploy.py").write_text(DEPLOY)

    def serve(self, deployment, **environment):
        """Serve all flows under one name; return when that is so."""
        command = [sys.executable, "deployed.py", deployment]
        self._begin(command, environment, "Your deployments are being served")

    def work(self, *flows):
        """Deploy flows to a work pool, and start a worker of it."""
        self.prefect("work-pool", "create", "processes", "--type", "process")
        self._call([sys.executable, "deploy.py", *flows])
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "processes"]
        self._begin(command, {}, "started!")

    def prefect(self, *words):
        """Call Prefect's command line; return what it said."""
        return self._call([sys.executable, "-m", "prefect", "--no-prompt", *words])

    def run(self, deployment, step, **parameters):
        """Start a flow run with parameters, as the pages do."""
        found = run_deployment(deployment, parameters=parameters, timeout=0, as_subflow=False)
        return Started(found.id, step, self)

    def said(self):
        return self.log.read_text(errors="replace")[-8000:]

    def end(self):
        for process in self._started:
            process.terminate()
        for process in self._started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _call(self, command):
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _begin(self, command, environment, until):
        told = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self._environment, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)

        def begun():
            assert process.poll() is None, self.said()
            return until in self.log.read_text(errors="replace")[told:]

        wait_until(begun, START_S, self.said)


def environ_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def wait_until(condition, seconds, said):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)
