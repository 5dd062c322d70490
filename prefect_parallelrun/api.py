"""Prefect's API, asked by threads of our own: they never start a server, and never wait long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import TaskRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings


def url_of_this_task_run() -> str:
    """Return the URL of the API that this task run belongs to."""
    context = TaskRunContext.get()
    assert context is not None
    return str(context.client.api_url)


@contextmanager
def connected(url: str, *, answer_s: float) -> Iterator[SyncPrefectClient]:
    """Yield a client that tries each request once, and never sleeps.

    Not by `get_client()`: that would start a temporary server anew when Ctrl-C has ended it.

    Args:
        url: of the API.
        answer_s: how long it is waited for a connection, and then for each part of an answer, in seconds.
    """
    api = get_current_settings().api
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        SyncPrefectClient(
            url,
            api_key=api.key.get_secret_value() if api.key else None,
            auth_string=api.auth_string.get_secret_value() if api.auth_string else None,
            httpx_settings={
                "timeout": answer_s,
                "event_hooks": {"response": [_wait_for_nothing, _take_no_web_page]},
            },
        ) as client,
    ):
        yield client


def _wait_for_nothing(answer: httpx.Response) -> None:
    # Prefect's client sleeps as long as a busy server says, even if it tries no more after that; and
    # what a server answers that is maintained, it never counts as tried.
    answer.headers["Retry-After"] = "0"
    answer.headers.pop("Prefect-Maintenance", None)


def _take_no_web_page(answer: httpx.Response) -> None:
    # Such as the login of a proxy: it would pass for success.
    if answer.is_success and answer.headers.get("Content-Type", "").startswith("text/html"):
        raise httpx.RemoteProtocolError("a web page instead of data", request=answer.request)


def is_refusal(error: Exception) -> bool:
    """Return whether the server does not take what it was asked; no such is one that cannot just now.

    The next time it may: where what answered was a proxy, or somebody removes and makes things.
    """
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    status = error.response.status_code
    if status == 403 and "Invalid CSRF token" in error.response.text:
        return False  # the client takes another for its next request
    return 400 <= status < 500 and status not in (401, 408, 425, 429)


def why(error: Exception) -> str:
    """Say in a line why something did not work: Prefect's own text repeats all that was sent."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"the answer is {error.response.status_code} {error.response.reason_phrase}"
    text = repr(error).partition("\n")[0]
    return f"no answer: {text}" if isinstance(error, httpx.TransportError) else text
