"""Two flow runs at once: never two drivers on one run, nor two runs in one place."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from prefect_parallelrun import FileDataset, OutputError, ParallelRunConfig, ParallelRunStep

pytestmark = pytest.mark.timeout(180)

SCRIPT = """
import os, time
def run(mini_batch):
    if os.path.exists({hold!r}):
        open({hold!r} + "-begun", "w").close()
    while os.path.exists({hold!r}):
        time.sleep(0.02)
    return [path[-5] for path in mini_batch]
"""
PROGRAM = """
import sys
from prefect import flow
from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunStep

folder = sys.argv[1]
step = ParallelRunStep(
    "held-step",
    ParallelRunConfig(f"{folder}/scripts/score.py", process_count_per_node=1, run_invocation_timeout=120),
    [FileDataset.from_files(f"{folder}/data/a.txt")],
    output=f"{folder}/out",
)

@flow
def main():
    step()

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def held(here, tmp_path):
    """A flow in a process of its own, whose step runs until `hold` is removed."""
    hold = tmp_path / "hold"
    hold.touch()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "score.py").write_text(SCRIPT.format(hold=str(hold)))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(program), str(tmp_path)],
            env=here.environment(tmp_path / "runs"),
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 45
        while not (tmp_path / "hold-begun").exists():
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            assert process.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_flow_run_while_the_first_runs(held, tmp_path):
    """The same step, or other work for the same place, is refused with who has it; afterwards both go (R200)."""

    def step(name, files, **settings):
        config = ParallelRunConfig(
            str(tmp_path / "scripts" / "score.py"), process_count_per_node=1, **settings
        )
        data = [FileDataset.from_files(str(tmp_path / "data" / one)) for one in files]
        return ParallelRunStep(name, config, data, output=tmp_path / "out")

    same = step("held-step", ["a.txt"])
    changed = step("held-step", ["a.txt", "b.txt"])
    another = step("other-step", ["b.txt"])
    (run,) = (tmp_path / "runs" / "held-step").iterdir()
    rows = tmp_path / "out" / "parallel_run_step.txt"

    with pytest.raises(OutputError, match=rf"by another driver: process {held.pid} on .* Wait"):
        same()
    for one in (changed, another):
        with pytest.raises(
            OutputError, match=rf"{rows} is being written by run {run.name}: process {held.pid} on"
        ):
            one()

    (tmp_path / "hold").unlink()
    assert held.wait(30) == 0, (tmp_path / "log.txt").read_text()
    assert rows.read_text() == "a\n"
    assert same().reused
    assert changed().items.succeeded == 2
    assert rows.read_text() == "a\nb\n"
    another()
    assert rows.read_text() == "b\n"
