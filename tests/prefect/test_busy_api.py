"""An API that asks to wait, as a busy one does, or one that is maintained, holds nothing of a run up."""

from __future__ import annotations

import json
import signal
import threading
import time

import httpx
import pytest
from prefect import flow, runtime, task
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from prefect_parallelrun import api, stopping
from prefect_parallelrun.errors import RunCancelled
from prefect_parallelrun.ui import outbox, page

PATIENCE_S = 20.0
BUSY = {"Retry-After": "60", "Prefect-Maintenance": "true"}


class Faults:
    """What our own threads ask of the API is answered as a test says, or by the API."""

    def __init__(self, sent) -> None:
        self._sent = sent
        self.seen = []
        """Thread, path and status of each answer, and what a fault was made of."""
        self.answer = lambda path, body: None
        """Takes what is asked; returns None, or status, headers and body of the answer."""
        self.everywhere = False
        """Whether what Prefect's own threads ask is answered so, too."""

    def send(self, transport, request):
        thread, path = threading.current_thread().name, request.url.path
        ours = self.everywhere or thread.startswith("parallelrun-")
        fault = self.answer(path, request.content) if ours else None
        if fault is not None:
            status, headers, body = fault
            stream = httpx.ByteStream(body) if isinstance(body, bytes) else body
            answer = httpx.Response(status, headers=headers, stream=stream, request=request)
        else:
            answer = self._sent(transport, request)
        if ours:
            self.seen.append((thread, path, answer.status_code))
        return answer

    def statuses(self, of):
        """Return how what was asked of paths that contain `of` was answered."""
        return [status for _, path, status in self.seen if of in path]


@pytest.fixture
def faults(monkeypatch):
    """Stand between all of Prefect's sync clients in this process and the API."""
    found = Faults(httpx.HTTPTransport.handle_request)
    monkeypatch.setattr(
        httpx.HTTPTransport,
        "handle_request",
        lambda transport, request: found.send(transport, request),
    )
    return found


def busy_at_first():
    """Answer 503 to the first request for each of what a run asks for, or tells."""
    left = ["/flow_runs/filter", "/artifacts/", "/events"]

    def answer(path, _):
        for one in left:
            if path.endswith(one):
                left.remove(one)
                return 503, BUSY, b"busy"
        return None

    return answer


def until(there):
    deadline = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.timed
def test_a_run_whose_api_is_busy_at_first_is_told_and_shown(files, faults, caplog):
    """One answer that asks to wait for a minute costs no artifact and no event (R205, R210)."""
    faults.answer = busy_at_first()

    @flow
    def score():
        began = time.monotonic()
        result = files.step()()
        return result, time.monotonic() - began

    result, took_s = score()

    until(lambda: not {"parallelrun-page", "parallelrun-events"} & names_of_threads())
    assert result.state == "Completed"
    assert took_s < 30, "took longer"
    assert faults.statuses("/artifacts/")[0] == faults.statuses("/events")[0] == 503
    assert all(status < 300 for status in faults.statuses("/artifacts/")[1:])
    assert set(faults.statuses("/events")[1:]) == {204}
    assert [one for one in caplog.messages if "not show" in one or "not be sent" in one] == []
    with get_client(sync_client=True) as client:
        shown = {one.key for one in client.read_artifacts() if one.task_run_id is not None}
    assert {"score-files-summary", "score-files-progress"} <= shown


def test_a_server_that_fails_at_the_end_of_a_run_is_told_and_shown_later(
    files, faults, monkeypatch, caplog
):
    """A database that restarts, so that all is answered 500, costs no artifact and no event (R205, R210)."""
    monkeypatch.setattr(page, "AGAIN_S", 0.2)
    monkeypatch.setattr(outbox, "AGAIN_S", 0.2)
    tries, told = [], []

    def answer(path, body):
        if b"score-files-summary" in body:
            tries.append(path)
        if len(tries) <= 2 * page.REFUSALS and ("/artifacts" in path or path.endswith("/events")):
            return 500, {}, b"Internal Server Error"
        if path.endswith("/events"):
            told.extend(one["event"] for one in json.loads(body))
        return None

    faults.answer = answer

    @flow
    def score():
        return files.step()()

    score()

    until(lambda: not {"parallelrun-page", "parallelrun-events"} & names_of_threads())
    assert sorted(told) == ["parallelrun.run.completed", "parallelrun.run.started"]
    assert [one for one in caplog.messages if "not show" in one or "not be sent" in one] == []
    with get_client(sync_client=True) as client:
        shown = {one.key for one in client.read_artifacts() if one.task_run_id is not None}
    assert {"score-files-summary", "score-files-progress"} <= shown


