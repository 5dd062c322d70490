"""Events reach Prefect in order, once, and at no cost of the run, whatever the API does meanwhile."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.events import Event

from prefect_parallelrun import api
from prefect_parallelrun.ui import events, outbox
from prefect_parallelrun.ui.outbox import Outbox

PATIENCE_S = 20.0


class Api:
    """What takes the place of Prefect's API: it does to each request what the test says next."""

    def __init__(self, monkeypatch):
        self.got = []
        self.requests = 0
        self.answer = 204
        self.text = b""
        self.refused = set()
        self.refusal = 422
        self.goes_on = threading.Event()
        self.goes_on.set()
        answering = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answering.requests += 1
                answering.goes_on.wait(PATIENCE_S)
                numbers = {one["payload"]["number"] for one in body}
                status = answering.refusal if numbers & answering.refused else answering.answer
                if status == 204:
                    answering.got += body
                self.send_response(status)
                if answering.text:
                    self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(answering.text)))
                self.end_headers()
                self.wfile.write(answering.text)

            def do_GET(self):
                """Tell the client that asks for a CSRF token that there are none."""
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        url = f"http://127.0.0.1:{self.server.server_address[1]}/api"
        monkeypatch.setattr(api, "url_of_this_task_run", lambda: url)

    @property
    def numbers(self):
        return [one["payload"]["number"] for one in self.got]


@pytest.fixture
def there(monkeypatch):
    monkeypatch.setattr(outbox, "AGAIN_S", 0.1)
    made = Api(monkeypatch)
    serving = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    serving.start()
    yield made
    made.goes_on.set()
    made.server.shutdown()
    made.server.server_close()
    serving.join()


@contextmanager
def box():
    """An outbox of a task run of no flow, whose thread is over when the test is."""
    task_run = TaskRun(name="score", task_key="score", dynamic_key="0", flow_run_id=None)
    log = logging.getLogger("test-outbox")
    with Outbox(task_run, log, spare="parallelrun.test") as made:
        yield made
    until(lambda: not made._thread.is_alive())


def event(number, name="parallelrun.test"):
    resource = {"prefect.resource.id": f"prefect.task-run.{uuid4()}"}
    return Event(event=name, resource=resource, payload={"number": number})


def until(there):
    deadline = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_events_arrive_in_order_and_the_end_waits_for_the_last(there):
    """The last event, how the run ended, is there when the step returns."""
    with box() as sending:
        for number in range(3 * outbox.AT_ONCE):
            sending.put(event(number))
    assert there.numbers == list(range(3 * outbox.AT_ONCE))
    assert there.requests < 2 * outbox.AT_ONCE


def test_what_a_failing_api_did_not_take_is_sent_again(there, caplog):
    """When the API is back, it gets all that happened meanwhile, each event once (R210)."""
    there.answer = 503
    with box() as sending:
        for number in range(5):
            sending.put(event(number))
        until(lambda: there.requests >= 2)
        assert there.got == []
        there.answer = 204
        until(lambda: len(there.got) == 5)
        sending.put(event(5))
    assert there.numbers == list(range(6))
    assert caplog.records == []


@pytest.mark.timed
def test_a_run_does_not_wait_for_an_api_that_hangs(there, monkeypatch, caplog):
    """Taking an event costs nothing, and the end of the run a moment; then the sending goes on alone."""
    monkeypatch.setattr(outbox, "END_S", 0.3)
    there.goes_on.clear()
    began = time.monotonic()
    with box() as sending:
        for number in range(5):
            sending.put(event(number))
        until(lambda: there.requests == 1)
        took_s = time.monotonic() - began
        assert took_s < 5, "took longer"
        left = time.monotonic()
        threading.Timer(1.0, there.goes_on.set).start()
    assert time.monotonic() - left > 0.9  # `box` waits for the thread; the outbox did not
    assert there.numbers == list(range(5))
    assert caplog.records == []


def test_what_is_not_sent_when_the_run_ends_is_tried_for_another_minute(there, monkeypatch, caplog):
    """A flow that goes on tells how the step ended as soon as the API is back."""
    monkeypatch.setattr(outbox, "END_S", 0.1)
    there.answer = 503
    with box() as sending:
        sending.put(event(0))
        threading.Timer(0.5, lambda: setattr(there, "answer", 204)).start()
    assert there.numbers == [0]
    assert caplog.records == []


@pytest.mark.timed
def test_of_an_api_that_is_gone_the_log_says_one_line(monkeypatch, caplog):
    """Events that nobody takes are lost, and the log says how many, without a stack trace."""
    monkeypatch.setattr(outbox, "AFTER_S", 0.0)
    gone = Api(monkeypatch)
    gone.server.server_close()
    began = time.monotonic()
    with box() as sending:
        for number in range(5):
            sending.put(event(number))
    assert time.monotonic() - began < 10, "took longer"
    (said,) = caplog.records
    assert said.getMessage().startswith(
        "Events that could not be sent to Prefect: 5 (no answer: ConnectError"
    )
    assert said.exc_info is None


