"""A run that did not complete is gone on with: what is done is not run again, and the bytes are the same."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import run as driver
from prefect_parallelrun.driver.cluster import Cluster
from prefect_parallelrun.driver.events import BundleEnded
from prefect_parallelrun.driver.reopening import NotResumable
from prefect_parallelrun.driver.retry_failed import retry_failed
from prefect_parallelrun.errors import (
    ErrorThresholdExceeded,
    OutputError,
    ParallelRunError,
    RunCancelled,
)
from prefect_parallelrun.output.lock import LockLost
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord, kept_definition

SCRIPT = """
import os, time

def run(mini_batch):
    rows = []
    for path in mini_batch:
        with open(path) as file:
            rows.append("number " + file.read())
    with open({trace!r}, "a") as file:
        file.write(os.path.basename(mini_batch[0]) + "\\n")
    {then}
    return rows
"""

PROGRAM = """
import logging, os, signal, sys
from pathlib import Path
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import run_step

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

source, data, folder, output, moment = sys.argv[1:]
exec(moment)
run_step(
    StepDefinition(
        name="test-step",
        config=ParallelRunConfig(
            "score.py", source_directory=source, process_count_per_node=2, mini_batch_size=2
        ),
        inputs=(FileDataset.from_files(data),),
        output=OutputFileDatasetConfig(destination=output),
    ),
    run_folder=Path(folder), run_id=Path(folder).name, fingerprint="f1", log=logging.getLogger(),
)
"""


class Step:
    """A step over 100 numbers in 50 mini-batches, of which the script leaves a trace."""

    def __init__(self, folder: Path, numbers: Path) -> None:
        self.numbers = numbers
        self.source = folder / "source"
        self.source.mkdir()
        self.paths = RunPaths(folder / "runs" / "one")
        self.output = folder / "out"
        self.trace = folder / "trace.txt"
        self.expected = "".join(f"number {n}\n" for n in range(100)).encode()
        self.write_script()

    def write_script(self, then="pass"):
        text = SCRIPT.format(trace=str(self.trace), then=then)
        (self.source / "score.py").write_text(text)

    def definition(self, **settings):
        return StepDefinition(
            name="test-step",
            config=ParallelRunConfig(
                "score.py",
                source_directory=str(self.source),
                **{"process_count_per_node": 2, "mini_batch_size": 2, **settings},
            ),
            inputs=(FileDataset.from_files(str(self.numbers)),),
            output=OutputFileDatasetConfig(destination=str(self.output)),
        )

    def run(self, *, watch=None, **settings):
        return driver.run_step(
            self.definition(**settings),
            run_folder=self.paths.root,
            run_id=self.paths.root.name,
            fingerprint="f1",
            log=logging.getLogger("test"),
            watch=watch,
        )

    def start(self, moment=""):
        """Start a driver of its own process."""
        values = [self.source, self.numbers, self.paths.root, self.output]
        return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, values), moment])

    @property
    def traced(self):
        """The mini-batches that ran, by their first item, in order; doubles included."""
        return self.trace.read_text().splitlines() if self.trace.exists() else []

    @property
    def record(self):
        return RunRecord.read(self.paths)

    @property
    def rows(self):
        return (self.output / "parallel_run_step.txt").read_bytes()

    @property
    def log(self):
        return self.paths.driver_log.read_text()


@pytest.fixture
def step(tmp_path, numbers):
    return Step(tmp_path, numbers)


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def stop_after(step, count):
    """Return a `watch` that ends the run when so many mini-batches have run."""

    def watch():
        if len(step.traced) >= count:
            raise RunCancelled("enough")

    return watch


def test_a_cancelled_run_goes_on(step):
    """What is done is not run again, the rest is, and the rows are those of an undisturbed run (R201)."""
    step.write_script(then="time.sleep(0.02)")
    with pytest.raises(RunCancelled) as error:
        step.run(watch=stop_after(step, 10))
    first = step.traced
    kept = int(str(error.value).split(" of 50 mini-batches are done and kept")[0].split()[-1])

    assert 0 < kept <= len(first) < 50
    assert "run the step again to go on" in str(error.value)
    assert error.value.run_id == "one"
    assert (step.record.state, step.record.mini_batches) == ("Cancelled", 50)
    assert "result: Cancelled" in step.paths.job_result.read_text()
    assert not step.output.exists() or list(step.output.iterdir()) == []

    result = step.run()

    assert step.rows == step.expected
    assert len(step.traced) - len(first) == 50 - kept
    assert (result.reused, result.mini_batches.reused) == (False, kept)
    assert (result.items.total, result.items.succeeded) == (100, 100)
    assert f"resumed: {kept} mini-batches are done and are not run again" in step.log
    assert step.record.state == "Completed"
    # Each sitting has nodes of its own, so that no log file is written by two.
    assert sorted(p.name for p in (step.paths.logs / "user" / "stdout").iterdir()) == [
        "node000",
        "node001",
    ]


@pytest.mark.timed
def test_a_killed_driver_is_succeeded_at_once(step):
    """After `kill -9` at most a second of finished work runs again, and nothing is lost (R200, R201)."""
    step.write_script(then="time.sleep(0.05)")
    with step.start() as process:
        wait_until(lambda: len(step.traced) >= 25)
        process.kill()
    first = len(step.traced)
    assert step.record.state == "Running"

    step.write_script()  # quick from here on; the fingerprint says that it is the same
    began = time.monotonic()
    result = step.run()

    # The heartbeat of the dead driver is not waited for.
    assert time.monotonic() - began < 20, "took longer"
    assert step.rows == step.expected
    # Two processes, 0.05 s each: a second is 40 of them.
    assert 50 <= len(step.traced) <= 50 + 40
    assert result.mini_batches.reused > first - 40
    assert "Took the run over from a driver that is gone: process" in step.log


MOMENTS = {
    "rows written, not synced": "os.fdatasync = die",
    "synced, not journalled": (
        "from prefect_parallelrun.output.recorder import Recorder; Recorder.record = die"
    ),
    "before publishing": (
        "from prefect_parallelrun.output import publication; publication.publish = die"
    ),
    "published, not written down": (
        "from prefect_parallelrun import manifest; manifest.write = die"
    ),
    "manifest written": (
        "from prefect_parallelrun import manifest; keep = manifest.write; "
        "manifest.write = lambda *a, **k: (keep(*a, **k), die())"
    ),
}


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(MOMENTS[name], id=name, marks=[pytest.mark.slow] if number % 2 == 0 else [])
        for number, name in enumerate(MOMENTS)
    ],
)
def test_killed_at_the_worst_moments(step, moment):
    """Wherever `kill -9` falls, the next sitting has the same bytes, and leaves nothing else behind (R200)."""
    with step.start(moment) as process:
        assert process.wait(60) == -signal.SIGKILL

    result = step.run()

    assert step.rows == step.expected
    assert (result.mini_batches.total, result.mini_batches.succeeded) == (50, 50)
    assert [path.name for path in step.output.iterdir()] == ["parallel_run_step.txt"]


def test_failures_get_fresh_attempts(step):
    """A run that failed by its failed items tries these again, and no other (R26, R201)."""
    step.write_script(
        then="if mini_batch[0].endswith('40.txt'): raise ValueError('no such number')"
    )
    with pytest.raises(ErrorThresholdExceeded, match="no such number") as error:
        step.run(run_max_try=2)
    assert "49 of 50 mini-batches are done and kept" in str(error.value)
    assert step.record.state == "Failed"
    assert len(step.paths.failed_items.read_text().splitlines()) == 2
    assert step.traced.count("40.txt") == 2

    step.write_script()
    result = step.run()

    assert step.rows == step.expected
    assert len(step.traced) == 49 + 2 + 1
    assert result.items.failed == 0
    assert not step.paths.failed_items.exists()
    assert not step.paths.error_summary.exists()


@pytest.mark.parametrize("together", [True, False])
def test_what_ended_just_before_the_failure_is_kept(step, monkeypatch, together):
    """Though the failure was heard of first, whether at the same moment or not (R201)."""
    step.write_script(
        then="if mini_batch[0].endswith('50.txt'): raise ValueError('no such number')"
    )
    config = {
        "mini_batch_size": 50,
        "process_count_per_node": 1,
        "run_max_try": 1,
        "error_threshold": 0,
    }
    collect = Cluster.collect
    ended, untold = [], []

    def failure_first(self, timeout_s):
        heard = collect(self, timeout_s)
        told = [event for event in heard if not isinstance(event, BundleEnded)]
        for kept in (ended, untold):
            kept += (event for event in heard if isinstance(event, BundleEnded))
        if len(ended) == 2 and len(untold) == 2:
            untold.sort(key=lambda event: event.number)
            told.append(untold.pop())
            if not together:
                return told
        if len(ended) == 2:
            told += untold
            untold.clear()
        return told

    with monkeypatch.context() as patched:
        patched.setattr(Cluster, "collect", failure_first)
        with pytest.raises(ErrorThresholdExceeded, match="1 of 2 mini-batches are done and kept"):
            step.run(**config)

    step.write_script()
    step.run(**config)
    # Two bundles that are sent at the same moment reach the node in any order.
    assert sorted(step.traced) == ["00.txt", "50.txt", "50.txt"]
    assert step.rows == step.expected


def test_what_failed_at_the_same_moment_is_left_out(step, monkeypatch):
    """What is told of why the run ended, and what is kept of it, agree; it gets fresh attempts (R206)."""
    step.write_script(then="raise ValueError('no such number')")
    collect, ended = Cluster.collect, []

    def together(self, timeout_s):
        heard = collect(self, timeout_s)
        ended.extend(event for event in heard if isinstance(event, BundleEnded))
        told = [event for event in heard if not isinstance(event, BundleEnded)]
        if len(ended) == 2:
            told += ended
            ended.clear()
        return told

    monkeypatch.setattr(Cluster, "collect", together)
    with pytest.raises(
        ErrorThresholdExceeded, match=r"^50 items failed; error_threshold=0"
    ) as error:
        step.run(mini_batch_size=50, process_count_per_node=1, run_max_try=1, error_threshold=0)
    assert len(step.traced) == 2
    assert len(step.paths.failed_items.read_text().splitlines()) == 50
    assert "1 distinct error: ValueError × 1" in str(error.value)


def test_a_run_that_completed_with_failed_items_is_gone_on_with(step):
    """Tolerated failures are tried again in the same run; its state names those that are left (R208)."""
    step.write_script(then="if '40.' in mini_batch[0] or '60.' in mini_batch[0]: raise OSError")
    assert step.run(error_threshold=-1).state == "Completed with 4 failed items"
    assert step.rows == step.expected.replace(b"number 40\nnumber 41\n", b"").replace(
        b"number 60\nnumber 61\n", b""
    )

    step.write_script(then="if '60.' in mini_batch[0]: raise OSError")
    result = step.run(error_threshold=-1)

    assert result.state == step.record.state == "Completed with 2 failed items"
    assert (result.items.succeeded, result.items.failed) == (98, 2)
    assert step.rows == step.expected.replace(b"number 60\nnumber 61\n", b"")


def test_a_completed_run_runs_nothing(step):
    """Opened again, a run that is whole is only looked at: no cluster, no copy, and it is reused (R52)."""
    step.run()
    before = (step.output / "parallel_run_step.txt").stat()

    result = step.run()

    after = (step.output / "parallel_run_step.txt").stat()
    assert result.reused
    assert len(step.traced) == 50
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "all 50 mini-batches are done" in step.log


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("x")])
def test_an_output_that_is_gone_or_changed_is_published_again(step, damage):
    """The rows are still in the run folder, so nothing runs (design 5)."""
    step.run()
    damage(step.output / "parallel_run_step.txt")

    assert step.run().reused
    assert step.rows == step.expected
    assert len(step.traced) == 50


def test_another_plan_is_another_run(step, numbers):
    """A run is not gone on with where its mini-batches are others now; the folder is left alone."""
    step.run()
    before = step.paths.record.read_text(), step.paths.job_result.read_text()
    (numbers / "99.txt").unlink()

    with pytest.raises(NotResumable, match="allow_reuse=False"):
        step.run()
    with pytest.raises(NotResumable, match="50 mini-batches, and the step has 99"):
        step.run(mini_batch_size=1)

    assert (step.paths.record.read_text(), step.paths.job_result.read_text()) == before


def test_a_source_that_changed_while_the_run_began(step):
    """Rows of an edited script get no fingerprint, and are not mixed with those of another (R201)."""
    settings = {
        "run_folder": step.paths.root,
        "run_id": "one",
        "fingerprint": "f1",
        "source_sha256": "as it was when the fingerprint was made",
        "log": logging.getLogger("test"),
    }
    driver.run_step(step.definition(), **settings)
    assert step.record.fingerprint == ""
    before = step.paths.source.read_bytes()
    step.write_script(then="time.sleep(0)")

    with pytest.raises(NotResumable, match="source changed"):
        driver.run_step(step.definition(), **settings)
    assert step.paths.source.read_bytes() == before
    assert not step.paths.source.with_suffix(".tmp").exists()


def test_a_second_driver_is_refused(step):
    """As long as one driver works on a run, another one hears who does, and touches nothing (R200)."""
    step.write_script(then="time.sleep(0.1)")
    with step.start() as process:
        wait_until(lambda: len(step.traced) >= 2)
        with pytest.raises(OutputError, match=f"process {process.pid} on"):
            step.run()
        process.kill()
    assert step.log.count("Step test-step, run one") == 1
    assert step.record.state == "Running"


def test_a_driver_that_lost_its_lock_publishes_nothing(step):
    """It stops where it is: the one that took over has the folder, its reports and the output."""

    def lose():
        if len(step.traced) >= 3:
            owner = json.loads(step.paths.lock.read_text())
            step.paths.lock.write_text(json.dumps({**owner, "token": "1", "boot": "another"}))
            lose.lock.confirm()

    step.write_script(then="time.sleep(0.02)")
    real = driver.RunLock

    class Spied(real):
        def __enter__(self):
            lose.lock = self
            return super().__enter__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "RunLock", Spied)
        with pytest.raises(LockLost):
            step.run(watch=lose)

    assert step.record.state == "Running"
    assert not step.paths.job_result.exists()
    assert not (step.output / "parallel_run_step.txt").exists()
    assert json.loads(step.paths.lock.read_text())["token"] == "1"


def test_the_step_is_written_down(step, tmp_path):
    """The run folder has what is needed to run the step without its flow, but no cluster object."""
    step.run()

    definition = kept_definition(step.paths)

    assert definition.name == "test-step"
    assert definition.list_inputs() == step.definition().list_inputs()
    assert step.paths.definition.stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path / "runs") == ["one"]


# -- retry-failed --------------------------------------------------------------------------------


def test_retry_failed_runs_only_what_failed(step):
    """With the script as it is now, into the same output; the rows are of two scripts then (R204)."""
    step.write_script(
        then="if mini_batch[0].endswith('40.txt'): raise ValueError('no such number')"
    )
    with pytest.raises(ParallelRunError):
        step.run(run_max_try=1)
    first = len(step.traced)

    step.write_script(then="rows = [row + '!' for row in rows]")
    result = retry_failed(step.paths, log=logging.getLogger("test"))

    assert step.traced[first:] == ["40.txt"]
    assert result.run_id == "one"
    assert step.rows == step.expected.replace(b"40\n", b"40!\n").replace(b"41\n", b"41!\n")
    assert (step.record.state, step.record.fingerprint) == ("Completed", "")


def test_retry_failed_again(step):
    """A retry that failed as well can be repeated, though no step takes such a run for its own (R204)."""
    step.write_script(
        then="if mini_batch[0].endswith('40.txt'): raise ValueError('no such number')"
    )
    with pytest.raises(ParallelRunError):
        step.run(run_max_try=1)
    step.write_script(then="raise OSError")
    with pytest.raises(ParallelRunError, match="retry-failed one"):
        retry_failed(step.paths, log=logging.getLogger("test"))
    step.write_script()

    assert retry_failed(step.paths, log=logging.getLogger("test")).items.failed == 0
    assert step.rows == step.expected


def test_retry_failed_of_missing_rows(step):
    """A mini-batch of which rows are missing is replaced as a whole (R16, R204)."""
    step.write_script(then="if mini_batch[0].endswith('40.txt'): return rows[:1]")
    assert step.run(error_threshold=-1).items.failed == 1
    first = len(step.traced)

    step.write_script()
    result = retry_failed(step.paths, log=logging.getLogger("test"))

    assert step.traced[first:] == ["40.txt"]
    assert result.items.failed == 0
    assert step.rows == step.expected


def test_retry_failed_refuses(step, numbers):
    """Not where the step itself goes on, where nothing failed, or where the inputs are others (R204)."""
    step.write_script(then="time.sleep(0.02)")
    with pytest.raises(RunCancelled):
        step.run(watch=stop_after(step, 10))
    with pytest.raises(OutputError, match="run the step again, and it goes on"):
        retry_failed(step.paths, log=logging.getLogger("test"))

    step.run()
    with pytest.raises(OutputError, match="nothing failed in run one"):
        retry_failed(step.paths, log=logging.getLogger("test"))

    step.write_script(then="raise OSError")
    with pytest.raises(OutputError, match="is no run folder"):
        retry_failed(RunPaths(step.source), log=logging.getLogger("test"))


def test_retry_failed_with_mended_inputs(step, numbers):
    """A file that was broken may have been mended; one more or less is another input (R204)."""
    step.write_script(then="if 'broken' in rows[0]: raise ValueError('broken')")
    (numbers / "40.txt").write_text("broken")
    with pytest.raises(ParallelRunError):
        step.run(run_max_try=1)

    (numbers / "new.txt").write_text("more")
    with pytest.raises(OutputError, match="the inputs of run one are others"):
        retry_failed(step.paths, log=logging.getLogger("test"))
    (numbers / "new.txt").unlink()
    (numbers / "40.txt").write_text("40")

    assert retry_failed(step.paths, log=logging.getLogger("test")).items.failed == 0
    assert step.rows == step.expected