def names_of_threads():
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.timed
@pytest.mark.parametrize("status", [401, 408, 429, 500, 503, 520])
def test_an_answer_that_asks_to_wait_is_an_answer(prefect_server, faults, status):
    """Whoever of our threads asked hears of it at once, and of a server that is maintained as well (R205)."""
    faults.everywhere = True
    faults.answer = lambda path, body: (status, BUSY, b"busy")

    began = time.monotonic()
    with (
        api.connected(str(PREFECT_API_URL.value()), answer_s=5.0) as client,
        pytest.raises(httpx.HTTPStatusError) as refused,
    ):
        client.request("GET", "/flow_runs/00000000-0000-0000-0000-000000000000")

    assert time.monotonic() - began < 5, "took longer"
    assert refused.value.response.status_code == status
    assert not api.is_refusal(refused.value)
    assert len(faults.seen) == 1


@pytest.mark.timed
def test_a_csrf_token_that_the_server_forgot_is_asked_for_anew(prefect_server, faults):
    """The request after the one that was refused for it has a new one, and nobody waited (R205)."""
    tokens = []

    def answer(path, _):
        if path.endswith("/csrf-token"):
            tokens.append(f'"token": "{len(tokens)}", "client": "me"')
            expires = '"expiration": "2999-01-01T00:00:00Z"'
            return 200, {}, f"{{{tokens[-1]}, {expires}}}".encode()
        if len(tokens) == 1:
            return 403, BUSY, b"Invalid CSRF token or client identifier."
        return 200, {}, b"[]"

    faults.everywhere, faults.answer = True, answer
    began = time.monotonic()
    with api.connected(str(PREFECT_API_URL.value()), answer_s=5.0) as client:
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            client.request("POST", "/flow_runs/filter", json={})
        assert client.request("POST", "/flow_runs/filter", json={}).json() == []
    assert time.monotonic() - began < 5, "took longer"
    assert len(tokens) == 2


@pytest.mark.timed
def test_a_flow_that_is_cancelled_after_its_api_was_busy(faults):
    """The watch asks again in time, and its step stops within seconds (R205)."""
    faults.answer = busy_at_first()

    @task
    def watched(flow_run_id):
        with stopping.FlowWatch() as watch:
            until(lambda: faults.statuses("/flow_runs/filter"))
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(flow_run_id, Cancelling(), force=True)
            with pytest.raises(RunCancelled, match="was cancelled"):
                until(lambda: watch.check())

    @flow
    def cancelled():
        watched(runtime.flow_run.id)

    began = time.monotonic()
    cancelled()
    assert time.monotonic() - began < PATIENCE_S, "took longer"
    assert faults.statuses("/flow_runs/filter")[:2] == [503, 200]


class Drops(httpx.SyncByteStream):
    """An answer that comes byte by byte, each in good time."""

    def __init__(self, over) -> None:
        self._over = over

    def __iter__(self):
        until = time.monotonic() + PATIENCE_S
        while not self._over.wait(0.05) and time.monotonic() < until:
            yield b" "


@pytest.mark.parametrize("how", ["busy", "drops"])
def test_a_signal_does_not_wait_for_an_api_that_does_not_say_why(faults, monkeypatch, how):
    """Where Prefect does not say in time that the flow run was cancelled, SIGTERM goes on (R205)."""
    monkeypatch.setattr(stopping, "ANSWERS_S", 1.0)
    over = threading.Event()
    answers = {"busy": lambda: (503, BUSY, b"busy"), "drops": lambda: (200, {}, Drops(over))}

    @task
    def ended_by_signal():
        with stopping.FlowWatch() as watch:
            faults.everywhere = True
            faults.answer = lambda path, _: answers[how]() if "/flow_runs/" in path else None
            began = time.monotonic()
            try:
                with pytest.raises(TerminationSignal):
                    watch.end_by_signal(TerminationSignal(signal.SIGTERM))
                return time.monotonic() - began
            finally:
                faults.answer = lambda path, body: None
                over.set()

    @flow
    def terminated():
        return ended_by_signal()

    assert terminated() < 4
    until(lambda: "parallelrun-flow-states" not in names_of_threads())
