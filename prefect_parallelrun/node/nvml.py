"""What NVML, the library of NVIDIA's driver, tells of a host's GPUs; where it fails, no run does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or an instance of one (MIG)."""

    visible: str
    """By what CUDA finds it."""
    key: str
    """Its UUID: the same however it is named."""
    index: int | None
    """In the order of the PCI bus; None for an instance."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The GPUs of a host, in the order of the PCI bus."""

    devices: tuple[Device, ...] = ()
    """Instances stand in place of a GPU that is divided into such."""
    trouble: str = ""
    """What is wrong, in words; empty: nothing is."""
    missing: str = ""
    """Why nobody tells of GPUs, as on any host that has none."""
    divided: frozenset[int] = frozenset()
    """Indices of the GPUs that are divided."""


def survey() -> Survey:
    """Return what NVML sees."""
    try:
        import pynvml
    except ImportError:
        return Survey(missing="the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        told = f"NVML says: {error}"
        none = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        return Survey(missing=told) if error.value in none else Survey(trouble=told)
    try:
        return _seen(pynvml)
    except pynvml.NVMLError as error:
        return Survey(trouble=f"NVML says: {error}")
    finally:
        _close(pynvml)


def _seen(nvml: Any) -> Survey:
    found: list[Device] = []
    troubles: list[str] = []
    divided: set[int] = set()
    is_plain = True
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if _is_divided(nvml, handle):
                divided.add(index)
                keys = [_text(nvml.nvmlDeviceGetUUID(one)) for one in _instances(nvml, handle)]
                found.extend(Device(key, key, None) for key in keys)
                if not keys:
                    troubles.append(f"GPU {index} is in MIG mode, and has no instance")
            else:
                found.append(Device(str(index), _text(nvml.nvmlDeviceGetUUID(handle)), index))
        except nvml.NVMLError as error:
            is_plain = False
            if error.value != nvml.NVML_ERROR_NO_PERMISSION:  # else it is somebody else's
                troubles.append(f"GPU {index} does not answer: {error}")
    if divided or not is_plain:
        # Nobody says how CUDA counts these: the others are named so that it does not matter.
        found = [Device(one.key, one.key, one.index) for one in found]
    return Survey(tuple(found), "; ".join(troubles), divided=frozenset(divided))


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            return False  # most cannot be; an old driver knows of none
        raise
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _instances(nvml: Any, handle: Any) -> Iterator[Any]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError:  # fewer are made than there may be
            continue


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _close(nvml: Any) -> None:
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlShutdown()


class Devices:
    """The GPUs that NVML counts, open until they are closed; none where it does not answer."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        """None stands for one that fell off the bus, or is not ours to see: the others keep their number."""
        with contextlib.suppress(ImportError):
            import pynvml

            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._nvml = pynvml
                for number in range(pynvml.nvmlDeviceGetCount()):
                    handle = self._told(pynvml.nvmlDeviceGetHandleByIndex, number)
                    self._handles.append(handle)

    def __len__(self) -> int:
        return len(self._handles)

    def usage(self) -> Iterator[tuple[object, object]]:
        """Yield percent and bytes in use of each; empty strings for what it does not tell."""
        for handle in self._handles:
            rates = memory = None
            if handle is not None:
                # Of a GPU that is divided (MIG) only the second is told.
                rates = self._told(self._nvml.nvmlDeviceGetUtilizationRates, handle)
                memory = self._told(self._nvml.nvmlDeviceGetMemoryInfo, handle)
            yield "" if rates is None else rates.gpu, "" if memory is None else memory.used

    def close(self) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            _close(self._nvml)
            self._nvml = None
            self._handles.clear()

    def _told(self, ask: Any, what: Any) -> Any:
        with contextlib.suppress(self._nvml.NVMLError):
            return ask(what)
        return None
