"""Which GPUs a node has, and what they are at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun_runtime.messages import Gpu

RESOURCE = "GPU"
"""The Dask resource by which a Dask worker declares how many GPUs it has: dask-cuda's word."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Found:
    """The GPUs of a node, in the order in which they are given to its processes."""

    gpus: tuple[Gpu, ...]
    """That it sees."""
    count: int
    """So many of them are its own at a time."""
    trouble: str = ""
    """Why there are fewer than were declared, in words; empty: there are not."""


def find(resources: Mapping[str, float], environment: Mapping[str, str] = os.environ) -> Found:
    """Return the GPUs that the node of a Dask worker has.

    They are what the Dask worker declares as its `GPU` resource; else what NVML sees; of either only what
    the Dask worker itself may see by its `CUDA_VISIBLE_DEVICES`, so that a worker of dask-cuda keeps its
    own; else none.

    Args:
        resources: of the Dask worker.
        environment: of the Dask worker.
    """
    present = _present()
    visible = environment.get(VISIBLE)
    if visible is not None:
        gpus = _among(visible, present)
    else:
        gpus = [Gpu(visible=one.visible, key=one.key) for one in present]
    declared = resources.get(RESOURCE)
    if declared is None:
        return Found(tuple(gpus), len(gpus)) if present else Found((), 0)
    count = int(declared)
    if visible is None and not present:
        gpus = [Gpu(visible=str(n), key=str(n)) for n in range(count)]
    trouble = ""
    if len(gpus) < count:
        seen = f"{VISIBLE}={visible!r}" if visible is not None else "NVML"
        trouble = f"its Dask worker declares {count} GPUs, and {seen} shows {len(gpus)}"
    return Found(tuple(gpus) if count else (), min(count, len(gpus)), trouble)


@dataclass(frozen=True, slots=True)
class _Present:
    """A GPU, or an instance of one (MIG), of which NVML tells."""

    visible: str
    """By what CUDA finds it."""
    key: str
    """Its UUID: the same however it is named."""
    index: int | None
    """In the order of the PCI bus; None for an instance."""


def _among(visible: str, present: Sequence[_Present]) -> list[Gpu]:
    """Return what `CUDA_VISIBLE_DEVICES` shows of what there is; all that it names, if nobody tells.

    CUDA stops at the first entry that is no device, and the empty text shows none (CUDA programming
    guide, environment variables).
    """
    shown: list[Gpu] = []
    for entry in map(str.strip, visible.split(",")):
        if not entry or entry.startswith("-"):
            break
        key = entry
        if present:
            fits = [one for one in present if _is_meant(entry, one)]
            if len(fits) != 1:  # a short UUID may fit several, and is none then
                break
            key = fits[0].key
        if key in (one["key"] for one in shown):
            break  # named twice, which CUDA refuses
        shown.append(Gpu(visible=entry, key=key))
    return shown


def _is_meant(entry: str, gpu: _Present) -> bool:
    if entry.isdecimal():
        return gpu.index == int(entry)
    return entry.startswith(("GPU-", "MIG-")) and gpu.key.startswith(entry)


def _present() -> list[_Present]:
    """Return what NVML sees: instances in place of a GPU that is divided into such (MIG)."""
    found: list[_Present] = []
    with _nvml() as nvml:
        if nvml is None:
            return found
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                if _is_divided(nvml, handle):
                    keys = [_text(nvml.nvmlDeviceGetUUID(one)) for one in _instances(nvml, handle)]
                    found.extend(_Present(key, key, None) for key in keys)
                else:
                    key = _text(nvml.nvmlDeviceGetUUID(handle))
                    found.append(_Present(str(index), key, index))
            except nvml.NVMLError:
                continue  # it fell off the bus, or is not ours to see
    return found


@contextmanager
def _nvml() -> Iterator[Any]:
    """Yield NVML, open; None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # most cannot be
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _instances(nvml: Any, handle: Any) -> Iterator[Any]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError:  # fewer are made than there may be
            continue


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Devices:
    """The GPUs that NVML tells of, open until they are closed; none where it does not answer."""

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        self._handles: list[Any] = []
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            self._open = False
            return
        self._open = True
        try:
            count = pynvml.nvmlDeviceGetCount()
            self._handles += [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(count)]
        except pynvml.NVMLError:  # a MIG partition, or a device that fell off the bus
            self._handles.clear()

    def __len__(self) -> int:
        return len(self._handles)

    def usage(self) -> Iterator[tuple[object, object]]:
        """Yield percent and bytes in use of each; empty strings for what it does not tell."""
        for handle in self._handles:
            try:
                yield (
                    self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
                    self._nvml.nvmlDeviceGetMemoryInfo(handle).used,
                )
            except self._nvml.NVMLError:
                yield "", ""

    def close(self) -> None:
        """Let go of NVML."""
        if self._open:
            self._open = False
            self._nvml.nvmlShutdown()
