"""Which GPUs a node has."""

from __future__ import annotations

import os
from collections.abc import Mapping


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
