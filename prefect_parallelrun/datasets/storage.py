"""Where files are: on this machine, or in any storage that fsspec knows, with what opens it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_parallelrun import errors
from prefect_parallelrun.datasets import credentials as blocks
from prefect_parallelrun.datasets.hidden import Hidden

_EXTRAS = {
    "s3": "s3", "s3a": "s3",
    "abfs": "azure", "abfss": "azure", "az": "azure", "adl": "azure",
    "gs": "gcs", "gcs": "gcs",
    "http": "http", "https": "http",
}  # fmt: skip
"""What to install for a protocol: the extra of this package."""
_PORT = re.compile(r"[^:]*(:\d*)?")
"""A host with its port, if any."""
CONNECT_S = 15.0
"""Of an HTTP server that does not even take the connection."""
SILENCE_S = 60.0
"""Of an HTTP server that sends nothing more. aiohttp's own limit is one for the whole file."""


@dataclass(frozen=True, slots=True)
class Storage:
    """One storage and how to get in; it shows no secret, and one that is pickled may hold some."""

    protocol: str
    """`file`, or the first part of a URL: `s3`, `abfs`, `https`, …"""
    credentials: str | None = None
    """`<slug of the block's type>/<name of the block>`: the Prefect block that holds the secrets."""
    hidden: Hidden = field(default_factory=Hidden, repr=False)
    """`storage_options` that the user gave; there may be secrets among them."""
    left_out: bool = False
    """Whether there were options, but they were not kept, since they may be secret."""

    @property
    def options(self) -> Mapping[str, Any]:
        """`storage_options` that the user gave; there may be secrets among them."""
        return self.hidden.opened()

    @property
    def is_local(self) -> bool:
        """Whether its files are read in place."""
        return self.protocol == "file"

    def unlocked(self) -> Storage:
        """Return the storage with what its credentials block gives among the options, for a node.

        Raises:
            ConfigError: there is no such block, or it cannot be read; or what opens the storage was not
                kept.
        """
        if self.left_out:
            raise errors.ConfigError(
                f"the {self.protocol}:// storage was opened with storage_options, or by what was in its "
                "URL, and as these may be secret they were not kept with the run: run the step itself "
                "again, or make it with a credentials block, of which the name is kept"
            )
        if self.credentials is None:
            return self
        options = {**blocks.options_of(self.credentials), **self.options}
        return Storage(self.protocol, None, Hidden(options))

    def filesystem(self, url: str = "") -> Any:
        """Return the fsspec filesystem of this storage.

        Args:
            url: Of the file or folder to open; needed where the URL says more than the options, such
                as the account, or the archive (`zip://…::s3://…`).

        Raises:
            ConfigError: a package for the protocol is missing, or the options do not fit it.
            Exception: an archive cannot be read; whatever its storage raises.
        """
        from fsspec.core import url_to_fs

        storage = self.unlocked()
        if self.is_local:
            url = ""  # what looks like a chain there is a name
        chain = [part.partition("://")[0] for part in (url or self.protocol).split("::")]
        options = dict(storage.options)
        if len(chain) > 1:
            if not options.keys() & set(chain):
                # Without names, they are for the storage at the end of the chain.
                options = {chain[-1]: options}
            # fsspec would keep the archive open, and not see that it was changed.
            options["skip_instance_cache"] = True
        try:
            if len(chain) > 1:
                options[chain[-1]] = _with_defaults(chain[-1], options.get(chain[-1], {}))
            else:
                options = _with_defaults(chain[0], options)
            return url_to_fs(url or f"{self.protocol}://", **options)[0]
        except ImportError as error:
            extra = next((_EXTRAS[name] for name in chain if name in _EXTRAS), None)
            how = f'pip install "prefect-parallelrun[{extra}]"' if extra else str(error)
            raise errors.ConfigError(
                f"{'::'.join(chain)}:// needs a package that is not installed: {how}"
            ) from None
        except (TypeError, ValueError, KeyError) as error:
            if len(chain) > 1 and isinstance(error, ValueError):
                raise  # of an archive, which is read here
            # Never its text, which may quote an option.
            raise errors.ConfigError(
                f"{'::'.join(chain)}:// cannot be opened with these storage_options ({type(error).__name__}): "
                f"look up which ones fsspec takes for it; given are {sorted(storage.options)}"
            ) from None


def check_protocols(url: str) -> None:
    """Refuse a URL of a protocol that nobody knows.

    Raises:
        ConfigError: fsspec knows no such protocol, or there is a password in the URL, or a user in that of
            a web server.
    """
    import fsspec

    for part in url.split("::"):
        protocol, mark, rest = part.partition("://")
        if protocol.lower() not in fsspec.available_protocols() and (mark or "::" in url):
            raise errors.ConfigError(
                f"{protocol}:// is unknown: use a protocol of fsspec, such as s3, abfs, gs, https"
            )
        place = re.split("[/?#]", rest, maxsplit=1)[0]
        user, at, _ = place.rpartition("@")
        web = protocol.lower() in ("http", "https")
        # A token for a user, or a slash in a password: what was taken for the port is none.
        if ":" in user or (web and (at or not _PORT.fullmatch(place))):
            raise errors.ConfigError(
                f"the {protocol}:// URL names a user or a password in front of its host, and URLs are "
                "written to logs and reports: give them by credentials, such as "
                f"{'an HttpCredentials' if web else 'a'} block, or by storage_options"
            )


def _with_defaults(protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for a filesystem that give limits to the requests of plain HTTP."""
    options = dict(options)
    if protocol not in ("http", "https"):
        return options
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    options["client_kwargs"] = {"timeout": limits, **(options.get("client_kwargs") or {})}
    # A file that is compressed on its way has neither size nor ranges.
    options["headers"] = {"Accept-Encoding": "identity", **(options.get("headers") or {})}
    return options


LOCAL = Storage("file")
