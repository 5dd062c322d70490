"""A step in a YAML file, for the command line: the file's settings as a `ParallelRunStep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_parallelrun.step import ParallelRunStep


def load_step(path: str | Path) -> ParallelRunStep:
    """Return the step that a YAML file describes; paths in it are relative to the file's folder.

    Raises:
        ConfigError: the file cannot be read, or says something that cannot work; the text names file,
            key and value.
    """
    raise NotImplementedError
