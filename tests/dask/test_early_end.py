"""Runs that end before all is tried, or while nothing of the work is left: by failures, or by who watches."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import distributed
import pytest

from prefect_parallelrun.driver import target
from prefect_parallelrun.driver.schedule import TICK_S
from prefect_parallelrun.errors import ClusterError, EntryScriptError
from prefect_parallelrun.node import agent
from tests.dask.conftest import lines
from tests.dask.faults import EXPECTED, Meanwhile, living, supervisor_of, told, until


class Stop(Exception):
    """What `watch` raises."""


# -- signals ---------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_signal_that_is_handled_late_does_not_hold_the_driver_up(run, numbers):
    """Design 5: after it, too, whoever watches is asked whether the run is to stop."""
    handled, signals = threading.Event(), []

    def handle(*_):
        time.sleep(3 * TICK_S)  # as long as a busy machine may take to come to it
        handled.set()

    def watch():
        if started.exists() and not handled.is_set():
            # In the middle of the wait for news that comes next.
            signals.append(threading.Timer(TICK_S / 2, os.kill, (os.getpid(), signal.SIGUSR1)))
            signals[-1].start()
        if handled.is_set():
            raise Stop

    started = numbers.parent / "started"
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(Stop):
            run(
                f"""
                import pathlib, time

                def run(mini_batch):
                    pathlib.Path({str(started)!r}).touch()
                    time.sleep(300)
                """,
                numbers,
                watch=watch,
                run_invocation_timeout=600,
            )
    finally:
        for one in signals:
            one.join()
        signal.signal(signal.SIGUSR1, before)


# -- all fail alike --------------------------------------------------------------------------

ALL_FAIL = """
    def run(mini_batch):
        raise ValueError("the model knows no such thing")