@pytest.mark.parametrize(
    ("status", "said"), [(422, "422 Unprocessable Entity"), (500, "500 Internal Server Error")]
)
@pytest.mark.parametrize("refused", [{1, 3}, {0, 1}])
def test_an_event_that_is_refused_costs_no_other(there, caplog, status, said, refused):
    """Those before and after it are sent, and at the end the log says in one line how many were not."""
    there.refused, there.refusal = refused, status
    others = [number for number in range(6) if number not in refused]
    with box() as sending:
        for number in range(6):
            sending.put(event(number))
        until(lambda: there.numbers == others)
        assert caplog.records == []
        sending.put(event(6))
    assert there.numbers == [*others, 6]
    assert [one.getMessage() for one in caplog.records] == [
        f"Events that could not be sent to Prefect: 2 (the answer is {said})"
    ]


def test_the_last_event_is_tried_until_the_end_is_over(there, monkeypatch, caplog):
    """With none behind it nobody knows whether it is for the event; what is never taken is counted."""
    monkeypatch.setattr(outbox, "AFTER_S", 1.0)
    there.refused, there.refusal = {1}, 500
    with box() as sending:
        sending.put(event(0))
        sending.put(event(1))
    assert there.numbers == [0]
    assert there.requests > 5
    assert [one.getMessage() for one in caplog.records] == [
        "Events that could not be sent to Prefect: 1 (the answer is 500 Internal Server Error)"
    ]


@pytest.mark.parametrize("status", [401, 403, 500, 520])
def test_while_prefect_takes_none_of_them_no_event_is_lost(there, monkeypatch, caplog, status):
    """A database that restarts, also at the end of a run: then all are sent, once, and but for one in order."""
    monkeypatch.setattr(outbox, "END_S", 0.1)
    there.answer = status
    with box() as sending:
        for number in range(4):
            sending.put(event(number))
        until(lambda: there.requests >= 7)
        sending.put(event(4, "parallelrun.run.completed"))
        threading.Timer(0.7, lambda: setattr(there, "answer", 204)).start()
    assert sorted(there.numbers) == list(range(5))
    assert there.numbers[1:] == sorted(there.numbers[1:])
    assert caplog.records == []


@pytest.mark.parametrize(
    ("status", "text", "times"),
    [
        (404, b"404 page not found", 2),
        (403, b'{"detail": "Invalid CSRF token or client identifier."}', 6),
        (200, b"<html>Log in</html>", 6),
    ],
)
def test_a_refusal_that_passes_loses_nothing(there, caplog, status, text, times):
    """A proxy without its server, a token that ran out, a page instead of an answer: it is tried again."""
    there.answer, there.text = status, text
    with box() as sending:
        sending.put(event(0))
        until(lambda: there.requests >= times)
        assert there.got == []
        there.answer, there.text = 204, b""
        until(lambda: there.numbers == [0])
    assert caplog.records == []


def test_of_too_many_events_those_are_lost_that_there_are_many_of(there, monkeypatch, caplog):
    """However many failures wait, how the run ended is told; and the log says how many were lost."""
    monkeypatch.setattr(outbox, "HELD", 3)
    there.goes_on.clear()
    with box() as sending:
        sending.put(event(0))
        until(lambda: there.requests == 1)
        sending.put(event(1, "parallelrun.run.threshold-near"))
        for number in range(2, 10):
            sending.put(event(number))
        sending.put(event(10, "parallelrun.run.completed"))
        there.goes_on.set()
    assert there.numbers == [0, 1, 9, 10]
    assert [one.getMessage() for one in caplog.records] == [
        "Events that could not be sent to Prefect: 7 (more than 3 were waiting)"
    ]


@pytest.mark.timed
def test_the_end_does_not_wait_again_where_others_waited(there, monkeypatch):
    """The moment in which the last event is waited for begins with it: the waits of an end do not add up."""
    monkeypatch.setattr(outbox, "END_S", 1.0)
    there.goes_on.clear()
    with box() as sending:
        sending.put(event(0))
        time.sleep(1.0)
        left = time.monotonic()
        sending.__exit__(None, None, None)
        assert time.monotonic() - left < 0.5, "took longer"
        there.goes_on.set()
    assert there.numbers == [0]


def test_of_thousands_of_failures_some_are_told_and_the_rest_are_counted():
    """Ten at once, then one in ten seconds, and each says how many were left out before it."""
    allowance = events._Allowance(1000.0)
    at_once = [allowance.take(1000.0) for _ in range(100)]
    assert at_once == [0] * 10 + [None] * 90
    assert [allowance.take(1000.0 + s) for s in (9.0, 10.5, 11.0, 21.0)] == [None, 91, None, 1]
    assert [allowance.take(9000.0) for _ in range(12)] == [0] * 10 + [None] * 2
