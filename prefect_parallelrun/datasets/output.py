"""Where a step's output goes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from prefect_parallelrun import errors
from prefect_parallelrun.datasets import listing
from prefect_parallelrun.datasets.dataset import checked_name, refuse_later
from prefect_parallelrun.datasets.files import FileDataset


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
            destination: A folder, made if missing. None: a folder of the run.

        Raises:
            ConfigError: a value cannot be used, or a parameter that is not supported yet is given.
        """
        refuse_later(storage_options=storage_options, credentials=credentials)
        self._name = checked_name(name)
        self._destination = (
            None if destination is None else listing.absolute_path("destination", destination)
        )

    @property
    def name(self) -> str:
        """How the step calls this output."""
        return self._name

    @property
    def destination(self) -> str | None:
        """The folder, absolute; None for a folder of the run."""
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
        return FileDataset.from_files(self._destination).as_named_input(name or self._name)

    def __repr__(self) -> str:
        return f"OutputFileDatasetConfig({self._name!r}, {self._destination!r})"
