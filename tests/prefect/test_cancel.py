"""Whatever stops a flow, every process of its step is gone in seconds, and the run can be gone on with."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from prefect_parallelrun.stopping import stops_on_sigterm

GONE_S = 5.0
"""So soon after a signal nothing of a run may be left, on any node."""
EXITS = {signal.SIGTERM: {143, -15}, signal.SIGINT: {1, 130, -2}}

QUICK = ("thread", signal.SIGTERM)
"""The others take as long, and are left to CI."""
CASES = [
    pytest.param(
        mode,
        number,
        id=f"{mode}-{number.name}",
        marks=[] if (mode, number) == QUICK else [pytest.mark.slow],
    )
    for mode, number in (
        *itertools.product(("plain", "main", "thread", "dask", "async_main"), EXITS),
        ("async_submit", signal.SIGINT),
    )
]


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("mode", "number"), CASES)
def test_a_signal_stops_everything(started, mode, number):
    """SIGTERM and Ctrl-C end every process within 5 seconds, and what is done is kept (design 5)."""
    flow = started(mode)

    os.kill(flow.process.pid, number)
    sent = time.monotonic()
    flow.gone(sent)
    code = flow.process.wait(30)
    ended_s = time.monotonic() - sent
    print(f"{mode} {number.name}: gone {flow.gone_s:.1f} s, ended {ended_s:.1f} s, code {code}")

    assert flow.gone_s < GONE_S, flow.said()
    assert code in EXITS[number], flow.said()
    assert flow.record.state == "Cancelled", flow.said()
    assert re.search(r"[12] of 6 mini-batches are done", flow.paths.driver_log.read_text())
    if mode != "plain":  # there Prefect's own last word is lost with the process, or not
        assert flow.task_state().is_crashed()
    assert flow.run_again().state == "Completed"
    assert re.search(r"resumed: [12] mini-batches are done", flow.paths.driver_log.read_text())


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "mode",
    [
        "subflow",
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in ("main", "thread", "dask", "async_main")
        ),
    ],
)
def test_a_flow_that_is_cancelled(started, mode):
    """A plain `python flow.py` that is cancelled in the UI stops its step, whose task run is Cancelled.

    That is so, too, for a step of a subflow of it.
    """
    flow = started(mode)

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow.flow_run().id, Cancelling(), force=True)
    sent = time.monotonic()
    flow.gone(sent)
    flow.process.wait(30)
    print(f"{mode} cancelled: gone {flow.gone_s:.1f} s, ended {time.monotonic() - sent:.1f} s")

    assert flow.gone_s < GONE_S, flow.said()
    assert flow.task_state().is_cancelled()
    assert flow.record.state == "Cancelled"
    # Prefect would take the state of a cancelled task for its result, had we not told it otherwise.
    assert flow.run_again().state == "Completed"
    assert re.search(r"resumed: [12] mini-batches are done", flow.paths.driver_log.read_text())


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("mode", "cancelled", "number"),
    [
        pytest.param("thread", True, None, id="submitted"),
        pytest.param("main", True, signal.SIGTERM, id="called"),
        pytest.param("plain", False, signal.SIGTERM, id="no flow"),
    ],
)
def test_a_step_that_reads_its_inputs(started, mode, cancelled, number):
    """A step that still lists or hashes its inputs stops within 5 seconds as well (design 5)."""
    flow = started(mode, reading=True)

    if cancelled:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow.flow_run().id, Cancelling(), force=True)
    if number is not None:
        os.kill(flow.process.pid, number)
    asked = datetime.now(UTC)
    flow.process.wait(30)

    if cancelled:
        state = flow.task_state()
        assert state.is_cancelled(), flow.said()
        assert state.timestamp - asked < timedelta(seconds=GONE_S), flow.said()
    else:
        assert flow.process.returncode == 143, flow.said()
    assert not flow.has_run


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_flow_that_runs_out_of_time(started):
    """A flow that timed out waits for no step that it submitted: that is interrupted, and kept."""
    flow = started("timeout")

    flow.run_out_of_time()
    sent = time.monotonic()
    flow.gone(sent)
    flow.process.wait(30)

    assert flow.gone_s < GONE_S, flow.said()
    assert flow.flow_run().state.name == "TimedOut"
    assert flow.task_state().is_crashed()
    assert flow.record.state == "Cancelled"


def test_a_second_sigterm_changes_nothing():
    """Some senders signal a process and its group: the run still ends as it should, with code 143."""
    ended = []

    def stopped_twice():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append(True)

    with pytest.raises(SystemExit) as stopped, stops_on_sigterm():
        stopped_twice()

    assert ended
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_user_stays(monkeypatch):
    """Whoever handles SIGTERM goes on doing so."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with stops_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert seen == [1]