"""


def test_a_run_in_which_all_fail_alike_stops_and_says_so(run, numbers, tmp_path):
    """R209: after ten mini-batches that failed for good in the same way, of which each had its attempts."""
    with pytest.raises(EntryScriptError) as caught:
        run(
            ALL_FAIL,
            numbers,
            mini_batch_size=1,
            process_count_per_node=2,
            run_max_try=2,
            error_threshold=90,
            run_folder=tmp_path / "run",
        )

    text = str(caught.value)
    (alike,) = re.findall(
        r"nothing has succeeded, and (\d+) mini-batches have failed for good", text
    )
    assert 10 <= int(alike) <= 12  # a bundle is settled as a whole
    assert "ValueError: the model knows no such thing" in text
    assert "score.py:3 in run" in text
    assert "give error_threshold=-1 to have all of them tried" in text


def test_three_per_process_must_fail_alike_where_that_is_more(run, numbers):
    """R209: with four processes twelve, not ten."""
    with pytest.raises(EntryScriptError) as caught:
        run(
            ALL_FAIL,
            numbers,
            mini_batch_size=1,
            process_count_per_node=4,
            run_max_try=1,
            error_threshold=90,
        )

    (alike,) = re.findall(r"nothing has succeeded, and (\d+) mini-batches", str(caught.value))
    assert int(alike) >= 12


def test_where_every_failure_is_tolerated_all_is_tried(run, numbers, tmp_path):
    """R209: with error_threshold=-1, and no row wanted, the run tries everything."""
    result = run(
        """
        import os

        def run(mini_batch):
            with open(os.environ["SEEN"], "a") as seen:
                seen.write(mini_batch[0][-6:] + "\\n")
            raise ValueError("no")
        """,
        numbers,
        mini_batch_size=1,
        run_max_try=1,
        error_threshold=-1,
        output_action="summary_only",
        environment_variables={"SEEN": str(tmp_path / "seen")},
    )

    assert result.mini_batches.failed == 100
    assert sorted((tmp_path / "seen").read_text().split()) == EXPECTED


def test_where_mini_batches_are_split_items_that_fail_alone_alike_end_the_run(run, numbers):
    """R203, R209: not all hundred items are tried one by one."""
    with pytest.raises(EntryScriptError) as caught:
        run(
            ALL_FAIL,
            numbers,
            mini_batch_size=50,
            process_count_per_node=1,
            run_max_try=1,
            error_threshold=90,
            isolate_failures=True,
        )

    text = str(caught.value)
    (alike,) = re.findall(r"(\d+) items tried alone, or mini-batches, have failed for good", text)
    assert 10 <= int(alike) <= 20


# -- running alone ---------------------------------------------------------------------------


def test_after_a_memory_error_the_next_attempt_has_its_node_for_itself(run, numbers, tmp_path):
    """R211: no other mini-batch runs on that node from its start to its end."""
    times = tmp_path / "times"
    result = run(
        """
        import os, time

        def run(mini_batch):
            name, began = mini_batch[0][-6:-4], time.monotonic()
            time.sleep(0.3 if name == "05" else 0.03)
            here = os.environ["HERE"] + "/failed"
            first = name == "05" and not os.path.exists(here)
            with open(os.environ["TIMES"], "a") as file:
                file.write(f"{name} {began} {time.monotonic()} {int(first)}\\n")
            if first:
                open(here, "w").close()
                raise MemoryError
            return [name]
        """,
        numbers,
        mini_batch_size=1,
        process_count_per_node=3,
        environment_variables={"TIMES": str(times), "HERE": str(tmp_path)},
    )

    assert lines(result) == [f"{n:02d}" for n in range(100)]
    assert result.attempts == 101
    spans = [
        (name, float(began), float(ended), failed == "1")
        for name, began, ended, failed in map(str.split, times.read_text().splitlines())
    ]

    def beside(*, failed):
        [(begun, end)] = [(b, e) for n, b, e, f in spans if n == "05" and f == failed]
        return [n for n, b, e, _ in spans if n != "05" and b < end and e > begun]

    assert beside(failed=False) == []
    assert beside(failed=True)  # else it would prove nothing


# -- a mini-batch that takes nodes down ------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("bad", [("00",), ("00", "01")])
def test_what_takes_the_only_node_down_has_failed_and_all_else_runs(
    run, numbers, tmp_path, processes, bad
):
    """R86: however often that node was lost meanwhile; the log says what was to blame."""
    result = run(
        f"""
        import os, signal, time

        def run(mini_batch):
            if mini_batch[0][-6:-4] in {bad!r}:
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
            return [mini_batch[0][-6:]]
        """,
        numbers,
        mini_batch_size=1,
        process_count_per_node=processes,
        error_threshold=len(bad),
    )

    assert lines(result) == [name for name in EXPECTED if name[:2] not in bad]
    assert (result.mini_batches.failed, result.items.failed) == (len(bad), len(bad))
    failed = Path(result.run_directory, "failed_items.jsonl").read_text()
    assert failed.count('"node_lost"') == len(bad)
    log = Path(result.logs_directory, "70_driver_log.txt").read_text()
    assert re.search(r"attempt \d of 3 failed on node\d+: NodeLost: 3 nodes were lost", log)
    assert "log: \n" not in log


# -- whoever watches is heard at every moment ------------------------------------------------


@pytest.fixture
def mute():
    """A socket that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def black_hole(mute):
    """Its address."""
    return f"tcp://127.0.0.1:{mute.getsockname()[1]}"


@pytest.mark.timed
def test_what_never_answers_is_given_up(run, numbers, black_hole, monkeypatch):
    """R205: connecting has a limit, and the error names compute_target; no thread is left waiting."""
    monkeypatch.setattr(target, "CONNECT_S", 1.0)
    before = threading.active_count()
    began = time.monotonic()

    with pytest.raises(ClusterError) as caught:
        run(ALL_FAIL, numbers, compute_target=black_hole)

    assert time.monotonic() - began < 5, "took longer"
    assert f"compute_target={black_hole!r}" in str(caught.value)
    assert "nothing for 1 seconds" in str(caught.value)
    assert threading.active_count() <= before + 1  # Dask keeps one for its offloaded work


@pytest.mark.timed
def test_connecting_can_be_cancelled(run, numbers, black_hole):
    """R205: `watch` is asked while nobody answers."""
    began = time.monotonic()

    def watch():
        if time.monotonic() - began > 0.5:
            raise Stop

    with pytest.raises(Stop):
        run(ALL_FAIL, numbers, compute_target=black_hole, watch=watch)

    assert time.monotonic() - began < 5, "took longer"


CONNECTING = """
    import logging, sys
    from prefect_parallelrun.driver.target import Target

    Target(sys.argv[1], node_count=1, log=logging.getLogger("test"))
"""


