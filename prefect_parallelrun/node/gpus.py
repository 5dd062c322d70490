"""Which GPUs a node has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import distributed

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun.node import nvml
from prefect_parallelrun_runtime.messages import Gpu

RESOURCE = "GPU"
"""The Dask resource by which a Dask worker declares how many GPUs it has."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Found:
    """The GPUs of a node, in the order in which they are given to its processes."""

    gpus: tuple[Gpu, ...]
    """That it sees."""
    count: int
    """So many of them are its own at a time."""
    trouble: str = ""
    """What is not as it should be, in words; empty: all is."""


def find(
    resources: Mapping[str, float],
    environment: Mapping[str, str] = os.environ,
    *,
    given: Mapping[str, str] = _NONE,
    wanted: float | None = None,
    is_of_dask_cuda: bool = False,
) -> Found:
    """Return the GPUs that the node of a Dask worker has.

    They are as many as the Dask worker declares as its `GPU` resource; else what NVML sees; of either only
    what `CUDA_VISIBLE_DEVICES` shows; else none.

    Args:
        resources: of the Dask worker.
        environment: of the Dask worker.
        given: the user's `environment_variables`.
        wanted: the user's `gpus_per_process`.
        is_of_dask_cuda: whether dask-cuda started it: each of its workers sees all GPUs of the host, its
            own one first.
    """
    survey = nvml.survey()
    visible, whose = environment.get(VISIBLE), "its Dask worker"
    if VISIBLE in given:
        visible, whose = given[VISIBLE], "environment_variables"
    declared = resources.get(RESOURCE)
    troubles = [survey.trouble]
    if visible is not None:
        gpus, stopped_at = _among(visible, survey)
        if stopped_at:
            troubles.append(f"{VISIBLE}={visible!r} of {whose} names {stopped_at}")
    else:
        gpus = [Gpu(visible=one.visible, key=one.key) for one in survey.devices]
        if not survey.devices and not survey.divided and declared:
            gpus = [Gpu(visible=str(n), key=_key(str(n))) for n in range(int(declared))]
    if declared is None:
        # What nobody declares, and NVML does not see, may be there no more.
        gpus = gpus[: 1 if is_of_dask_cuda else None] if survey.devices else []
        count = len(gpus)
    else:
        count = min(int(declared), len(gpus))
        if count < declared < 1:
            troubles.append(f"its Dask worker declares {declared:g} GPUs: only whole ones count")
        # What the user has chosen of them is no shortage.
        if count < int(declared) and VISIBLE not in given:
            shows = "NVML" if visible is None else f"{VISIBLE}={visible!r}"
            troubles.append(
                f"its Dask worker declares {declared:g} GPUs, and {shows} shows {count}"
            )
    if wanted and not count:
        troubles.append(survey.missing)
    return Found(tuple(gpus), count, "; ".join(filter(None, troubles)))


def is_of_dask_cuda(worker: distributed.Worker) -> bool:
    """Whether dask-cuda started a Dask worker: nothing but its plugins tells."""
    return any(type(one).__module__.startswith("dask_cuda.") for one in worker.plugins.values())


def _among(visible: str, survey: nvml.Survey) -> tuple[list[Gpu], str]:
    """Return what `CUDA_VISIBLE_DEVICES` shows of what there is; all that it names, if nobody tells.

    CUDA stops at the first entry that is no device, and the empty text shows none (CUDA programming
    guide, environment variables). The second value says at which it stopped, if it reads as a device.
    """
    shown: list[Gpu] = []
    for entry in map(str.strip, visible.split(",")):
        if not entry.isdecimal() and not entry.startswith(("GPU-", "MIG-")):
            break  # such as -1, or Slurm's NoDevFiles
        key = _key(entry)
        if survey.devices or survey.divided:
            fits = [one for one in survey.devices if _is_meant(entry, one)]
            if len(fits) != 1:  # a short UUID may fit several, and is none then
                return shown, _misfit(entry, len(fits), survey)
            key = fits[0].key
        if key in (one["key"] for one in shown):
            return shown, f"{entry} twice"
        shown.append(Gpu(visible=entry, key=key))
    return shown, ""


def _key(entry: str) -> str:
    """Return the key of what NVML does not tell of: hosts may share their temporary folder, but no GPU."""
    if not entry.isdecimal():
        return entry
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}-{entry}"
    except OSError:
        return f"{os.uname().nodename}-{entry}"


def _is_meant(entry: str, device: nvml.Device) -> bool:
    if entry.isdecimal():
        return device.index == int(entry)
    return device.key.startswith(entry)


def _misfit(entry: str, fits: int, survey: nvml.Survey) -> str:
    if entry.isdecimal() and int(entry) in survey.divided:
        return f"{entry}, a GPU that is divided into instances (MIG): name these by their UUIDs"
    return f"{entry}, which is {'several GPUs' if fits else 'no GPU'} here"
