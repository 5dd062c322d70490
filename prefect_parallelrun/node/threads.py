"""The cores of a node, and how many threads numeric libraries begin in each of its worker processes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import dask
import dask.system

OF_ALL = "OMP_NUM_THREADS"
"""OpenMP's own, which the libraries below heed, too, where they have none of theirs."""
OF_ONE = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
PRESET = "distributed.nanny.pre-spawn-environ"
"""Where Dask keeps what its nanny sets for a Dask worker: one thread each, as if all work were tasks of
many threads. That is meant for the Dask worker, in which no script runs."""


def cores_here() -> int:
    """Return how many cores this process may use: those of the machine, or of its container's share."""
    return dask.system.cpu_count()


def settings(
    given: Mapping[str, str], *, cores: int, processes: int, has_nanny: bool
) -> dict[str, str]:
    """Return the variables that share the cores of a node among its processes.

    What the user has set holds, for the step or where the Dask worker was started; their number for
    OpenMP is that of all.

    Args:
        given: the user's `environment_variables`.
        cores: of the node: the threads of its Dask worker, for several may share a host, and this is how
            each is told its part; an embedded one has its part of `cores_here`.
        processes: of the node.
        has_nanny: whether the Dask worker has one, which may have set such variables.
    """
    preset = dask.config.get(PRESET, {})
    if not has_nanny and not _are_left_here(preset):
        preset = {}
    theirs = {
        name: value
        for name in (OF_ALL, *OF_ONE)
        if (value := given.get(name, os.environ.get(name))) is not None
        and (name in given or value != str(preset.get(name)))
    }
    shared = theirs.get(OF_ALL, str(max(1, cores // processes)))
    return {name: theirs.get(name, shared) for name in (OF_ALL, *OF_ONE)}


def _are_left_here(preset: Mapping[str, object]) -> bool:
    """Whether a nanny has set its variables in this process, or in one that this one comes from.

    It sets them where it runs itself, for good: in the flow's process say, where the Dask workers of a
    task runner were started. What it sets beside the threads shows that they are not the user's.
    """
    beside = {name: value for name, value in preset.items() if name not in (OF_ALL, *OF_ONE)}
    return bool(beside) and all(os.environ.get(name) == str(beside[name]) for name in beside)
