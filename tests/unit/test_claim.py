from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading

import pytest

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.delivery import Delivery
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.output.claim import OutputClaim
from prefect_parallelrun.paths import RunPaths

HOLDER = """
import sys, time
from pathlib import Path
from prefect_parallelrun.output.claim import OutputClaim
from prefect_parallelrun.paths import RunPaths
with OutputClaim(RunPaths(Path(sys.argv[1])), sys.argv[2]):
    print("claimed", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def runs(tmp_path):
    """Two runs of different steps below one run root."""
    folders = [tmp_path / "runs" / f"step-{one}" / f"run-{one}" for one in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    return [RunPaths(folder) for folder in folders]


@pytest.fixture
def holder(runs, tmp_path):
    """Another process, of which a run writes to `out/rows.txt`."""
    values = [str(runs[0].root), str(tmp_path / "out" / "rows.txt")]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *values], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def claimed(paths, definition):
    return Delivery(definition, paths).claimed(logging.getLogger("test"))


@pytest.fixture
def step(tmp_path):
    """Return a function that makes a step with an output."""
    (tmp_path / "score.py").write_text("def run(mini_batch): return mini_batch")

    def make(output, **settings):
        return StepDefinition(
            name="test-step",
            config=ParallelRunConfig(str(tmp_path / "score.py"), **settings),
            inputs=(FileDataset.from_files(str(tmp_path)),),
            output=None if output is None else OutputFileDatasetConfig(destination=str(output)),
        )

    return make


def test_who_writes_there_is_named(runs, holder, tmp_path, step):
    """A second run hears which run writes to the place, in which process, and what to do (R200)."""
    definition = step(tmp_path / "out", append_row_file_name="rows.txt")

    with pytest.raises(OutputError) as error, claimed(runs[1], definition):
        pass

    place = tmp_path / "out" / "rows.txt"
    for told in (str(place), "run run-a", f"process {holder.pid} on", "Wait", "another output"):
        assert told in str(error.value)


def test_a_killed_driver_has_no_claim(runs, holder, tmp_path):
    """What a driver claimed that is dead is free at once, and what ended leaves no file."""
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)

    with OutputClaim(runs[1], str(tmp_path / "out" / "rows.txt")) as claim:
        assert claim.before.run == "run-a"
        claim.confirm()

    assert list(runs[0].claims.iterdir()) == []


SAME = {
    "append_row": ("out", "out", {}, {}),
    "through a link": ("out", "link", {}, {}),
    "summary_only": ("out", "out/", *[{"output_action": "summary_only"}] * 2),
    "remote": ("memory://out", "memory://out/", {}, {}),
    "remote summary_only": (
        "memory://out",
        "memory://out",
        *[{"output_action": "summary_only"}] * 2,
    ),
}
OTHERS = {
    "another file": ("out", "out", {}, {"append_row_file_name": "others.txt"}),
    "another folder": ("out", "out2", {}, {}),
    "a file where a script writes": ("out", "out", {"output_action": "summary_only"}, {}),
    "another bucket": ("memory://out", "memory://out2", {}, {}),
    "folders of the runs": (None, None, {}, {}),
}


@pytest.mark.parametrize("case", [*SAME, *OTHERS])
def test_what_is_one_place(runs, tmp_path, step, case):
    """One file, or one folder that scripts fill, by whatever path, local or remote, is one place."""
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    first, second, *settings = {**SAME, **OTHERS}[case]
    places = [
        one if one is None or "://" in one else f"{tmp_path}/{one}" for one in (first, second)
    ]
    one, other = (step(place, **more) for place, more in zip(places, settings, strict=True))

    with claimed(runs[0], one):
        if case in SAME:
            with pytest.raises(OutputError, match="is being written by run run-a"):
                claimed(runs[1], other).__enter__()
        else:
            with claimed(runs[1], other):
                pass
    with claimed(runs[1], other):
        pass


def test_a_claim_that_was_taken_over(runs, tmp_path):
    """A driver that slept, and was succeeded, publishes nothing in the other's place."""
    with OutputClaim(runs[0], str(tmp_path / "out")) as slept:
        (file,) = runs[0].claims.iterdir()
        file.write_text(file.read_text().replace("run-a", "run-b"))
        with pytest.raises(OutputError, match=r"leaves the output .*out as it is"):
            slept.confirm()

    assert "run-b" in file.read_text()


def test_many_at_once(runs, tmp_path):
    """However often claims come and go, and with them their files, one run at a time has the place."""
    inside, most, refused = [], [], []

    def claim_often():
        for _ in range(30):
            try:
                with OutputClaim(runs[0], str(tmp_path / "out")):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except OutputError:
                refused.append(1)

    threads = [threading.Thread(target=claim_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(most) == {1}
    assert len(most) + len(refused) == 120


def test_where_claims_cannot_be_written(runs, tmp_path, step, caplog):
    """A run root in which no claim can be written costs the run nothing but a warning."""
    runs[0].claims.write_text("in the way")

    with claimed(runs[0], step(tmp_path / "out")):
        pass

    assert "not kept from writing" in caplog.text
