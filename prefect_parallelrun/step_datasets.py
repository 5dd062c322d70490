"""Datasets as a step file writes them, each kind with the options of its constructor."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from prefect_parallelrun import yaml_document
from prefect_parallelrun.datasets import Dataset, FileDataset, TabularDataset
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.yaml_document import Part, Place

Paths = str | list[str]


class DatasetPart(Part):
    """What all datasets of a file have in common; each kind says how it is made."""

    name: str | None = None
    """letters, digits, underscores and dashes, by which arguments refer to it"""
    mount: bool | str | None = None
    """true, or for a side input the path on the nodes at which the script finds it"""
    download: bool | str | None = None
    """true, or for a side input the path on the nodes at which the script finds it"""

    def made(self, folder: Path) -> Dataset:
        """Return the dataset; relative paths in it are below `folder`."""
        raise NotImplementedError

    def options(self, kind: str) -> dict[str, Any]:
        """Return what the constructor takes beside the places, as far as it was given."""
        return self.model_dump(exclude={"name", "mount", "download", kind}, exclude_unset=True)


class Stored(DatasetPart):
    """Of files, wherever they are."""

    partition_format: str | None = None
    """what the end of each path says, such as '{user}/{date:yyyy/MM/dd}/{name}.csv'"""
    storage_options: dict[str, Any] | None = None
    """a mapping of what opens the storage, as fsspec has it"""
    credentials: str | None = None
    """the name of a Prefect block, <block type>/<block name>"""


class Files(Stored):
    """`FileDataset.from_files`."""

    files: Paths
    """a file, a folder, a glob or a URL, or a list of these"""
    content: bool = False
    """true where the files' content decides about reuse, not their times; else false"""

    def made(self, folder: Path) -> Dataset:
        """Return the dataset."""
        return FileDataset.from_files(_placed(self.files, folder), **self.options("files"))


class Delimited(Stored):
    """`TabularDataset.from_delimited_files`."""

    delimited: Paths
    """a file, a folder, a glob or a URL, or a list of these"""
    separator: str = ","
    """the character between values"""
    header: bool = True
    """true where the first row of each file names its columns, else false"""
    encoding: str = "utf8"
    """the encoding of the text, such as utf8"""
    support_multi_line: bool = False
    """true where quoted values may hold line ends, else false"""
    column_types: dict[str, Any] | None = None
    """a mapping of columns to types, such as `price: float64`"""

    def made(self, folder: Path) -> Dataset:
        """Return the dataset."""
        paths = _placed(self.delimited, folder)
        return TabularDataset.from_delimited_files(paths, **self.options("delimited"))


class JsonLines(Stored):
    """`TabularDataset.from_json_lines_files`."""

    json_lines: Paths
    """a file, a folder, a glob or a URL, or a list of these"""
    encoding: str = "utf8"
    """the encoding of the text, such as utf8"""
    column_types: dict[str, Any] | None = None
    """a mapping of columns to types, such as `price: float64`"""

    def made(self, folder: Path) -> Dataset:
        """Return the dataset."""
        paths = _placed(self.json_lines, folder)
        return TabularDataset.from_json_lines_files(paths, **self.options("json_lines"))


class Parquet(Stored):
    """`TabularDataset.from_parquet_files`."""

    parquet: Paths
    """a file, a folder, a glob or a URL, or a list of these"""

    def made(self, folder: Path) -> Dataset:
        """Return the dataset."""
        paths = _placed(self.parquet, folder)
        return TabularDataset.from_parquet_files(paths, **self.options("parquet"))


class Query(Part):
    """What `sql` holds."""

    connection: str
    """a SQLAlchemy URL, or the name of a Prefect block"""
    query: str
    """one SELECT, or WITH … SELECT"""
    partition_column: str | None = None
    """a column of numbers, dates or timestamps, by which the rows are cut into mini-batches"""
    column_types: dict[str, Any] | None = None
    """a mapping of columns to types, such as `price: float64`"""


