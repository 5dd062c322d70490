"""Which process has which GPUs: leases that hold on the whole host, and end with whoever has them.

Several nodes of a run may share a host, and each sees the same GPUs. A lease is the lock of a byte of a
file, one file for each GPU, in a folder of this user's on this host. The process that has the GPU inherits
the open file, and so do its forks, but no program that it starts: the kernel ends the lease with the last
of those who have it, whoever dies first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
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
_END = _SHARES << 32
"""Where those of all runs end."""


class Lease:
    """The GPUs of one process; none, if too few were free."""

    def __init__(self) -> None:
        self.gpus: list[Gpu] = []
        self.files: list[int] = []
        """Descriptors, for the process to inherit."""
        self.is_held = True

    @property
    def environment(self) -> dict[str, str]:
        """What lets a process see these, and no others."""
        shown = {"CUDA_VISIBLE_DEVICES": ",".join(gpu["visible"] for gpu in self.gpus)}
        if any(gpu["visible"].isdecimal() for gpu in self.gpus):
            shown.update([_ORDER])
        return shown

    def close(self) -> None:
        """Let go of them here; they are free once their process has ended, too."""
        self.is_held = False
        for file in self.files:
            os.close(file)
        self.files = []


class Leases:
    """The GPUs of a node, in its order, of which each of its processes gets its share.

    With `gpus_per_process` 1 (also where nothing is said) or more, each process has its GPUs alone; with
    a fraction, as many processes share one as that goes into 1. Other runs on this host count in the
    choice alone: of several GPUs the one with the fewest processes is taken, of these the first.
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
        self._folder = os.path.join(tempfile.gettempdir(), f"parallelrun-gpus-{os.geteuid()}")
        self.are_elsewhere = False
        """Whether the last process got none only since others have them now: another node, or what a process
        that was killed leaves behind."""
        self.trouble = ""
        """Why leases do not hold on the whole host; empty: they do."""

    def take(self) -> Lease:
        """Lease what one process is to have."""
        self.are_elsewhere = False
        self._given = [lease for lease in self._given if lease.is_held]
        if not self._each or not self._is_possible():
            return Lease()
        try:
            taken = self._host_wide()
        except OSError as error:
            self.trouble = f"other nodes of its host may use the same GPUs: {error}"
            taken = self._choice(dict.fromkeys(map(_key, self._gpus), 0), {})
        if taken.gpus:
            self._given.append(taken)
        self.are_elsewhere = not taken.gpus
        return taken

    # -- inside ------------------------------------------------------------------------------

    def _own(self, gpu: Gpu) -> int:
        """Return how many processes of this node have a share of a GPU.

        The files tell it too, unless somebody has cleaned up the folder meanwhile.
        """
        return sum(gpu in lease.gpus for lease in self._given)

    def _spare(self) -> int:
        """Return how many GPUs that it does not use yet the node may take.

        A node whose Dask worker declares fewer than it sees, since others of its host declare the rest,
        uses no more than that at a time.
        """
        return self._count - sum(self._own(gpu) > 0 for gpu in self._gpus)

    def _is_possible(self) -> bool:
        """Whether the node has GPUs left for a process, whatever others use."""
        used = [self._own(gpu) for gpu in self._gpus]
        return (
            sum(0 < n < self._shares for n in used) + min(self._spare(), used.count(0))
            >= self._each
        )

    def _host_wide(self) -> Lease:
        with contextlib.ExitStack() as closing:
            folder = self._open_folder()
            closing.callback(os.close, folder)
            try:  # one after the other: two that want two GPUs each shall not end with one each
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Lease()
            files = {}
            for gpu in self._gpus:
                files[gpu["key"]] = file = _open_file(gpu, folder)
                closing.callback(os.close, file)
            return self._choice({key: _processes(file) for key, file in files.items()}, files)

    def _choice(self, processes: dict[str, int], files: dict[str, int]) -> Lease:
        """Lease the least used; nothing, if that is too few.

        Args:
            processes: that have a share of each GPU, as the files tell, by its key.
            files: of the GPUs, open; without them leases are the node's own affair.
        """
        taken, spare = Lease(), self._spare()
        used = {gpu["key"]: max(processes[gpu["key"]], self._own(gpu)) for gpu in self._gpus}
        for gpu in sorted(self._gpus, key=lambda gpu: used[gpu["key"]]):
            own = self._own(gpu)
            if len(taken.gpus) == self._each or own >= self._shares or (own == 0 and spare == 0):
                continue
            if files:
                if not self._lock(files[gpu["key"]]):
                    continue
                # The lock is that of the open file, of which this is one more descriptor.
                taken.files.append(fcntl.fcntl(files[gpu["key"]], fcntl.F_DUPFD_CLOEXEC, 0))
            taken.gpus.append(gpu)
            spare -= own == 0
        if len(taken.gpus) < self._each:
            taken.close()
            return Lease()
        taken.gpus.sort(key=self._gpus.index)
        return taken

    def _lock(self, file: int) -> bool:
        """Take a share that is free, and return whether there was one."""
        for share in range(self._shares):
            wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._base + share, 1, 0)
            with contextlib.suppress(BlockingIOError, PermissionError):
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
                return True
        return False

    def _open_folder(self) -> int:
        """Return the open folder of the files.

        Everybody may write to where it lies: it may be somebody else's, or a link to anywhere.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(self._folder, flags)
        found = os.fstat(folder)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            os.close(folder)
            raise PermissionError(errno.EPERM, "others may write to it", self._folder)
        return folder


def _key(gpu: Gpu) -> str:
    return gpu["key"]


def _open_file(gpu: Gpu, folder: int) -> int:
    name = "".join(c if c.isalnum() or c == "-" else "_" for c in gpu["key"])
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(name, flags, 0o600, dir_fd=folder)


def _processes(file: int) -> int:
    """Return how many processes have a share of a GPU, those of other runs included."""
    found, ranges = 0, [(0, _END)]
    while ranges:
        begin, end = ranges.pop()
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, begin, end - begin, 0)
        kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
        if kind != fcntl.F_UNLCK:
            # It tells of any lock in the range, not of the first: there may be others on either side.
            found += 1
            rest = ((begin, start), (start + length if length else end, end))
            ranges += [one for one in rest if one[0] < one[1]]
    return found
