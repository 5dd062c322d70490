"""What the blocks have in common: how Prefect's pages show them, and how strict they are."""

from __future__ import annotations

from prefect.types import SecretDict
from pydantic import ConfigDict, HttpUrl

_IMAGES = "https://cdn.sanity.io/images/3ugk85nk/production"
AZURE = HttpUrl(f"{_IMAGES}/54e3fa7e00197a4fbd1d82ed62494cb58d08c96a-250x250.png")
AWS = HttpUrl(f"{_IMAGES}/d74b16fe84ce626345adf235a47008fea2869a60-225x225.png")
SQL = HttpUrl(f"{_IMAGES}/3c7dff04f70aaf4528e184a3b028f9e40b98d68c-250x250.png")
WEB = HttpUrl(f"{_IMAGES}/c7247cb359eb6cf276734d4b1fbf00fb8930e89e-250x250.png")
PROGRAM = HttpUrl(f"{_IMAGES}/0b47a017e1b40381de770c17647c49cdf6388d1c-250x250.png")
DASK = HttpUrl("https://docs.dask.org/en/stable/_images/dask_icon.svg")

STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)
"""A field that a block does not have is a typing error, and not kept beside the others; and what is
refused may be a secret, so that the error does not show it."""


def no_secrets() -> SecretDict:
    """Return the default of a field with secrets: of one that may be None, the pages show no editor."""
    return SecretDict({})
