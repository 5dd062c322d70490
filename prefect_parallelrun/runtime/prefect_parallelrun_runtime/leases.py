"""Which process has which GPUs: leases that hold on the whole host, and end with whoever has them.

Several nodes of a run may share a host, and each sees the same GPUs. A lease is the lock of a byte of a
file, one file for each GPU, in a folder of this user's on this host. The process that has the GPU inherits
the open file, so the kernel ends the lease with the last of those who have it, whoever dies first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import tempfile
import zlib

from prefect_parallelrun_runtime.messages import Gpu, Settings

_ORDER = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
"""NVML counts GPUs by their place on the bus; CUDA, unless it is told so, the fastest first (CUDA
programming guide)."""
_FLOCK = struct.Struct("hhqqi0q")
"""`struct flock` of fcntl(2): type, whence, start, length, pid."""
_SHARES = 1 << 16
"""Bytes of a GPU's file that are one run's."""


class Lease:
    """The GPUs of one process; none, if too few were free."""

    def __init__(self) -> None:
        self.gpus: list[Gpu] = []
        self.files: list[int] = []
        """Descriptors, for the process to inherit."""

    @property
    def environment(self) -> dict[str, str]:
        """What lets a process see these, and no others."""
        shown = {"CUDA_VISIBLE_DEVICES": ",".join(gpu["visible"] for gpu in self.gpus)}
        if any(gpu["visible"].isdecimal() for gpu in self.gpus):
            shown.update([_ORDER])
        return shown

    def close(self) -> None:
        """Let go of them here; they are free once their process has ended, too."""
        for file in self.files:
            os.close(file)
        self.files = []


class Leases:
    """The GPUs of a node, in its order, of which each of its processes gets its share.

    With `gpus_per_process` 1 (also where nothing is said) or more, each process has its GPUs alone; with
    a fraction, as many processes share one as that goes into 1. Other runs on this host count in the
    choice alone: of several GPUs the one with the fewest processes is taken.
    """

    def __init__(self, settings: Settings) -> None:
        self._gpus = settings["gpus"]
        self._count = settings["gpu_count"]
        self._given: list[Lease] = []
        wanted = settings["gpus_per_process"]
        per_process = 1 if wanted is None else wanted
        self._each = max(1, round(per_process)) if per_process else 0
        # 0.1 goes into 1 ten times, whatever floats make of it.
        self._shares = int(1 / per_process + 1e-9) if 0 < per_process < 1 else 1
        self._base = zlib.crc32(settings["run_id"].encode()) * _SHARES
        self._folder = os.path.join(tempfile.gettempdir(), f"parallelrun-gpus-{os.getuid()}")

    def take(self) -> Lease:
        """Lease what one process is to have.

        Raises:
            OSError: the files cannot be made.
        """
        taken = Lease()
        if not self._gpus or not self._each:
            return taken
        self._make_folder()
        with contextlib.ExitStack() as failing:
            failing.callback(taken.close)
            for gpu in self._candidates():
                if (file := self._take(gpu)) is not None:
                    taken.gpus.append(gpu)
                    taken.files.append(file)
                if len(taken.gpus) == self._each:
                    failing.pop_all()
                    self._given.append(taken)
                    taken.gpus.sort(key=self._gpus.index)
                    return taken
        return Lease()

    # -- inside ------------------------------------------------------------------------------

    def _candidates(self) -> list[Gpu]:
        """Return those of which a share may be taken, the least used first.

        A node whose Dask worker declares fewer than it sees, since others of its host declare the rest,
        uses no more than that at a time.
        """
        self._given = [lease for lease in self._given if lease.files]
        own = [gpu for gpu in self._gpus if any(gpu in lease.gpus for lease in self._given)]
        used = {gpu["key"]: self._processes(gpu) for gpu in self._gpus}
        found = sorted(self._gpus, key=lambda gpu: used[gpu["key"]])
        spare = self._count - len(own)
        return [gpu for gpu in found if gpu in own or (spare := spare - 1) >= 0]

    def _make_folder(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        found = os.lstat(self._folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it is not a folder of this user", self._folder)

    def _open(self, gpu: Gpu) -> int:
        name = "".join(c if c.isalnum() or c == "-" else "_" for c in gpu["key"])
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        return os.open(os.path.join(self._folder, name), flags, 0o600)

    def _take(self, gpu: Gpu) -> int | None:
        """Return the open file of a share of a GPU that was free; None if none is."""
        file = self._open(gpu)
        for share in range(self._shares):
            wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._base + share, 1, 0)
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
            except (BlockingIOError, PermissionError):
                continue
            return file
        os.close(file)
        return None

    def _processes(self, gpu: Gpu) -> int:
        """Return how many processes have a share of a GPU, those of other runs included."""
        file, start, found = self._open(gpu), 0, 0
        try:
            while True:
                asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 0, 0)
                kind, _, start, length, _ = _FLOCK.unpack(
                    fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
                )
                if kind == fcntl.F_UNLCK:
                    return found
                found, start = found + length, start + length
        finally:
            os.close(file)
