"""What storages answer: what they tell of a file, which errors may pass, and what people get to read of these."""

from __future__ import annotations

import contextlib
import errno
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.errors import DatasetError, NotThere, ParallelRunError

LIMIT_S = 60.0
"""How long one thing is tried again, where nothing else is said."""
PAUSE_S = 0.2
"""Before the second try; doubled before each further one, up to half of it left out at random."""
LONGEST_PAUSE_S = 10.0
SHORTEST_SECRET = 6
"""Shorter values of options (`true`, a region) are words like others."""

_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_PASSING_NUMBERS = {
    errno.EBUSY, errno.EREMOTEIO, errno.EPIPE, errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH,
}  # fmt: skip
_PASSING_CLASSES = {
    # aiohttp
    "ClientConnectionError", "ClientPayloadError",
    # Azure's SDK
    "ServiceRequestError", "ServiceResponseError", "IncompleteReadError",
    # botocore
    "HTTPClientError", "ResponseStreamingError",
    # botocore and requests, each their own
    "ConnectionError",
    # requests, urllib3, http.client
    "ChunkedEncodingError", "ProtocolError", "IncompleteRead",
}  # fmt: skip
_DENIED_CLASSES = {"ClientAuthenticationError", "NoCredentialsError", "PartialCredentialsError"}
_PLAIN_OPTIONS = {"account_name", "account_host", "endpoint_url", "region_name"}
"""They are no secrets, and an error says more with them."""
_SECRET_WORDS = re.compile(
    r"(?i)((?:sig|signature|credential|accountkey|sharedaccesssignature|password|token|secret|api[-_]?key)=)[^&;\s\"'<>]+"
)
_TIMES = (
    "LastModified",
    "last_modified",
    "Last-Modified",
    "mtime",
    "modified",
    "updated",
    "created",
)
_ETAGS = ("ETag", "etag", "VersionId", "generation", "md5Hash", "Content-MD5", "Digest", "checksum", "CRC")  # fmt: skip

T = TypeVar("T")


def item(path: str, info: Mapping[str, Any]) -> FileItem:
    """Return a file as fsspec's `info` describes it; its size is 0 where that is unknown."""
    etag = next((str(info[key]) for key in _ETAGS if info.get(key)), "")
    when = next((info[key] for key in _TIMES if info.get(key)), None)
    return FileItem(path, info.get("size") or 0, _nanoseconds(when), etag)


def _nanoseconds(when: object) -> int:
    if isinstance(when, int | float):
        return int(when * 1_000_000_000)
    if isinstance(when, str):
        when = _datetime(when)
    if not isinstance(when, datetime):
        return 0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1_000_000) * 1_000


def _datetime(text: str) -> datetime | None:
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        with contextlib.suppress(ValueError):
            return read(text)
    return None


def retried(
    call: Callable[[], T],
    *,
    what: str,
    options: Mapping[str, Any] | None = None,
    limit_s: float | None = None,
    done: Literal["read", "written"] = "read",
) -> T:
    """Return what `call` returns; it is called again while its failures may pass.

    Args:
        what: The URL, for the error.
        options: All `storage_options` that are in use: the error shows none of their values.
        limit_s: No try begins later than this; None: `LIMIT_S`.
        done: What cannot be done with it, for the error.

    Raises:
        DatasetError: it failed for good, or as often as there was time for.
    """
    began, tries = time.monotonic(), 0
    limit = LIMIT_S if limit_s is None else limit_s
    while True:
        tries += 1
        try:
            return call()
        except ParallelRunError:
            raise
        except Exception as error:
            pause = min(PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1)
            took = time.monotonic() - began
            if not is_passing(error) or took + pause > limit:
                # Not "from error", whose text may hold a secret.
                text = trouble(error, what, options or {}, tries, took, done=done)
                kind = NotThere if isinstance(error, FileNotFoundError) else DatasetError
                raise kind(text) from None
        time.sleep(pause)


def is_passing(error: BaseException) -> bool:
    """Say whether the same request may succeed later: the storage is busy or cannot be reached just now."""
    chain = list(_chain(error))
    statuses = [status for one in chain if (status := _status(one)) is not None]
    if statuses:
        return statuses[-1] in _PASSING_STATUSES
    return not _is_unknown_host(error) and any(_passes(one) for one in chain)


def _is_unknown_host(error: BaseException) -> bool:
    return any(
        isinstance(one, socket.gaierror) and one.errno != socket.EAI_AGAIN for one in _chain(error)
    )


def _passes(error: BaseException) -> bool:
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_NUMBERS:
        return True
    # By name: importing all SDKs to tell their errors apart would take seconds.
    return any(kind.__name__ in _PASSING_CLASSES for kind in type(error).__mro__)


def is_denied(error: BaseException) -> bool:
    """Say whether the storage lets nobody in with these credentials, or with none."""
    return any(
        _status(one) in (401, 403)
        or isinstance(one, PermissionError)
        or type(one).__name__ in _DENIED_CLASSES
        for one in _chain(error)
    )


def scrubbed(text: str, options: Mapping[str, Any]) -> str:
    """Return a text without what is secret in options, and without signatures in URLs."""
    for secret in sorted(_values(options), key=len, reverse=True):
        text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return _SECRET_WORDS.sub(r"\1***", text)


def trouble(
    error: BaseException,
    what: str,
    options: Mapping[str, Any],
    tries: int,
    took_s: float,
    *,
    done: Literal["read", "written"] = "read",
) -> str:
    """Say why a request failed for good, and what would be right; shows no value of `options`."""
    detail = scrubbed(" ".join(f"{type(error).__name__}: {error}".split()), options)
    cause = error.__cause__
    if cause is not None and type(cause).__name__ not in detail:
        more = " ".join(f"{type(cause).__name__}: {cause}".split())
        detail += f", from {scrubbed(more, options)}"
    if len(detail) > 500:
        detail = detail[:500] + "…"
    what = _SECRET_WORDS.sub(r"\1***", what)
    if is_passing(error):
        often = f"tried {tries} times in {took_s:.0f} s" if tries > 1 else "tried once"
        return (
            f"{what} cannot be {done}: its storage does not answer, or is too busy ({often}; "
            f"{detail}). If the address is right, run the step again later"
        )
    if is_denied(error):
        return (
            f"{what} cannot be {done}: access is denied ({detail}). Give storage_options or credentials "
            f"by which it may be {done}, and which have not expired"
        )
    if _is_unknown_host(error):
        return f"{what} cannot be {done}: there is no such host ({detail})"
    if any(_status(one) == 416 for one in _chain(error)):
        return f"{what} was changed since it was listed: it is shorter now ({detail}). Run the step again"
    if isinstance(error, FileNotFoundError):
        return f"{what} is not there: no such bucket, container, folder or file ({detail})"
    return f"{what} cannot be {done} ({detail})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error tells of, as SDKs keep it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(error, "status_code", None)
    # aiohttp has 0 where there was no answer.
    return status if isinstance(status, int) and status >= 100 else None


def _values(options: object) -> Iterator[str]:
    """Yield every text in options that may be secret; of a connection string and a header, the parts."""
    if isinstance(options, str):
        parts = [options, *options.split()]
        parts += [part.partition("=")[2] for part in re.split("[;&?]", options)]
        for part in parts:
            if len(part) >= SHORTEST_SECRET and not part.startswith(("http:", "https:")):
                yield part
    elif isinstance(options, Mapping):
        for key, value in options.items():
            if key not in _PLAIN_OPTIONS:
                yield from _values(value)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _values(value)
