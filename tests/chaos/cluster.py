"""A Dask cluster in processes of its own, so that it survives whatever happens to a driver.

As a program it holds the cluster until its stdin ends, and answers each line there with what is on
the Dask workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.chaos import processes

CLUSTER_MARK = "PARALLELRUN_CHAOS_CLUSTER"
"""In the environment of the cluster's processes, and so of the supervisors that they start."""
START_S = 60.0
ANSWER_S = 60.0
"""More than the 30 s for which Dask tries to reach a Dask worker that has just been killed."""
WHOLE_S = 120.0


class ChaosCluster:
    """The harness's side: starts the program, asks it, ends it."""

    def __init__(self, folder: Path, workers: int = 3) -> None:
        """Start; `folder` gets the logs and the nodes' temporary folders."""
        self.workers = workers
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.log = folder / "cluster.log"
        self.mark = f"{CLUSTER_MARK}={os.getpid()}-{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.cluster", str(workers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, name: value, "TMPDIR": str(self.temporary)},
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )
        self.address: str = self._answer(START_S)["address"]

    @property
    def pid(self) -> int:
        """Of the program, which is the parent of the Dask workers."""
        return self._process.pid

    def state(self) -> dict[str, dict[str, Any]]:
        """Return, by address of a Dask worker, its `pid`, `plugins` and `tasks` of ours.

        Raises:
            TimeoutError: a Dask worker does not answer.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("state\n")
        self._process.stdin.flush()
        answer: dict[str, dict[str, Any]] = self._answer(ANSWER_S)["workers"]
        return answer

    def wait_whole(self, limit_s: float = WHOLE_S) -> None:
        """Wait until all Dask workers are there and answer."""
        deadline = time.monotonic() + limit_s
        while len(self.state()) < self.workers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"of {self.workers} Dask workers some did not come back")
            time.sleep(0.05)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            # All of it: a Dask worker that is stopped would keep our pipe open.
            processes.kill_all(processes.marked(self.mark))
            self._process.wait()
        self._process.stdout.close()

    def _answer(self, limit_s: float) -> dict[str, Any]:
        lines: list[str] = []
        assert self._process.stdout is not None
        reader = threading.Thread(
            target=lambda out: lines.append(out.readline()),
            args=[self._process.stdout],
            daemon=True,
        )
        reader.start()
        reader.join(limit_s)
        if not lines or not lines[0]:
            raise TimeoutError(f"the Dask cluster does not answer; its log: {self.log}")
        answer: dict[str, Any] = json.loads(lines[0])
        return answer


def main() -> None:
    """Hold a cluster; see the module."""
    import dask
    import distributed

    # A LocalCluster gives up a Dask worker that is not there 15 s after it was lost, even if it was back
    # and is just being restarted from another kill.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 h"}),
        distributed.LocalCluster(
            n_workers=int(sys.argv[1]),
            threads_per_worker=2,
            memory_limit=0,
            dashboard_address=None,
            preload=["tests.chaos.stacks"],
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        print(json.dumps({"address": cluster.scheduler_address}), flush=True)
        for _ in sys.stdin:
            print(json.dumps({"workers": look(client)}), flush=True)


def look(client: Any) -> dict[str, dict[str, Any]]:
    """Return what is on each Dask worker; one that is just going away is left out."""

    def of_worker(dask_worker: Any) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "plugins": [name for name in dask_worker.plugins if name.startswith("parallelrun")],
            "tasks": [str(key) for key in dask_worker.state.tasks],
        }

    answers = client.run(of_worker, on_error="return")
    return {address: answer for address, answer in answers.items() if isinstance(answer, dict)}


if __name__ == "__main__":
    main()
