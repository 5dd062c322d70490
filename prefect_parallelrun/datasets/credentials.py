"""Credentials by the name of their Prefect block: the secrets stay there until they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from prefect_parallelrun import errors

BLOCKS = "prefect_parallelrun.blocks"
"""Loaded by name, when a secret is needed: datasets know of Prefect only that it keeps secrets."""


def reference(credentials: object) -> str | None:
    """Return the name by which a credentials block is found again; None for no credentials.

    Args:
        credentials: a block that was saved, or its name, `<slug of the block's type>/<name>`.

    Raises:
        ConfigError: it is neither; a block that is not saved, for one.
    """
    if credentials is None:
        return None
    if isinstance(credentials, str):
        if len(credentials.split("/")) == 2 and all(credentials.split("/")):
            return credentials
    elif name := name_of(credentials):
        return name
    # Never the value itself: it may be a secret.
    shown = "text" if isinstance(credentials, str) else type(credentials).__name__
    raise errors.ConfigError(
        f"credentials cannot be used (it is {shown}): give a Prefect block that was saved, with "
        "block.save('name'), or its name, '<block type>/<block name>'"
    )


def name_of(block: object) -> str | None:
    """Return the name by which a saved Prefect block is found again; None for anything else."""
    if name := getattr(block, "_block_document_name", None):
        return f"{type(block).get_block_type_slug()}/{name}"  # type: ignore[attr-defined]
    return None


def options_of(name: str) -> dict[str, Any]:
    """Return the fsspec `storage_options` of a credentials block.

    Raises:
        ConfigError: there is no such block, or it gives none.
    """
    options: dict[str, Any] = import_module(BLOCKS).storage_options_of(name)
    return options
