"""A Dask cluster by its description: where it is, or how one is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import quote

from prefect_parallelrun.errors import ConfigError, refuse

_OURS = ("address", "asynchronous", "set_as_default")
"""Arguments of the Dask client that are none of the user's: they would break, or say twice, what is
settled elsewhere."""
_ESCAPES: tuple[Callable[[str], str], ...] = (
    lambda text: repr(text)[1:-1],
    lambda text: repr(text.encode(errors="backslashreplace"))[2:-1],
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: quote(text, safe=""),
)
"""How the error of a library may write a text."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DaskComputeTarget:
    """A Dask cluster that is there, or one that is started for a run and ended with it.

    The names are those of prefect-dask's DaskTaskRunner.

    Raises:
        ConfigError: the arguments do not go together.
    """

    address: str | None = None
    """Of the scheduler of a cluster that is there."""
    tls_ca: str | None = None
    """Certificate of the authority of an encrypted cluster: path of a PEM file, or its content."""
    tls_certificate: str | None = None
    """Certificate of the client, path or content."""
    tls_key: str | None = field(default=None, repr=False)
    """Key of that certificate, path or content."""
    cluster_class: str | None = None
    """Import path of what starts a cluster."""
    cluster_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Its arguments."""
    cluster_secrets: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Further arguments, which are not shown."""
    adapt_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Limits within which that cluster grows and shrinks; nothing for a fixed one."""
    client_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of our Dask client."""

    def __repr__(self) -> str:
        """Show which one it is; arguments may hold what nobody is to see."""
        if self.address is not None:
            return f"DaskComputeTarget(address={self.address!r})"
        return f"DaskComputeTarget(cluster_class={self.cluster_class!r})"

    def as_saved(self) -> dict[str, Any]:
        """Return it as YAML and JSON have it; it is made again of that.

        Raises:
            ConfigError: it has secrets, which belong into no file.
        """
        if self.cluster_secrets or self.tls_key:
            raise ConfigError(
                "compute_target has secrets, which are not saved: make a DaskComputeTargetBlock of it, and "
                "give its name"
            )
        saved = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in saved.items() if value}

    def told(self, error: BaseException) -> str:
        """Return what an error says, without what is secret: libraries quote what they were given."""
        text = f"{type(error).__name__}: {error}"
        secrets = {*filter(None, _texts([self.cluster_secrets, self.tls_key]))}
        for _ in range(2):  # a text that was quoted is quoted again with what it is in
            secrets |= {escape(secret) for secret in secrets for escape in _ESCAPES}
        # The longest first: one may be within another.
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "…")
        return text

    def __post_init__(self) -> None:
        if self.address is not None:
            self._check_address(self.address)
        elif self.cluster_class is not None:
            self._check_class(self.cluster_class)
        else:
            raise ConfigError("a Dask compute target needs an address, or a cluster_class")
        for name in _OURS:
            if name in self.client_kwargs:
                # Not its value, which may be anything.
                raise ConfigError(f"client_kwargs has {name!r}, which the run sets itself")

    def _check_address(self, address: str) -> None:
        if "@" in address:
            raise ConfigError("address has a login, of which Dask knows none: leave it out")
        if "://" not in address:
            raise refuse(
                "address", address, "it must name its protocol, such as 'tcp://10.0.0.4:8786'"
            )
        if self.cluster_class is not None:
            raise refuse(
                "cluster_class",
                self.cluster_class,
                f"address={address!r} is given too, where a cluster is: give one of the two",
            )
        for name in ("cluster_kwargs", "cluster_secrets", "adapt_kwargs"):
            if getattr(self, name):
                raise ConfigError(
                    f"{name} is for a cluster_class, and address={address!r} names a cluster that is "
                    "there: leave one of the two out"
                )
        given = [self.tls_ca, self.tls_certificate, self.tls_key]
        if any(one is not None for one in given):
            if not all(given):
                raise ConfigError("tls_ca, tls_certificate and tls_key go together: give all three")
            if address.startswith("tcp://"):
                raise refuse(
                    "address", address, "tls_… are given: it must be encrypted, such as 'tls://…'"
                )

    def _check_class(self, path: str) -> None:
        if not all(part.isidentifier() for part in path.split(".")) or "." not in path:
            raise refuse(
                "cluster_class",
                path,
                "it must be an import path, such as 'dask_kubernetes.operator.KubeCluster'",
            )
        if self.tls_ca or self.tls_certificate or self.tls_key:
            raise refuse(
                "cluster_class",
                path,
                "tls_… are for a cluster that is there: what is started tells its client itself how "
                "it is encrypted",
            )
        if both := sorted(self.cluster_kwargs.keys() & self.cluster_secrets.keys()):
            raise ConfigError(f"cluster_kwargs and cluster_secrets both have {both[0]!r}")
        for name in ("cluster_kwargs", "cluster_secrets"):
            if "asynchronous" in getattr(self, name):
                raise ConfigError(f"{name} has 'asynchronous', which the run sets itself")


def _texts(values: Any) -> list[str]:
    """Return all texts within values."""
    if isinstance(values, Mapping):
        return [text for value in values.values() for text in _texts(value)]
    if isinstance(values, list | tuple):
        return [text for value in values for text in _texts(value)]
    return [str(values)] if values is not None and not isinstance(values, bool) else []
