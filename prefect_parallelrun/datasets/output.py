"""Where a step's output goes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from prefect_parallelrun import errors
from prefect_parallelrun.datasets import remote
from prefect_parallelrun.datasets.dataset import checked_name
from prefect_parallelrun.datasets.files import FileDataset
from prefect_parallelrun.datasets.storage import LOCAL, Storage


class OutputFileDatasetConfig:
    """The folder for a step's output; also an input of a later step."""

    def __init__(
        self,
        name: str = "output",
        destination: str | os.PathLike[str] | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        credentials: object = None,
    ) -> None:
        """Describe an output.

        Args:
            name: Letters, digits, underscores and dashes.
            destination: A folder, made if missing, or a URL of any storage that fsspec knows, to
                which the output is taken at the end. None: a folder of the run.
            storage_options: What fsspec needs to open the storage; secrets in it are never kept.
            credentials: A Prefect block that gives them, saved, or its name.

        Raises:
            ConfigError: a value cannot be used.
        """
        self._name = checked_name(name)
        self._storage, self._destination = LOCAL, None
        if destination is not None:
            self._storage, self._destination = remote.located(
                "destination", destination, storage_options, credentials
            )

    @property
    def name(self) -> str:
        """How the step calls this output."""
        return self._name

    @property
    def storage(self) -> Storage:
        """Where the folder is."""
        return self._storage

    @property
    def destination(self) -> str | None:
        """The folder, absolute, or its URL; None for a folder of the run."""
        return self._destination

    def as_input(self, name: str | None = None) -> FileDataset:
        """Return the files that will be in this output, as an input of a later step.

        Raises:
            ConfigError: it has no destination, so that nobody knows yet where it will be.
        """
        if self._destination is None:
            raise errors.refuse(
                "destination",
                None,
                "to be an input it must be a folder; or give the step's result to the next step",
            )
        dataset = FileDataset((self._destination,), storage=self._storage)
        return dataset.as_named_input(name or self._name)

    def __repr__(self) -> str:
        return f"OutputFileDatasetConfig({self._name!r}, {self._destination!r})"
