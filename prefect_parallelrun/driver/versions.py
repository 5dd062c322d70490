"""Whether a Dask worker has this package, in this version: it is asked before it becomes a node."""

from __future__ import annotations

import importlib.metadata
from typing import Any

PACKAGE = "prefect-parallelrun"


def ours() -> str | None:
    """Return the version that the driver runs; None where it was not installed, but is only on the path."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def question() -> tuple[Any, str]:
    """Return a function and its argument, to be called on a Dask worker.

    It is the standard library's: nothing of ours is there yet that could be called, and code that is sent
    along is for one version of Python alone.
    """
    return importlib.metadata.version, PACKAGE


def trouble(answer: str | Exception) -> str:
    """Return why a Dask worker cannot be a node, and what to install there; empty if it can.

    Args:
        answer: what `question` returned there, or raised.
    """
    wanted = ours()
    if wanted is None or answer == wanted:
        return ""
    install = f'pip install "{PACKAGE}=={wanted}"'
    if isinstance(answer, Exception):
        return (
            f"it has no {PACKAGE} installed: run {install} in the environment of the Dask workers"
        )
    return (
        f"it has {PACKAGE} {answer}, and the flow has {wanted}: run {install} in the environment of the "
        "Dask workers, or install their version where the flow runs"
    )
