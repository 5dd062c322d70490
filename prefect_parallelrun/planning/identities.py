"""What a mini-batch is made of, as a digest: in two runs of the same settings equal ones have the same rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.models import MiniBatch
from prefect_parallelrun.planning.plan import Plan
from prefect_parallelrun.planning.regroup import Kept

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Digests = NDArray[np.bytes_]

SIZE = 16
"""Bytes of a digest."""
UNKNOWN = bytes(SIZE)
"""Of what may change unseen: equal to none."""


class Identities:
    """Digests of mini-batches: how their input is read, what they have of it, how its files are.

    Args:
        plan: of them.
        files: of each input, as they are compared with earlier ones; see `Dataset.states`.
    """

    def __init__(self, plan: Plan, files: Sequence[Sequence[FileItem]]) -> None:
        self._begun = _readers(plan)
        self._states = [
            {file.path: f"{file.size}|{file.etag or file.modified_ns or ''}" for file in some}
            for some in files
        ]

    def of(self, mini_batch: MiniBatch) -> bytes:
        """Return the digest of a mini-batch, or `UNKNOWN`."""
        if mini_batch.input_index < 0:
            return UNKNOWN
        states = self._states[mini_batch.input_index]
        digest = self._begun[mini_batch.input_index].copy()
        digest.update(json.dumps(mini_batch.work).encode())
        for path in _paths(mini_batch.work):
            state = states.get(path, "|")
            if state.endswith("|"):
                return UNKNOWN
            digest.update(b"\0" + state.encode("utf-8", errors="surrogateescape"))
        return digest.digest()


def of_readers(plan: Plan) -> tuple[str, ...]:
    """Return a digest for each input of how it is read; of tables with the names and types of columns."""
    return tuple(one.hexdigest() for one in _readers(plan))


class Noting:
    """Keeps the digests of a plan in a file, in order, as its mini-batches are handed out.

    What it cannot write is left out: those mini-batches run again in the next run.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, identities: Identities) -> None:
        self._identities = identities
        # No buffer: what was handed out before a kill may be done.
        self._file = path.open("ab", buffering=0)
        self._there = self._file.tell() // SIZE
        self._file.truncate(self._there * SIZE)

    def note(self, mini_batch: MiniBatch) -> None:
        """Write one down, unless that was done before."""
        if mini_batch.index != self._there or self._file.closed:
            return
        try:
            self._file.write(self._identities.of(mini_batch))
        except OSError:
            self.close()
        self._there += 1

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def read(path: Path) -> Digests:
    """Return the digests that a run wrote down, in the order of its plan.

    Raises:
        OSError: it wrote none.
    """
    content = path.read_bytes()
    return _digests(content[: len(content) // SIZE * SIZE])


def all_of(plan: Plan, identities: Identities) -> Digests:
    """Return the digests of all mini-batches of a plan; one pass over it."""
    content = bytearray()
    for mini_batch in plan:
        content += identities.of(mini_batch)
    return _digests(bytes(content))


def matches(there: Digests, here: Digests) -> list[Kept]:
    """Return what is equal in two plans."""
    import numpy as np

    names, first = np.unique(there, return_index=True)
    if not len(names):
        return []
    place = np.minimum(np.searchsorted(names, here), len(names) - 1)
    found = np.flatnonzero((names[place] == here) & (here != UNKNOWN.rstrip(b"\0")))
    pairs = first[place[found]], found
    # Where one is not right behind the one before, in both plans, another run of them begins.
    broken = np.flatnonzero((np.diff(pairs[0]) != 1) | (np.diff(pairs[1]) != 1)) + 1
    starts = [0, *broken.tolist()] if len(found) else []
    ends = [*broken.tolist(), len(found)]
    return [
        Kept(int(pairs[0][start]), int(pairs[1][start]), end - start)
        for start, end in zip(starts, ends, strict=False)
    ]


def _digests(content: bytes) -> Digests:
    """Return them as numpy has them, without zeros at their ends, which tells none from another."""
    import numpy as np

    return np.frombuffer(content, dtype=f"S{SIZE}")


def _readers(plan: Plan) -> list[hashlib.blake2b]:
    return [
        hashlib.blake2b(json.dumps([place, reader], sort_keys=True).encode(), digest_size=SIZE)
        for place, reader in enumerate(plan.readers)
    ]


def _paths(work: dict[str, Any]) -> Sequence[str]:
    if "path" in work:
        return (work["path"],)
    found: Sequence[str] = work["files"] if "files" in work else work["paths"]
    return found
