"""The source snapshot: what is shipped to every node, as it was when the run began (R30)."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets.sizes import parse_size
from prefect_parallelrun.errors import ConfigError, refuse

ALWAYS_LEFT_OUT = frozenset({".git", "__pycache__"})
IGNORE_FILES = (".amlignore", ".gitignore")
"""The first of them that the source has at its top says what is left out."""
_PIECE = 1024 * 1024
_OWN = stat.S_IRUSR | stat.S_IWUSR
"""What a script may do with its copies, whatever the mode of the originals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a source consists of."""

    sha256: str
    """Of the names and contents of all files; the same for the same source anywhere."""
    files: int
    bytes: int
    """Of all files together."""
    entry_script: str
    """The script's path relative to the source, with slashes."""
    notes: tuple[str, ...] = ()
    """What was skipped although people would expect it to be there."""


class _File(NamedTuple):
    name: str
    """Relative to the source, with slashes."""
    path: str
    size: int
    mode: int


def take(config: ParallelRunConfig, destination: Path, *, leave_out: Sequence[Path]) -> Snapshot:
    """Write the source as it is now into a zip file; equal sources give equal files.

    The zip is not compressed: sources are small, or hold models, which would not get smaller.

    Args:
        destination: the zip file; its folder exists.
        leave_out: files and folders that are no part of the source.

    Raises:
        ConfigError: the source is too large, cannot be read, or lacks the entry script.
    """
    with zipfile.ZipFile(destination, "w", zipfile.ZIP_STORED) as archive:
        return _read(config, leave_out, archive)


def digest(config: ParallelRunConfig, *, leave_out: Sequence[Path]) -> Snapshot:
    """Return what `take` would, without writing anything."""
    return _read(config, leave_out, None)


def lay_out(config: ParallelRunConfig, folder: Path, *, leave_out: Sequence[Path]) -> None:
    """Write copies of the files that `take` would put into a snapshot below `folder`.

    Raises:
        ConfigError: as `take`.
    """
    _, files = _shipped(config, leave_out)
    for file in files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(file.path, target)
        except FileNotFoundError:
            continue  # it vanished while the source was read
        except PermissionError as error:
            raise ConfigError(_unreadable(file.path, error)) from error
        target.chmod(file.mode | _OWN)


