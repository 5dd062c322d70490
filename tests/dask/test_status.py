"""A run watched from another process, while it goes on and when its driver is gone (R54, R242)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefect_parallelrun.paths import RunPaths

SCRIPT = """
import time
from pathlib import Path

def run(mini_batch):
    while Path(mini_batch[0]).stem >= "02" and not Path({gate!r}).exists():
        time.sleep(0.02)
    if Path(mini_batch[0]).stem == "03":
        raise ValueError("bad file")
    return [Path(path).name for path in mini_batch]
"""
DRIVER = """
import logging, sys
from pathlib import Path
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import run_step

folder = Path(sys.argv[1])
config = ParallelRunConfig(
    str(folder / "scripts" / "score.py"), mini_batch_size=1, process_count_per_node=1,
    run_max_try=1, error_threshold=5)
run_step(
    StepDefinition(name="score-files", config=config,
        inputs=(FileDataset.from_files(str(folder / "data")),)),
    run_folder=folder / "runs" / "score-files" / "one", run_id="one", fingerprint="f",
    log=logging.getLogger("test"))
"""
LIMIT_S = 40.0


class Watched:
    """A run in a process of its own, whose mini-batches from the third on wait for `gate`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.gate = folder, folder / "gate"
        self.paths = RunPaths(folder / "runs" / "score-files" / "one")
        for name in ("scripts", "data"):
            (folder / name).mkdir()
        (folder / "scripts" / "score.py").write_text(SCRIPT.format(gate=str(self.gate)))
        for number in range(5):
            (folder / "data" / f"{number:02}.txt").write_text("x")
        self.environment = {
            **os.environ,
            "PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT": str(folder / "runs"),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder)], env=self.environment
        )

    def status(self) -> tuple[int, dict]:
        called = self.call("status", "score-files", "--json")
        out, err = called.communicate(timeout=LIMIT_S)
        return called.returncode, json.loads(out) if out else {"stderr": err}

    def call(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect_parallelrun", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_two_are_done(self) -> tuple[int, dict]:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            code, told = self.status()
            if (told.get("standing") or {}).get("succeeded") == 2:
                return code, told
        raise AssertionError(told)


@pytest.fixture
def watched(tmp_path):
    made = Watched(tmp_path)
    yield made
    made.gate.touch()
    if made.process.poll() is None:
        made.process.kill()
    made.process.wait(LIMIT_S)


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_run_is_watched(watched):
    """`status` tells where it stands now, `--follow` until it ends, and exits as the run did."""
    code, told = watched.wait_until_two_are_done()
    assert (code, told["state"], told["stage"]) == (4, "Running", "running")
    assert told["standing"]["planned"] == 5
    assert told["ended_at"] is None
    assert f"process {watched.process.pid} on" in told["driver"]

    following = watched.call("status", "one", "--follow")
    line = following.stderr.readline()
    assert "Processed 2 of 5 mini-batches" in line
    watched.gate.touch()
    out, more = following.communicate(timeout=LIMIT_S)
    # One line for each stage, and no more while numbers change: they are told every ten seconds.
    assert more.count("Processed") <= 1

    assert following.returncode == 3
    assert "state         Completed with 1 failed item\n" in out
    assert "items         in 5 = out 4 + failed 1 (items)\n" in out
    assert watched.process.wait(LIMIT_S) == 0


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_run_whose_driver_is_killed(watched):
    """It is Interrupted, though its record says Running, and what was done is told (R201)."""
    watched.wait_until_two_are_done()
    following = watched.call("status", "one", "--follow", "--json")
    assert following.stderr.readline()

    watched.process.send_signal(signal.SIGKILL)
    out, _ = following.communicate(timeout=LIMIT_S)

    told = json.loads(out)
    assert following.returncode == 1
    assert (told["state"], told["going_on"], told["driver"]) == ("Interrupted", False, None)
    assert told["mini_batches"]["succeeded"] == 2
