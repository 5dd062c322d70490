"""Which GPUs a node has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any


def count(resources: Mapping[str, float]) -> int:
    """Return how many GPUs the node of this process has.

    The Dask worker's declared `GPU` resource, else what NVML sees within the Dask worker's own
    `CUDA_VISIBLE_DEVICES`, else none.
    """
    declared = resources.get("GPU")
    if declared is not None:
        return int(declared)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = _nvml_count()
    if visible is None or not present:
        return present
    # CUDA stops at the first invalid entry; the empty string shows none (CUDA programming guide).
    devices = []
    for entry in visible.split(","):
        if not entry.strip() or entry.strip().startswith("-"):
            break
        devices.append(entry)
    return min(len(devices), present)


def _nvml_count() -> int:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


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