class Sql(DatasetPart):
    """`TabularDataset.from_sql_query`."""

    sql: Query
    """a mapping of connection, query, partition_column and column_types"""

    def made(self, folder: Path) -> Dataset:
        """Return the dataset."""
        given = self.sql.model_dump(exclude_unset=True)
        dialect, mark, file = given["connection"].partition(":///")
        if dialect.startswith("sqlite") and mark and file and file[0] not in "/:":
            given["connection"] = f"{dialect}:///{folder / file}"
        return TabularDataset.from_sql_query(**given)


class Version(Part):
    """What `registered` holds."""

    name: str
    """the name of a registered dataset"""
    version: int | str = "latest"
    """a number, or latest"""


class Registered(DatasetPart):
    """`get_by_name`, of files or tables."""

    registered: Version
    """a mapping of name and version"""

    def made(self, folder: Path) -> Dataset:
        """Return the dataset."""
        version: Any = self.registered.version
        return Dataset.get_by_name(self.registered.name, version)


_KINDS: dict[str, type[DatasetPart]] = {
    "files": Files,
    "delimited": Delimited,
    "json_lines": JsonLines,
    "parquet": Parquet,
    "sql": Sql,
    "registered": Registered,
}
_NESTED: dict[str, type[Part]] = {"sql": Query, "registered": Version}


def made(given: Any, folder: Path, place: Place) -> Dataset:
    """Return the dataset that stands in a file, with its name, and as it is to come to the nodes.

    Args:
        given: what the file says.
        folder: of the file; relative paths are below it.
        place: in the file.

    Raises:
        ConfigError: it cannot be one; the text names the key.
        DatasetError: a registered dataset is not there.
    """
    kinds = [kind for kind in _KINDS if isinstance(given, dict) and kind in given]
    if len(kinds) != 1:
        expected = "it must be a mapping with one of the keys " + ", ".join(_KINDS)
        words = given if isinstance(given, dict) else {}
        shown = dict.fromkeys(words, "…") if words else given
        near = [yaml_document.suggestion(str(word), _KINDS) for word in words]
        meant = next((text for text in near if text.startswith("did")), "")
        raise place.refuse(shown, f"{expected}{meant and ': '}{meant}")
    (kind,) = kinds
    if kind in _NESTED:
        given = {**given, kind: yaml_document.fitted(_NESTED[kind], given[kind], place.at(kind))}
    part = yaml_document.fitted(_KINDS[kind], given, place)
    with place.blamed():
        return _delivered(part, part.made(folder))


def _delivered(part: DatasetPart, dataset: Dataset) -> Dataset:
    """Return the dataset with its name, and as it is to come to the nodes."""
    if part.mount and part.download:
        raise ConfigError("mount and download cannot both be given: choose one")
    if part.mount:
        dataset = dataset.as_mount(None if part.mount is True else part.mount)
    if part.download:
        dataset = dataset.as_download(None if part.download is True else part.download)
    return dataset if part.name is None else dataset.as_named_input(part.name)


def _placed(paths: Paths, folder: Path) -> list[str]:
    """Return paths, globs and URLs, the relative ones below a folder."""
    given = [paths] if isinstance(paths, str) else paths
    return [path if is_url(path) or _is_rooted(path) else _joined(folder, path) for path in given]


def _joined(folder: Path, path: str) -> str:
    whole = str(folder / path)
    # A folder's own name may hold what means something in a glob.
    as_it_stands = not glob.has_magic(path) or Path(whole).exists()
    return whole if as_it_stands else str(Path(glob.escape(str(folder)), path))


def is_url(path: str) -> bool:
    """Say whether a path in a file is a URL, which is below no folder."""
    return "://" in path or "::" in path


def _is_rooted(path: str) -> bool:
    return path.startswith(("/", "~"))
