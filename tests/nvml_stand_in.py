"""NVML without a GPU: the functions of NVIDIA's library that we call, as their documentation has them.

They are C functions made by ctypes, put where `pynvml` keeps the library, so that all of `pynvml` is real.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass

import dask
import distributed  # noqa: F401  (brings the defaults of its settings)
import pynvml

_TEXTS = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "Driver Not Loaded",
    pynvml.NVML_ERROR_GPU_IS_LOST: "GPU is lost",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "Driver/library version mismatch",
    pynvml.NVML_ERROR_UNKNOWN: "Unknown Error",
}


@dataclass(frozen=True)
class Card:
    """A GPU of a host."""

    uuid: str
    instances: tuple[str, ...] | None = None
    """UUIDs of its MIG instances; None: it is not in MIG mode."""
    error: int = pynvml.NVML_SUCCESS
    """What every question about it is answered with."""
    percent: int = 0
    used: int = 0


def cards(count: int) -> list[Card]:
    """Return whole GPUs, with UUIDs that begin with `GPU-0`, `GPU-1` and so on."""
    return [Card(f"GPU-{n}0000000-1111-2222-3333-444444444444") for n in range(count)]


class Library:
    """What `ctypes.CDLL("libnvidia-ml.so.1")` would be."""

    def __init__(self, *present: Card, refusal: int = pynvml.NVML_SUCCESS) -> None:
        self.opened = 0
        self._refusal = refusal
        self._cards = present
        # A handle is an address: here the place of a UUID in this list, counted from 1.
        self._handles = [card.uuid for card in present]
        for card in present:
            self._handles += card.instances or ()
        for name, (function, *types) in self._functions().items():
            setattr(self, name, ctypes.CFUNCTYPE(c_int, *types)(self._guarded(name, function)))
        self.nvmlErrorString = ctypes.CFUNCTYPE(c_char_p, c_int)(
            lambda code: _TEXTS.get(code, f"error {code}").encode()
        )

    def put_in_place(self, monkeypatch) -> Library:
        """Let `pynvml` find it, and Dask's own diagnostics, which remember what they saw, leave it alone."""
        monkeypatch.setitem(dask.config.get("distributed.diagnostics"), "nvml", False)
        monkeypatch.setattr(pynvml, "nvmlLib", self)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return self

    def _functions(self):
        number = POINTER(c_uint)
        return {
            "nvmlInitWithFlags": (self._open, c_uint),
            "nvmlShutdown": (self._shut,),
            "nvmlDeviceGetCount_v2": (self._count, number),
            "nvmlDeviceGetHandleByIndex_v2": (self._by_index, c_uint, c_void_p),
            "nvmlDeviceGetUUID": (self._uuid, c_void_p, POINTER(c_char), c_uint),
            "nvmlDeviceGetMigMode": (self._mig_mode, c_void_p, number, number),
            "nvmlDeviceGetMaxMigDeviceCount": (self._most_instances, c_void_p, number),
            "nvmlDeviceGetMigDeviceHandleByIndex": (self._instance, c_void_p, c_uint, c_void_p),
            "nvmlDeviceGetUtilizationRates": (self._rates, c_void_p, c_void_p),
            "nvmlDeviceGetMemoryInfo": (self._memory, c_void_p, c_void_p),
        }

    def _guarded(self, name, function):
        def call(*arguments):
            if not self.opened and name != "nvmlInitWithFlags":
                return pynvml.NVML_ERROR_UNINITIALIZED
            return function(*arguments) or pynvml.NVML_SUCCESS

        return call

    def _open(self, _flags):
        if self._refusal == pynvml.NVML_SUCCESS:
            self.opened += 1
        return self._refusal

    def _shut(self):
        self.opened -= 1

    def _count(self, count):
        count[0] = len(self._cards)

    def _by_index(self, index, found):
        if index >= len(self._cards):
            return pynvml.NVML_ERROR_INVALID_ARGUMENT
        if self._cards[index].error:
            return self._cards[index].error
        return _put_handle(found, index)

    def _uuid(self, handle, text, length):
        uuid = self._handles[handle - 1].encode() + b"\0"
        if len(uuid) > length:
            return pynvml.NVML_ERROR_INSUFFICIENT_SIZE
        ctypes.memmove(text, uuid, len(uuid))

    def _mig_mode(self, handle, current, pending):
        instances = self._cards[handle - 1].instances
        if instances is None:
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        current[0] = pending[0] = pynvml.NVML_DEVICE_MIG_ENABLE

    def _most_instances(self, handle, count):
        count[0] = 0 if self._cards[handle - 1].instances is None else 7

    def _instance(self, handle, index, found):
        instances = self._cards[handle - 1].instances or ()
        if index >= len(instances):
            return pynvml.NVML_ERROR_NOT_FOUND
        return _put_handle(found, self._handles.index(instances[index]))

    def _rates(self, handle, rates):
        card = self._cards[handle - 1]
        if card.instances is not None:
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        ctypes.cast(rates, POINTER(c_uint))[0] = card.percent

    def _memory(self, handle, memory):
        total, free, used = range(3)
        told = ctypes.cast(memory, POINTER(c_ulonglong))
        told[total], told[used] = 16 << 30, self._cards[handle - 1].used
        told[free] = told[total] - told[used]


def _put_handle(found, place):
    ctypes.cast(found, POINTER(c_void_p))[0] = place + 1
