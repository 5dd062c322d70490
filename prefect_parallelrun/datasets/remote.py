"""Files in other storages than this machine's: which there are, by fsspec."""
# Paths are text here, since Path objects would double the time for 100,000 files.
# ruff: noqa: PTH100, PTH111

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun import errors
from prefect_parallelrun.datasets import credentials as blocks
from prefect_parallelrun.datasets import transport
from prefect_parallelrun.datasets.concurrent import mapped
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.datasets.kept_storage import unsigned
from prefect_parallelrun.datasets.remote_file import Opened, RemotePath
from prefect_parallelrun.datasets.storage import LOCAL, Storage, check_protocols
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import source_path

_URL = re.compile(r"([a-z][a-z0-9+.-]*)(://|::)", re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")
_FLAT = {"s3", "gs", "gcs", "abfs"}
"""Object stores: they list all keys that begin alike in one go."""

T = TypeVar("T")


def located(
    parameter: str,
    path: object,
    storage_options: Mapping[str, Any] | None,
    credentials: object,
) -> tuple[Storage, str]:
    """Return the storage of one path, glob or URL, and the path; a local one absolute, its `~` resolved.

    Raises:
        ConfigError: it is no path, or what opens the storage cannot be used.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise errors.refuse(parameter, path, "give a path or URL as text, or a pathlib.Path")
    if storage_options is not None and not isinstance(storage_options, Mapping):
        # Never the value itself, here and below: it may be a secret.
        raise errors.ConfigError("storage_options cannot be used: give a dict, as fsspec has them")
    url = _URL.match(text)
    if url is None or url[1].lower() in ("file", "local"):
        if storage_options or credentials is not None:
            raise errors.ConfigError(
                f"storage_options and credentials are for URLs, and {text} is a local path"
            )
        return LOCAL, _absolute(parameter, text)
    protocol = url[1].lower()
    text = protocol + text[url.end(1) :]
    check_protocols(text)
    before, mark, place = text.rpartition("::")[2].partition("://")
    if mark and not place.strip("/"):
        raise errors.refuse(
            parameter, text, f"after {before}:// the place is missing: a bucket, container or host"
        )
    text, options = unsigned(parameter, text, storage_options or {})
    return Storage(protocol, blocks.reference(credentials), Hidden(options)), text


def _absolute(parameter: str, text: str) -> str:
    if "://" in text:
        url = urlsplit(text)
        if url.netloc not in ("", "localhost"):
            raise errors.refuse(parameter, text, "a file:// URL names no other host")
        text = unquote(url.path)
    absolute = os.path.abspath(os.path.expanduser(text))
    # The same object where it can be: so Prefect knows which task a path came from.
    return text if text == absolute else absolute


def is_url(path: str) -> bool:
    """Say whether what `located` returned is a URL, not a local path."""
    return not path.startswith("/")


def root_of(url: str) -> str:
    """Return the URL itself, or the folder that a glob's matches are all in."""
    given = _Given.of(url)
    return given.url_of("") if given.pattern else url


def base_and_pattern(url: str) -> tuple[str, str]:
    """Return a URL without what it is chained to, and the glob below it; that is empty where it is none."""
    given = _Given.of(url)
    return given.base, given.pattern


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return what says whether a glob matches a name; hidden ones only where it names such itself.

    Raises:
        ValueError: it is no glob.
    """
    from fsspec.utils import glob_translate

    matches = re.compile(glob_translate(pattern)).match
    hidden = "/." in f"/{pattern}"
    return lambda name: bool(matches(name)) and (hidden or "/." not in f"/{name}")


def common_root(urls: Sequence[str]) -> str:
    """Return the folder that files and folders are all in."""
    if len(urls) == 1:
        return urls[0]
    before, _, after = source_path.chained(urls[0])
    # By characters; that of whole folders follows.
    shared = os.path.commonprefix(  # noqa: RUF071
        [source_path.chained(url)[1].rstrip("/") + "/" for url in urls]
    )
    folder = shared[: shared.rindex("/") + 1]
    return before + (folder if folder.endswith("://") else folder.rstrip("/")) + after


def files_at(storage: Storage, paths: Iterable[str]) -> list[FileItem]:
    """Return the files that URLs, folders and globs stand for, each once, sorted by path.

    A folder is listed with one call where the storage has one for that. What looks like a folder to
    S3's web console, an empty object whose key ends in `/`, is no file.

    Raises:
        ConfigError: a package for the storage is missing, or its credentials block is not there.
        DatasetError: there is none, or the storage does not answer; the text names the URL.
    """
    storage = storage.unlocked()
    # fsspec gives the same one for all URLs of a server; what is found out of that is asked once.
    opened: dict[int, Opened] = {}
    listings = []
    for url in dict.fromkeys(paths):
        # An archive is read when it is opened.
        opening = partial(storage.filesystem, url)
        filesystem = transport.retried(opening, what=url, options=storage.options)
        known = opened.setdefault(id(filesystem), Opened(filesystem, storage.options))
        listings.append(_Listing(url, known))
    at_once = listings[0].at_once if listings else 1
    found: dict[str, FileItem] = {}
    for items in mapped(_Listing.files, listings, at_once=at_once):
        found.update((item.path, item) for item in items)
    return [found[path] for path in sorted(found)]


class _Given(NamedTuple):
    """A URL as it was given, in parts."""

    before: str
    """Caches that the files are read through: `simplecache::`."""
    base: str
    """The URL; of a glob, the folder that its matches are all in."""
    pattern: str
    """What comes after that in a glob; else empty."""
    after: str
    """What it is read from: `::s3://bucket/archive.zip`."""

    @classmethod
    def of(cls, url: str) -> _Given:
        before, body, after = source_path.chained(url)
        # In a web address, `?` begins the query.
        path = body.partition("?")[0] if body.startswith(("http://", "https://")) else body
        magic = _MAGIC.search(path)
        if magic is None:
            return cls(before, body, "", after)
        cut = body.rindex("/", 0, magic.start()) + 1
        return cls(before, body[:cut], body[cut:], after)

    def url_of(self, name: str) -> str:
        """Return the URL of what is called so below the base."""
        between = "" if self.base.endswith("/") or not name else "/"
        base = self.base
        if not name and not base.endswith("://"):
            base = base.rstrip("/")
        return f"{self.before}{base}{between}{name}{self.after}"


class _Listing:
    """What one URL stands for."""

    def __init__(self, url: str, opened: Opened) -> None:
        self._url, self._opened = url, opened
        self._fs = opened.filesystem
        self._given = _Given.of(url)
        self._base: str = self._fs._strip_protocol(self._given.base)
        # What was listed before may have changed.
        self._fs.invalidate_cache()

    @property
    def at_once(self) -> int:
        return self._opened.at_once

    def files(self) -> list[FileItem]:
        """Return the files.

        Raises:
            DatasetError: there is none, or the storage does not answer.
        """
        if not self._given.pattern:
            return self._file_or_folder(self._url, self._base)
        names = self._matching(self._below(self._depth()))
        if names:
            return self._items(names)
        literal = f"{self._base.rstrip('/')}/{self._given.pattern}"
        if self._asked(lambda: self._fs.exists(literal)):
            return self._file_or_folder(self._given.url_of(self._given.pattern), literal)
        raise DatasetError(f"{transport.scrubbed(self._url, self._opened.options)} matches no file")

    @property
    def _is_flat(self) -> bool:
        protocol: str | tuple[str, ...] = getattr(self._fs, "fs", self._fs).protocol
        return not _FLAT.isdisjoint((protocol,) if isinstance(protocol, str) else protocol)

    def _asked(self, call: Callable[[], T]) -> T:
        return transport.retried(call, what=self._url, options=self._opened.options)

    def _file_or_folder(self, url: str, path: str) -> list[FileItem]:
        web = self._given.base.startswith(("http://", "https://"))
        if not (web and path.endswith("/")):
            info = self._asked(lambda: self._fs.info(path))
            # A web server sends whoever asks for a folder to the same with a slash.
            if info["type"] == "file" and not str(info.get("url", "")).endswith("/"):
                return [self._item(url, path, info)]
        items = self._items(self._below(None))
        if not items:
            shown = transport.scrubbed(url, self._opened.options)
            raise DatasetError(f"{shown} is a folder without any file")
        return items

    def _depth(self) -> int | None:
        return None if "**" in self._given.pattern else self._given.pattern.count("/") + 1

    def _below(self, depth: int | None) -> dict[str, Any]:
        """Return the files below the base, by their names there; `depth` folders deep, None: all."""
        if self._is_flat and depth != 1:
            # All keys that begin so, a thousand to a page: folder by folder takes a call for each.
            infos = self._asked(lambda: self._fs.find(self._base, detail=True)).values()
        else:
            infos = self._walked(depth)
        self._fs.invalidate_cache()
        start = self._base.strip("/")
        found = {}
        for info in infos:
            name: str = info["name"].removeprefix("/").removeprefix(start).removeprefix("/")
            # Links that sort an index page are no files.
            if (
                info["type"] == "file"
                and name
                and not name.endswith("/")
                and "/?" not in f"/{name}"
            ):
                found[name] = info
        for folder in {name.rpartition("/")[0] for name in found}:
            # adlfs takes the slash off the name of an empty object that stands for a folder.
            if folder in found and not found[folder]["size"]:
                del found[folder]
        return found

    def _walked(self, depth: int | None) -> list[dict[str, Any]]:
        """Return the files below the base, folder by folder; fsspec's own walk leaves out what fails."""

        def inside(folder: str) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = self._asked(lambda: self._fs.ls(folder, detail=True))
            return found

        files: list[dict[str, Any]] = []
        folders, known, level = [self._base], {self._base.strip("/")}, 0
        while folders and level != depth:
            level += 1
            infos = chain.from_iterable(mapped(inside, folders, at_once=self.at_once))
            folders = []
            for info in infos:
                if info["type"] == "file":
                    files.append(info)
                elif info["type"] == "directory" and info["name"].strip("/") not in known:
                    known.add(info["name"].strip("/"))
                    folders.append(info["name"])
        return files

    def _matching(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        try:
            matches = matcher(self._given.pattern)
        except ValueError as error:
            raise DatasetError(f"{self._url} is no glob: {error}") from None
        return {name: info for name, info in infos.items() if matches(name)}

    def _items(self, infos: Mapping[str, Any]) -> list[FileItem]:
        base = self._base.rstrip("/")

        def described(name: str) -> FileItem:
            path, info = f"{base}/{name}" if base else name, infos[name]
            url = self._given.url_of(name)
            if info.get("size") is None:
                info = transport.retried(
                    lambda: self._fs.info(path), what=url, options=self._opened.options
                )
            return self._item(url, path, info)

        unknown = any(info.get("size") is None for info in infos.values())
        return list(mapped(described, infos, at_once=self.at_once if unknown else 1))

    def _item(self, url: str, path: str, info: Mapping[str, Any]) -> FileItem:
        if info.get("size") is None:
            raise DatasetError(
                f"{transport.scrubbed(url, self._opened.options)}: its server does not say how long it "
                "is (no Content-Length), so it cannot be planned; store it as a file first"
            )
        item = transport.item(url, info)
        return item._replace(path=RemotePath(url, self._opened, path, item.size))
