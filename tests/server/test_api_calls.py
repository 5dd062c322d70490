"""What a step asks of Prefect's API."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest
from prefect import flow
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker

from prefect_parallelrun import ParallelRunConfig, ParallelRunStep

SCRIPT = "def run(mini_batch, context):\n    return [context.minibatch_index]\n"
TIMED = {
    "GET /api/flow_runs/…",
    "PATCH /api/artifacts/…",
    "POST /api/events",
    "POST /api/flow_runs/filter",
    "POST /api/logs/",
}
"""What a run asks or tells every second or more, as long as it lasts, and what goes with that; events that
wait for one another go in one request."""
TOKEN = "GET /api/csrf-token"
CLIENTS = 6
"""Each asks for one token, however long it lasts: Prefect's for flow, task and log, and ours, of which a
short run may make some or none."""
PUT_OFF = (429, 502, 503)
"""Answers after which Prefect's client asks the same again (`PrefectHttpxAsyncClient` in Prefect 3)."""
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@dataclass
class Asked:
    """Requests and events of this process, by kind."""

    kinds: Counter[str] = field(default_factory=Counter)

    def take(self) -> Counter[str]:
        """Return what was asked since the last time."""
        taken, self.kinds = self.kinds, Counter()
        return taken


@pytest.fixture
def asked(monkeypatch):
    """Count whatever this process sends to the API, below all of Prefect's clients."""
    found = Asked()
    sent, sent_async = (
        httpx.HTTPTransport.handle_request,
        httpx.AsyncHTTPTransport.handle_async_request,
    )
    emitted = PrefectEventsClient._emit

    def counted(request, response):
        # What a busy server puts off (SQLite is locked, say) Prefect's client asks again: it is asked once.
        kind = f"{request.method} {ID.sub('…', request.url.path)}"
        found.kinds[kind] += response.status_code not in PUT_OFF
        return response

    def send(self, request):
        return counted(request, sent(self, request))

    async def send_async(self, request):
        return counted(request, await sent_async(self, request))

    async def emit(self, event):
        found.kinds[f"event {event.event}"] += 1
        return await emitted(self, event)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", send)
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", send_async)
    monkeypatch.setattr(PrefectEventsClient, "_emit", emit)
    return found


def test_calls_of_the_api_do_not_grow_with_the_mini_batches(here, asked, tmp_path):
    """A step of 5,000 mini-batches asks Prefect for what one of 10 asks for, as often, but for what is
    asked or told every so many seconds (R240)."""
    (tmp_path / "score.py").write_text(SCRIPT)

    @flow
    def score(count):
        step = ParallelRunStep(
            "count-calls",
            ParallelRunConfig("score.py", source_directory=str(tmp_path), process_count_per_node=1),
            [],
            arguments=["--rank_mini_batch_count", str(count)],
        )
        return step().mini_batches.succeeded

    def counted(count):
        began = time.monotonic()
        assert score(count) == count
        EventsWorker.drain_all(at_exit=False)  # it counts what it sends, maybe after the flow's end
        return asked.take(), time.monotonic() - began

    counted(1)  # what is asked once by each process is no part of it
    few, few_s = counted(10)
    many, many_s = counted(5_000)

    assert many["POST /api/flow_runs/"] == 1
    for kind in {*few, *many} - TIMED - {TOKEN}:
        assert few[kind] == many[kind], (kind, few, many)
    for asked_for, took_s in ((few, few_s), (many, many_s)):
        assert asked_for[TOKEN] <= CLIENTS, asked_for
        for kind in TIMED:
            assert asked_for[kind] <= 3 + 1.5 * took_s, (kind, asked_for, took_s)
