"""Datasets that were registered: one block for each version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from pydantic import Field, HttpUrl

from prefect_parallelrun.blocks.loading import answered
from prefect_parallelrun.blocks.look import STRICT, WEB

_PAGE_OF_BLOCKS = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
_PAGE = 200
"""Block documents that the API gives out at once."""


class RegisteredDataset(Block):
    """One version of a dataset that was registered; use `FileDataset.get_by_name` to have it.

    Example:
        Load what is known of version 3 of a dataset:
        ```python
        from prefect_parallelrun.blocks import RegisteredDataset

        registered = RegisteredDataset.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Registered Dataset"
    _logo_url = WEB
    _documentation_url = _PAGE_OF_BLOCKS
    _description = "One version of a dataset of parallel-run steps; it holds no secret."
    model_config = STRICT

    # Never None: the pages of Prefect 3.8 mistake the values of a block that is edited for a JSON schema,
    # in which this must be a text.
    description: str = Field(default="", description="For people.")
    definition: dict[str, Any] = Field(
        description="All of the dataset: paths, format, credentials."
    )


def registered_versions(name: str) -> dict[int, dict[str, Any]]:
    """Return the definition of each version of a registered dataset; empty where there is none.

    Raises:
        ConfigError: Prefect's API does not answer.
    """
    version = re.compile(re.escape(name) + r"-v([1-9][0-9]*)")
    with answered(f"dataset {name!r}"):
        documents = _documents(f"{name}-v")
        named = [(version.fullmatch(one["name"] or ""), one["data"]) for one in documents]
    return {int(match[1]): data["definition"] for match, data in named if match}


def keep_version(
    name: str, version: int, definition: dict[str, Any], description: str | None
) -> bool:
    """Keep one version of a dataset, unless there is one by now; return whether it was kept.

    Raises:
        ConfigError: Prefect's API does not answer, or refuses it.
    """
    block = RegisteredDataset(definition=definition, description=description or "")
    with answered(f"dataset {name!r}"):
        try:
            block.save(f"{name}-v{version}", _sync=True)  # type: ignore[call-arg]
        except ValueError as error:
            if isinstance(error.__cause__, ObjectAlreadyExists):
                return False
            raise
    return True


def _documents(beginning: str) -> Iterator[dict[str, Any]]:
    """Yield the documents of registered datasets whose names hold a text."""
    slug = RegisteredDataset.get_block_type_slug()
    with get_client(sync_client=True) as client:
        try:
            block_type = client.read_block_type_by_slug(slug)
        except ObjectNotFound:
            return  # nothing was ever registered
        wanted = {"block_type_id": {"any_": [str(block_type.id)]}, "name": {"like_": beginning}}
        offset = 0
        while True:
            page = client.request(
                "POST",
                "/block_documents/filter",
                json={"block_documents": wanted, "limit": _PAGE, "offset": offset},
            ).json()
            yield from page
            offset += _PAGE
            if len(page) < _PAGE:
                return
