"""What of a storage may be written down: never an option that may be a secret, nor a signature in a URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from prefect_parallelrun import errors
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.datasets.storage import Storage

_SECRETS = frozenset(
    {
        "sig", "signature", "x-amz-signature", "x-goog-signature", "x-amz-security-token",
        "token", "access_token", "auth_token", "authorization", "jwt", "key", "api_key", "api-key", "apikey",
        "access_key", "secret", "client_secret", "password", "passwd", "pwd",
    }
)  # fmt: skip
"""Parameters of a query that let in whoever has them."""
_SIGNED = re.compile(r"x-(amz|goog)-.*|googleaccessid|awsaccesskeyid|expires", re.IGNORECASE)
"""Parameters that belong to such a signature, Amazon's and Google's."""
_SIGNED_BY_AZURE = frozenset(
    [
        "sv",
        "ss",
        "srt",
        "sr",
        "sp",
        "st",
        "se",
        "sip",
        "spr",
        "si",
        "sdd",
        "ses",
        "saoid",
        "suoid",
        "scid",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "rscc",
        "rscd",
        "rsce",
        "rscl",
        "rsct",
    ]
)
"""Parameters that belong to `sig`; without it they are anything."""


def may_be_kept(storage: Storage) -> bool:
    """Return whether nothing that opens a storage may be a secret."""
    if storage.protocol != "sql":
        return not storage.options
    if set(storage.options) != {"url"}:
        return not storage.options
    from sqlalchemy import make_url

    from prefect_parallelrun.datasets.sql_connection import shown

    url = make_url(storage.options["url"])
    return shown(url) == url.render_as_string(hide_password=False)


def kept(storage: Storage) -> Storage:
    """Return a storage as it may be written down."""
    return storage if may_be_kept(storage) else replace(storage, hidden=Hidden(), left_out=True)


def unsigned(parameter: str, url: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a URL without the signature or secret in its query, and the options that hand it to the server.

    URLs are written to logs, reports and run folders, and options are not.

    Raises:
        ConfigError: it is signed, and of no web server; or there is a secret where no server gets it.
    """
    before, chain, last = url.rpartition("::")
    parts = urlsplit(last)
    query = parse_qsl(parts.query, keep_blank_values=True)
    names = {name.lower() for name, _ in query}
    elsewhere = [parts.fragment, *(value.partition(";")[2] for _, value in query)]
    if any(_SECRETS & _names_in(text) for text in elsewhere):
        raise errors.ConfigError(
            f"{parameter}: the {parts.scheme}:// URL holds a secret after a # or ; and URLs are written to "
            "logs and reports: leave it out, or set parameters apart with &"
        )
    if not names & _SECRETS:
        return url, dict(options)
    if parts.scheme not in ("http", "https"):
        raise errors.ConfigError(
            f"{parameter}: the {parts.scheme}:// URL holds a signature or another secret; give it by "
            "credentials, such as an AzureSasCredentials block, or by storage_options"
        )
    belong = {name for name in names if name in _SECRETS or _SIGNED.fullmatch(name)}
    if "sig" in names:
        belong |= names & _SIGNED_BY_AZURE
    secret = [(name, value) for name, value in query if name.lower() in belong]
    plain = urlencode([(name, value) for name, value in query if name.lower() not in belong])
    shown = urlunsplit(parts._replace(query=plain))
    return f"{before}{chain}{shown}", {**options, "params": secret}


def _names_in(text: str) -> set[str]:
    """Return the names of parameters in a text, whatever stands between them."""
    return {part.partition("=")[0].lower() for part in re.split("[&;?]", text) if "=" in part}
