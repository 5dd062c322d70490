"""What a node fetches by itself, and with what: it alone gets to see the secrets for that."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.datasets.storage import LOCAL, Storage

OUTPUT_FOLDER = "\0output folder\0"
"""Among the script's arguments, stands for the path of the output folder on the node."""
SIDE_INPUT = "\0side input {number}\0"
"""Among the script's arguments, stands for the path of a side input on the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Files of an input that the node fetches, whole or in pieces, ahead of `run()`."""

    storage: Storage
    """Unlocked."""
    credentials: str = ""
    """Name of the block that it was unlocked with, for errors; empty for none."""
    root: str
    """Folder or URL that the files' own folders are kept below."""
    sample: tuple[FileItem, ...] = ()
    """Some of them, if they are local: by these the node sees whether they are the driver's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """An input whose rows the node fetches from a database."""

    database: Hidden = field(repr=False)
    """Its `url` is SQLAlchemy's, password included."""
    query: str

    @property
    def url(self) -> str:
        """SQLAlchemy's URL, password included."""
        url: str = self.database.opened()["url"]
        return url


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlace:
    """Local files of an input: they are read where they are, unless the node does not see them."""

    root: str
    """See `Files`."""
    sample: tuple[FileItem, ...]
    """Some of them, by which the node sees whether they are the driver's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideInput:
    """Files that are put on the node before its first process starts."""

    files: tuple[FileItem, ...]
    storage: Storage = LOCAL
    """Unlocked."""
    credentials: str = ""
    """See `Files`."""
    root: str
    """The file, or the folder or URL that the files' own folders are kept below."""
    copied: bool
    """Whether the files are fetched; otherwise the node only gives `root` the wanted path, if it is there."""
    sample: tuple[FileItem, ...] = ()
    """The same of `Files`; of what is not fetched: `root` itself."""
    path: str | None
    """Where the script is to find it; None: somewhere in the node's private folder, or where it is."""

    @property
    def is_placed(self) -> bool:
        """Whether the node has to do anything for it."""
        return self.copied or self.path is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """All that a node of a run fetches; its repr shows no secret."""

    inputs: tuple[Files | Query | InPlace, ...] = ()
    """For each input of the step."""
    side_inputs: tuple[SideInput, ...] = ()
    """By their number in `SIDE_INPUT`."""