def test_an_interrupted_process_does_not_linger_for_a_scheduler(mute, black_hole):
    """R205: after a Ctrl-C while it connects it is gone within moments."""
    command = [sys.executable, "-c", textwrap.dedent(CONNECTING), black_hole]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            mute.settimeout(20)
            connection, _ = mute.accept()
            with connection:
                assert connection.recv(1)  # it has said who it is, and waits for an answer
                process.send_signal(signal.SIGINT)
                process.wait(10)
        finally:
            process.kill()


@pytest.mark.timed
@pytest.mark.parametrize("own", [True, False])
def test_a_cancellation_is_heard_while_shutdown_runs(run, numbers, tmp_path, own):
    """R205: no `shutdown()` is waited for then; what raised ends the run, and no process is left."""
    script = """
        import os, time

        def run(mini_batch):
            return mini_batch

        def shutdown():
            with open(os.environ["HERE"] + "/told", "a") as file:
                file.write(f"shutdown {os.getpid()}\\n")
            time.sleep(300)
    """
    stopped_at = []

    def watch():
        if told(tmp_path):
            stopped_at.append(time.monotonic())
            raise Stop

    with contextlib.ExitStack() as held:
        cluster = None
        if not own:
            cluster = held.enter_context(
                distributed.LocalCluster(
                    n_workers=1,
                    threads_per_worker=1,
                    processes=False,
                    dashboard_address="127.0.0.1:0",
                )
            )
        with pytest.raises(Stop):
            run(
                script,
                numbers,
                process_count_per_node=1,
                compute_target=cluster and cluster.scheduler_address,
                watch=watch,
                environment_variables={"HERE": str(tmp_path)},
            )
        assert time.monotonic() - stopped_at[0] < 5, "took longer"
        assert len(stopped_at) == 1
        assert living(pid for _, pid in told(tmp_path)) == []


@pytest.mark.timed
def test_a_supervisor_that_hangs_holds_no_cancellation_up_and_hides_nothing(run, numbers, tmp_path):
    """R205: what left its session and its environment is killed as well, within five seconds."""
    stopped_at = []

    def watch():
        if len(told(tmp_path)) == 4:
            os.kill(supervisor_of(dict(told(tmp_path))["run"]), signal.SIGSTOP)
            stopped_at.append(time.monotonic())
            raise Stop

    with pytest.raises(Stop):
        run(
            """
            import os, subprocess, time

            def run(mini_batch):
                child = subprocess.Popen(["env", "-i", "setsid", "sleep", "1000"])
                with open(os.environ["HERE"] + "/told", "a") as file:
                    file.write(f"run {os.getpid()}\\nchild {child.pid}\\n")
                time.sleep(600)
            """,
            numbers,
            watch=watch,
            environment_variables={"HERE": str(tmp_path)},
        )

    assert time.monotonic() - stopped_at[0] < 5, "took longer"
    assert living(pid for _, pid in told(tmp_path)) == []


def test_a_killed_supervisor_is_no_word_against_the_driver(run, numbers, tmp_path, monkeypatch):
    """R205: the driver lives, and lets go of that node itself: nobody says that it is gone."""
    said = []
    monkeypatch.setattr(agent.logger, "warning", lambda *words: said.append(words))
    (tmp_path / "hold").touch()

    def kill_the_supervisor():
        until(lambda: len(told(tmp_path)) >= 2)
        os.kill(supervisor_of(told(tmp_path)[0][1]), signal.SIGKILL)
        until(lambda: len(told(tmp_path)) >= 4)

    with Meanwhile(kill_the_supervisor, tmp_path):
        result = run(
            """
            import os, time

            def run(mini_batch):
                with open(os.environ["HERE"] + "/told", "a") as file:
                    file.write(f"run {os.getpid()}\\n")
                while os.path.exists(os.environ["HERE"] + "/hold"):
                    time.sleep(0.01)
                return [mini_batch[0][-6:]]
            """,
            numbers,
            mini_batch_size=1,
            environment_variables={"HERE": str(tmp_path)},
        )

    assert lines(result) == EXPECTED
    log = Path(result.logs_directory, "70_driver_log.txt").read_text()
    assert "node000 is lost: its supervisor ended" in log
    assert said == []
