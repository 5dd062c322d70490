"""A web server of files on loopback that misbehaves as it is told, and counts what it is asked."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

Trouble = int | Literal["drop", "hang"]
"""A status such as 503; `drop`: half of the body, and the connection is cut; `hang`: nothing at all."""


@dataclass
class WebFiles:
    """The files of one test below `url`, a folder of their own with an index page."""

    url: str
    """Of the folder, without a slash at its end."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """None are needed, unless `token` is set."""
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    """ETag of each file."""
    etags: bool = True
    """Whether answers have an ETag."""
    dates: bool = True
    """Whether answers have Last-Modified."""
    ranges: bool = True
    """Whether Range is heeded."""
    lengths: bool = True
    """Whether answers have Content-Length."""
    token: str | None = None
    """Where set, a request without `Authorization: Bearer <token>` is answered 401."""
    requests: Counter[str] = field(default_factory=Counter)
    """Number of requests by path, HEAD and failed ones included."""
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of bodies by path."""
    troubles: dict[str, deque[Trouble]] = field(default_factory=dict)
    lasting: dict[str, Trouble] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)
    """Set at the end of the test: what hangs goes on."""

    def put(self, path: str, data: bytes | str) -> str:
        """Serve a file, and return its URL; a path may end in a query, `download?id=0`."""
        raw = self.files[path] = data.encode() if isinstance(data, str) else data
        self.tags[path] = f'"{hashlib.sha256(raw).hexdigest()[:20]}"'
        return f"{self.url}/{quote(path, safe='/?=')}"

    def trouble(self, path: str, trouble: Trouble, *, times: int | None = 1) -> None:
        """Answer the next requests for a path so, several kinds in turn; None: all that come."""
        if times is None:
            self.lasting[path] = trouble
        else:
            self.troubles.setdefault(path, deque()).extend([trouble] * times)

    def next_trouble(self, path: str) -> Trouble | None:
        """Return how the present request is to fail."""
        waiting = self.troubles.get(path)
        return waiting.popleft() if waiting else self.lasting.get(path)

    def index(self, folder: str) -> bytes | None:
        """Return the page of a folder; None where there is no file in it."""
        prefix = f"{folder.rstrip('/')}/" if folder.strip("/") else ""
        below = {name.removeprefix(prefix) for name in self.files if name.startswith(prefix)}
        entries = sorted({first + slash for first, slash, _ in (n.partition("/") for n in below)})
        if not entries:
            return None
        links = "".join(f'<a href="{quote(entry)}">{entry}</a>\n' for entry in entries)
        return f"<html><body>{links}</body></html>".encode()


class WebServer(ThreadingHTTPServer):
    """Serves the folders of all tests of a session."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders: dict[str, WebFiles] = {}

    @property
    def root(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def folder(self, name: str) -> Iterator[WebFiles]:
        """Serve a folder for as long as the context lasts."""
        files = self.folders[name] = WebFiles(f"{self.root}/{name}")
        try:
            yield files
        finally:
            files.released.set()
            del self.folders[name]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        url = urlsplit(self.path)
        name, _, path = unquote(url.path).lstrip("/").partition("/")
        folder = self.server.folders.get(name)
        if folder is None:
            self._refuse(404)
            return
        if f"{path}?{url.query}" in folder.files:
            path = f"{path}?{url.query}"
        folder.requests[path] += 1
        trouble = folder.next_trouble(path)
        if trouble == "hang":
            folder.released.wait()
            self.close_connection = True
            return
        if isinstance(trouble, int):
            self._refuse(trouble)
            return
        if folder.token and self.headers.get("Authorization") != f"Bearer {folder.token}":
            self._refuse(401)
            return
        data = folder.files.get(path)
        if data is None:
            page = folder.index(path)
            if page is None:
                self._refuse(404)
            elif not self.path.endswith("/"):
                self._send(301, b"", [("Location", f"{self.path}/")], body=False)
            else:
                headers = [("Content-Type", "text/html")]
                self._send(200, page, headers, body=body, cut=trouble == "drop")
            return
        self._file(folder, path, data, body=body, cut=trouble == "drop")

    def _file(self, folder: WebFiles, path: str, data: bytes, *, body: bool, cut: bool) -> None:
        headers = [("Content-Type", "application/octet-stream")]
        if folder.etags:
            headers.append(("ETag", folder.tags[path]))
        if folder.dates:
            headers.append(("Last-Modified", formatdate(1_700_000_000, usegmt=True)))
        status, part = 200, data
        if folder.ranges:
            headers.append(("Accept-Ranges", "bytes"))
            wanted = self.headers.get("Range")
            if wanted:
                first, last = _bounds(wanted, len(data))
                if first >= len(data) or first > last:
                    self._refuse(416)
                    return
                status, part = 206, data[first : last + 1]
                headers.append(("Content-Range", f"bytes {first}-{last}/{len(data)}"))
        if body and not cut:
            folder.sent[path] += len(part)
        self._send(status, part, headers, body=body, length=folder.lengths, cut=cut)

    def _refuse(self, status: int) -> None:
        self._send(status, f"status {status}".encode(), [], body=self.command != "HEAD")

    def _send(
        self,
        status: int,
        data: bytes,
        headers: list[tuple[str, str]],
        *,
        body: bool,
        length: bool = True,
        cut: bool = False,
    ) -> None:
        self.close_connection = self.close_connection or cut or not length
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        if length:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if cut else data)


def _bounds(wanted: str, size: int) -> tuple[int, int]:
    """Return the first and the last byte that a Range header means."""
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    if not first:
        return max(size - int(last), 0), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1
