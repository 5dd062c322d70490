"""Side inputs on a node, before its first process starts: fetched once per host and run, and linked to."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

from prefect_parallelrun.node import pieces
from prefect_parallelrun.node.host_folder import HostFolder
from prefect_parallelrun.node.local_names import names_below
from prefect_parallelrun.node.sources import OUTPUT_FOLDER, SIDE_INPUT, SideInput
from prefect_parallelrun.node.staging import Job, at_once, made_below
from prefect_parallelrun.node.transfer import Source, Transfers, Unavailable

TELL_S = 2.0
"""How often is told how much has been fetched."""
_PROGRESS = "progress"


def with_paths(arguments: Sequence[str], paths: Sequence[str], *, output: str = "") -> list[str]:
    """Return a script's arguments with paths in place of `SIDE_INPUT` and `OUTPUT_FOLDER`."""
    found = [text.replace(OUTPUT_FOLDER, output) for text in arguments]
    for number, path in enumerate(paths):
        found = [text.replace(SIDE_INPUT.format(number=number), path) for text in found]
    return found


def leading_nowhere(arguments: Sequence[str], output: str) -> list[str]:
    """Return the absolute paths among a script's arguments where nothing is on this host.

    Those in the output folder are among them: an earlier run's script may have written there.

    Args:
        arguments: as the script gets them.
        output: the output folder, as the driver names it, that is not to be seen here.
    """
    texts = [text.partition("=")[2] if text.startswith("-") else text for text in arguments]
    paths = [text for text in texts if text.startswith("/")]
    return [
        path for path in paths if not os.path.lexists(path) or PurePath(path).is_relative_to(output)
    ]


class SideInputs:
    """The side inputs of a run on one node.

    What is fetched lies in a folder that the nodes of this host share; where the script wants it at a
    path of its own, there is a link. A link leads to what is read in place, too: nothing is copied.

    Args:
        wanted: `Sources.side_inputs`.
        host: where the nodes of this host keep what they fetch.
        folder: of the node, private.
        transfers: of the node.
        tell: called with what is being done, whenever there was progress with it.
    """

    def __init__(
        self,
        wanted: Sequence[SideInput],
        host: HostFolder,
        folder: Path,
        transfers: Transfers,
        tell: Callable[[str], None],
    ) -> None:
        self._wanted = wanted
        self._folder = folder
        self._transfers = transfers
        self._tell = tell
        self._host = host
        self._lock = threading.Lock()
        self._moved, self._told_at = 0, 0.0
        self._heard = ""

    def place(self) -> list[str]:
        """Put all of them where they are wanted; return their paths.

        Raises:
            Unavailable: one cannot be had, or cannot be put there.
            Stopped: the node ends.
        """
        if not any(one.is_placed for one in self._wanted):
            return [one.root for one in self._wanted]
        with self._host.working(self._hear):
            return [str(self._placed(number, one)) for number, one in enumerate(self._wanted)]

    # -- inside ------------------------------------------------------------------------------

    def _placed(self, number: int, wanted: SideInput) -> Path:
        if not wanted.is_placed:
            return Path(wanted.root)
        place = self._host.path / str(number)
        if wanted.copied:
            place = self._fetched(number, wanted, place)
        elif not place.is_symlink():  # seen here
            place.symlink_to(wanted.root)
        if wanted.path is None:
            return place
        path = Path(wanted.path)
        if not path.is_absolute():  # it goes with the node's folder
            path = self._folder / "side_inputs" / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(place)
        else:
            self._host.link(path, place)
        return path

    def _fetched(self, number: int, wanted: SideInput, folder: Path) -> Path:
        """Fetch one, unless another node of this host has; return the file or folder that it is."""
        names = names_below(wanted.root, [item.path for item in wanted.files])
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a node that died over it
            folder.mkdir()
            self._moved, size = 0, sum(item.size for item in wanted.files)
            what = f"fetches side input {wanted.root}: {len(names):,} files"
            at_once(self._counted(job, what, size) for job in self._jobs(wanted, names, folder))
            done.touch()
        alone = len(wanted.files) == 1 and wanted.files[0].path == wanted.root
        return folder / names[0] if alone else folder

    def _jobs(self, wanted: SideInput, names: Sequence[str], folder: Path) -> Iterator[Job]:
        source = Source(wanted.storage, wanted.credentials, self._transfers)
        for item, name in zip(wanted.files, names, strict=True):
            yield from pieces.whole(source, item, made_below(folder, name))

    def _counted(self, job: Job, what: str, size: int) -> Callable[[], None]:
        def work() -> None:
            try:
                moved = job(time.monotonic() + self._transfers.limit_s)
            except OSError as error:
                raise Unavailable(f"{what}, which cannot be kept on the node: {error}") from None
            with self._lock:
                self._moved += moved
                now = time.monotonic()
                if now - self._told_at < TELL_S:
                    return
                self._told_at = now
                text = f"{what}, {self._moved / 1e6:,.1f} of {size / 1e6:,.1f} MB"
                # For the nodes of this host that wait for it.
                (self._host.path / _PROGRESS).write_text(text)
            self._tell(text)

        return work

    def _hear(self) -> None:
        """Tell what the node that fetches has told since the last time."""
        try:
            text = (self._host.path / _PROGRESS).read_text()
        except FileNotFoundError:
            return
        if text != self._heard:
            self._heard = text
            self._tell(f"waits for another node of its host, which {text}")