def differences(
    archive: Path, config: ParallelRunConfig, *, leave_out: Sequence[Path]
) -> list[str]:
    """Return the files in which a source is another now than in a snapshot: `score.py`, `new.py (new)`.

    Args:
        archive: the zip file that `take` wrote.
        config: of the step as it is now.
        leave_out: files and folders that are no part of the source.

    Raises:
        OSError: the source or the snapshot cannot be read.
        ValueError: the snapshot is damaged.
        ConfigError: the source cannot be read.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            before = {entry.filename: entry for entry in opened.infolist()}
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    found = []
    for file in sorted(_within_limits(config, _Walk(str(config.source_folder), leave_out))):
        entry = before.pop(file.name, None)
        if entry is None:
            found.append(f"{file.name} (new)")
        elif entry.file_size != file.size or _checksum(file.path) != entry.CRC:
            found.append(file.name)
        elif (entry.external_attr >> 16 ^ file.mode) & stat.S_IXUSR:
            found.append(f"{file.name} (whether it can be executed)")
    return found + [f"{name} (gone)" for name in before]


def _checksum(path: str) -> int:
    """Return the sum that a zip file has of each of its files."""
    total = 0
    with Path(path).open("rb") as file:
        while piece := file.read(_PIECE):
            total = zlib.crc32(piece, total)
    return total


def unpack(zip_bytes: bytes, folder: Path) -> None:
    """Write the files of a snapshot below `folder`, with their modes.

    Raises:
        ValueError: a name in the zip leads out of the folder; nothing has been written then.
    """
    with zipfile.ZipFile(io.BytesIO(zip_bytes)) as archive:
        entries = archive.infolist()
        for entry in entries:
            name = PurePosixPath(entry.filename)
            if name.is_absolute() or ".." in name.parts or not name.parts:
                raise ValueError(
                    f"the source snapshot holds {entry.filename!r}, outside its folder"
                )
        for entry in entries:
            target = folder / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("wb") as file:
                while piece := source.read(_PIECE):
                    file.write(piece)
            target.chmod(stat.S_IMODE(entry.external_attr >> 16) | _OWN)


def _read(
    config: ParallelRunConfig, leave_out: Sequence[Path], archive: zipfile.ZipFile | None
) -> Snapshot:
    """Hash the source, and put it into `archive` where there is one, from the same reading."""
    walk, files = _shipped(config, leave_out)
    whole, size, kept = hashlib.sha256(), 0, 0
    for file in files:
        try:
            content, length = _copy(file, archive)
        except FileNotFoundError:
            walk.notes.append(f"{file.name} vanished while the source was read")
            continue
        # Of the mode only what changes how a file works: the rest differs between checkouts.
        executable = "x" if file.mode & stat.S_IXUSR else "-"
        whole.update(f"{file.name}\0{executable}\0{content}\0".encode())
        size, kept = size + length, kept + 1
    return Snapshot(
        sha256=whole.hexdigest(),
        files=kept,
        bytes=size,
        entry_script=_script(config),
        notes=tuple(walk.notes),
    )


def _shipped(config: ParallelRunConfig, leave_out: Sequence[Path]) -> tuple[_Walk, list[_File]]:
    """Return the files of the source, among them the entry script, and what was seen on the way."""
    walk = _Walk(str(config.source_folder), leave_out)
    files = _within_limits(config, walk)
    if _script(config) not in {file.name for file in files}:
        raise refuse(
            "entry_script",
            config.entry_script,
            f"{walk.ignore_file or 'the snapshot'} leaves it out",
        )
    return walk, files


def _script(config: ParallelRunConfig) -> str:
    return config.script_path.relative_to(config.source_folder).as_posix()


def _copy(file: _File, archive: zipfile.ZipFile | None) -> tuple[str, int]:
    """Return hash and length of a file's content, having added it to the archive."""
    # A fixed time, so that equal sources give equal archives.
    info = zipfile.ZipInfo(file.name, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = (stat.S_IFREG | file.mode) << 16
    content, length = hashlib.sha256(), 0
    try:
        with Path(file.path).open("rb") as source:
            large = file.size >= 2**30
            with archive.open(info, "w", force_zip64=large) if archive else nullcontext() as target:
                while piece := source.read(_PIECE):
                    content.update(piece)
                    length += len(piece)
                    if target is not None:
                        target.write(piece)
    except PermissionError as error:
        raise ConfigError(_unreadable(file.path, error)) from error
    return content.hexdigest(), length


def _within_limits(config: ParallelRunConfig, walk: _Walk) -> list[_File]:
    """Return the files of the source, sorted by name, unless they are too many or too large."""
    size_limit, file_limit = parse_size(config.source_limits[0]), config.source_limits[1]
    files: list[_File] = []
    for file in walk.files():
        files.append(file)
        # Enough to name the largest: a home folder by mistake is not walked to its end.
        if len(files) >= 10 * file_limit:
            break
    size = sum(file.size for file in files)
    if size <= size_limit and len(files) <= file_limit:
        return sorted(files)
    largest = sorted(files, key=lambda file: -file.size)[:5]
    at_least = "at least " if len(files) >= 10 * file_limit else ""
    advice = "leave files out with an .amlignore file there, or raise source_limits"
    if config.source_directory is None:
        advice = (
            "put the script into a folder of its own and set source_directory (without it the "
            "script's folder is shipped), " + advice
        )
    raise ConfigError(
        f"the source {walk.root} has {at_least}{len(files):,} files with {_megabytes(size)}, and "
        f"source_limits={config.source_limits!r} allow no more than {file_limit:,} files with "
        f"{_megabytes(size_limit)}: {advice}. The largest: "
        + ", ".join(f"{file.name} ({_megabytes(file.size)})" for file in largest)
    )


@dataclass(slots=True)
class _Walk:
    """One reading of a source folder: which files there are, and what was skipped."""

    root: str
    leave_out: Sequence[Path]
    notes: list[str] = field(default_factory=list)
    ignore_file: str = ""
    _ignored: GitIgnoreSpec = field(init=False)
    _skipped: set[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        # Compared by identity, so that links and other spellings of a path make no difference.
        self._skipped = {_identity(path.stat()) for path in self.leave_out if path.exists()}
        self._ignored = GitIgnoreSpec.from_lines(())
        for name in IGNORE_FILES:
            path = Path(self.root, name)
            if path.is_file():
                self.ignore_file = name
                try:
                    self._ignored = GitIgnoreSpec.from_lines(path.read_text("utf-8").splitlines())
                except (OSError, ValueError) as error:
                    raise ConfigError(f"{path} cannot be used: {error}") from error
                break

    def files(self) -> Iterator[_File]:
        """Yield the files of the source, in no order."""
        return self._below(self.root, "", frozenset())

    def _below(
        self, folder: str, prefix: str, parents: frozenset[tuple[int, int]]
    ) -> Iterator[_File]:
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except PermissionError as error:
            raise ConfigError(_unreadable(folder, error)) from error
        for entry in entries:
            name = prefix + entry.name
            if entry.name in ALWAYS_LEFT_OUT:
                continue
            try:
                status = entry.stat()
            except OSError:
                self.notes.append(f"{name} is a link that leads nowhere")
                continue
            identity, is_folder = _identity(status), stat.S_ISDIR(status.st_mode)
            if identity in self._skipped or self._ignored.match_file(name + "/" * is_folder):
                continue
            if is_folder and identity not in parents:  # a link to a parent would never end
                yield from self._below(entry.path, name + "/", parents | {identity})
            elif stat.S_ISREG(status.st_mode):
                if not name.isprintable():
                    raise ConfigError(
                        f"{entry.path!r} cannot be shipped: rename it or leave it out"
                    )
                yield _File(name, entry.path, status.st_size, stat.S_IMODE(status.st_mode))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


def _unreadable(path: str, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror}): leave it out of the source with .amlignore"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MB"
