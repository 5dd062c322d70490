"""What becomes of a run whose worker processes cannot all be started; limits made small."""

from __future__ import annotations

import textwrap
import time

import pytest

from prefect_parallelrun.driver import policy
from prefect_parallelrun.errors import InitFailed, NoProgress
from tests.dask.conftest import lines
from tests.dask.faults import EXPECTED

HEAD = "import os, time\nfrom pathlib import Path\n"
RUN = "\ndef run(mini_batch):\n    return [Path(p).name for p in mini_batch]\n"


def script(init):
    """An entry script with this `init()`, the head of it first."""
    return HEAD + textwrap.dedent(init) + RUN


def test_an_init_that_fails_once_in_three_starts_costs_nothing(run, numbers, tmp_path):
    """R87: each failed start is followed by another; all mini-batches get their first attempt."""
    result = run(
        script("""
        def init():
            here = Path(os.environ["HERE"])
            number = len(list(here.glob("start-*")))
            (here / f"start-{os.getpid()}").touch()
            if number % 3 == 0:
                raise OSError("the licence server is busy")
        """),
        numbers,
        node_count=2,
        process_count_per_node=2,
        environment_variables={"HERE": str(tmp_path)},
    )

    assert lines(result) == EXPECTED
    assert (result.attempts, result.items.failed) == (10, 0)


@pytest.mark.timed
def test_an_init_that_hangs_everywhere_ends_the_run_with_the_line_it_hangs_at(
    run, numbers, monkeypatch
):
    """R90: after the limit, once, and not after three times of it."""
    monkeypatch.setattr(policy, "INIT_TIMEOUTS", 1)
    monkeypatch.setattr(policy, "INIT_GRACE_S", 1.0)
    began = time.monotonic()

    with pytest.raises(NoProgress) as caught:
        run(
            script("""
            def init():
                model = wait_for_model()

            def wait_for_model():
                time.sleep(600)
            """),
            numbers,
            node_count=2,
            process_count_per_node=2,
            run_invocation_timeout=2,
        )

    assert time.monotonic() - began < 2 * 3, "took longer"
    assert "import and init() did not end in 3 seconds in any of 4 processes" in str(caught.value)
    assert "One of them hung at score.py:8 in wait_for_model" in str(caught.value)
    assert "in init" in str(caught.value)  # the stack


def test_an_init_that_fails_on_one_node_only_leaves_the_work_to_the_other(run, numbers, tmp_path):
    """R87, R88: that node is given up after three failed starts per process; the run completes."""
    result = run(
        script("""
        def init():
            marker = os.environ["PARALLELRUN_PROCESS"]
            (Path(os.environ["HERE"]) / f"start-{os.getpid()}").write_text(marker)
            if "/node000/" in marker:
                raise OSError("no GPU here")
        """),
        numbers,
        node_count=2,
        process_count_per_node=2,
        mini_batch_size=1,
        environment_variables={"HERE": str(tmp_path)},
    )

    assert lines(result) == EXPECTED
    assert (result.attempts, result.items.failed) == (100, 0)
    starts = [file.read_text().split("/")[1] for file in tmp_path.glob("start-*")]
    assert 6 <= starts.count("node000") <= 7  # one may be under way when the sixth fails
    assert starts.count("node001") == 2


def test_an_init_that_fails_everywhere_ends_the_run_with_its_own_error(run, numbers):
    """R87, R89: no node is left to try."""
    with pytest.raises(InitFailed) as caught:
        run(
            script("""
            def init():
                raise OSError("the model is not there")
            """),
            numbers,
            node_count=2,
            process_count_per_node=1,
        )

    assert "no worker process is left on any node" in str(caught.value)
    assert "init() failed, 6 times" in str(caught.value)
    assert "the model is not there" in str(caught.value)


def test_slow_failures_of_init_end_the_run_before_each_node_has_given_up(run, numbers, monkeypatch):
    """R89: an old run, no start that ever succeeded, twice as many failed as processes are wanted."""
    monkeypatch.setattr(policy, "STARTUP_S", 1.0)
    with pytest.raises(InitFailed) as caught:
        run(
            script("""
            def init():
                time.sleep(0.6)
                raise OSError("the model is not there")
            """),
            numbers,
            node_count=1,
            process_count_per_node=2,
        )

    assert "no init() has succeeded" in str(caught.value)
    assert "the model is not there" in str(caught.value)
