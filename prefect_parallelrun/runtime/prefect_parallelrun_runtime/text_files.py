"""Text files as bytes: compression, encodings, and the rows of a byte range.

A row belongs to the range that holds its first byte, so any way to cut a file gives each row once.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

from prefect_parallelrun_runtime import source_path
from prefect_parallelrun_runtime.load_error import LoadError, Unfit
from prefect_parallelrun_runtime.quotes import RowEnds

_BLOCK = 1 << 20
_HEAD = 1 << 16
_FIRST = 1 << 13
"""Mostly holds the header; each request for more of a remote file takes as long as a few hundred KB."""
_BOM = codecs.BOM_UTF8
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


def compression(path: str) -> str | None:
    """Return how a file is compressed, by the end of its name; None if it is not."""
    return _COMPRESSIONS.get(os.path.splitext(source_path.file_name(path))[1].lower())


def is_bytewise(encoding: str) -> bool:
    """Say whether newlines, quotes and commas can be found in the bytes without decoding them."""
    if is_utf8(encoding):
        return True
    name = codecs.lookup(encoding).name
    if name.startswith(("utf-16", "utf-32", "utf-7", "iso2022", "hz")):
        return False
    return all(mark.encode(encoding) == mark.encode("ascii") for mark in '\r\n"')


def can_cut(path: str, encoding: str) -> bool:
    """Say whether a file can be read from its middle."""
    if compression(path) is not None or not is_bytewise(encoding):
        return False
    return not isinstance(path, source_path.SourcePath) or path.has_parts


def open_bytes(path: str) -> IO[bytes]:
    """Open a file for reading what is in it, decompressed."""
    kind = compression(path)
    if kind is None:
        return source_path.open_file(path)
    file: Any = source_path.for_arrow(path)
    if kind == "gzip":
        import gzip

        return cast("IO[bytes]", gzip.open(file, "rb"))
    if kind == "bz2":
        import bz2

        return cast("IO[bytes]", bz2.open(file, "rb"))
    if kind == "xz":
        import lzma

        return cast("IO[bytes]", lzma.open(file, "rb"))
    import pyarrow as pa

    stream: IO[bytes] = pa.input_stream(file, compression="zstd")
    return stream


def blocks(path: str, encoding: str, *, errors: str = "strict") -> Iterator[bytes]:
    """Yield what is in a text file, decompressed, in UTF-8, without a byte-order mark."""
    decoder = None
    if not is_utf8(encoding):
        decoder = codecs.getincrementaldecoder(encoding)(errors)
    first = True
    with open_bytes(path) as file:
        while True:
            block = _next_block(file, path)
            text = decoder.decode(block, final=not block).encode() if decoder else block
            if first and text:
                text = text.removeprefix(_BOM)
                first = False
            if text:
                yield text
            if not block:
                return


def _next_block(file: IO[bytes], path: str) -> bytes:
    if compression(path) is None:
        return file.read(_BLOCK)
    try:
        return file.read(_BLOCK)
    except Exception as error:  # each format has its own for damaged data
        raise LoadError(f"{path} cannot be decompressed: {error}") from error


def is_utf8(encoding: str) -> bool:
    """Say whether text in this encoding is UTF-8 as it stands."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii")


def as_utf8(data: bytes, encoding: str, *, errors: str = "strict") -> bytes:
    """Return text of a bytewise encoding in UTF-8."""
    return data if is_utf8(encoding) else data.decode(encoding, errors).encode()


class Head(NamedTuple):
    """The beginning of a text file."""

    names: list[str] | None
    """Values of the first row, as the header has them; None where the file has no row."""
    start: int
    """Where the rows begin, after byte-order mark and header; in bytes of the text as `blocks` has it
    for a file that cannot be cut, else of the file."""


def first_row(data: bytes, separator: int | None, *, complete: bool) -> tuple[int, int] | None:
    """Return where the first row begins and ends; None where `data` holds no whole one.

    Args:
        data: Text from the beginning of a file.
        separator: See `RowEnds`.
        complete: Whether `data` goes to the end of the file, which ends a row as a newline does.
    """
    start = len(_BOM) if data.startswith(_BOM) else 0
    while data[start : start + 1] in (b"\n", b"\r"):
        start += 1
    ends = RowEnds(separator).find(data[start:])
    if len(ends):
        return start, start + int(ends[0])
    if complete and start < len(data):
        return start, len(data)
    return None


def read_head(path: str, reader: dict[str, Any]) -> Head:
    """Read the header of a delimited file (or its first row), as little of the file as that needs."""
    encoding = reader["encoding"]
    if can_cut(path, encoding):
        pieces, text_encoding = _raw_pieces(path), encoding
    else:
        pieces, text_encoding = blocks(path, encoding), "utf-8"
    data, found, quoting = b"", None, row_separator(reader)
    for piece in pieces:
        data += piece
        found = first_row(data, quoting, complete=False)
        if found:
            break
        if b"\r" in data:
            # Refuses line ends of CR alone now, not when the whole of a large file has been read.
            text = data[: data.rfind(b"\r")].removeprefix(_BOM).decode(text_encoding)
            split_values(text, reader["separator"])
    else:
        found = first_row(data, quoting, complete=True)
    bom = len(_BOM) if data.startswith(_BOM) else 0
    if found is None:
        return Head(None, len(data) if reader["header"] else bom)
    start, end = found
    names = split_values(data[start:end].decode(text_encoding), reader["separator"])
    return Head(names, end if reader["header"] else bom)


def _raw_pieces(path: str) -> Iterator[bytes]:
    with source_path.open_file(path) as file:
        size = _FIRST
        while piece := file.read(size):
            yield piece
            # More, so that a very long first row is not joined again for each 8 KB of it.
            size *= 4


def row_separator(reader: dict[str, Any]) -> int | None:
    """Return the byte between values where rows may hold newlines in quotes, else None."""
    return ord(reader["separator"]) if reader.get("multi_line") else None


def split_values(row: str, separator: str) -> list[str]:
    """Return the values of one row.

    Raises:
        Unfit: it is none, or several: with line ends of CR alone, all of a file is one row to us.
    """
    rows = csv.reader(io.StringIO(row.strip("\r\n"), newline=""), delimiter=separator)
    try:
        values = next(rows, [])
        more = next(rows, None)
    except csv.Error as error:
        raise Unfit(0, f"is no row of values: {error}") from None
    if more is not None:
        raise Unfit(None, "its lines end in CR alone; convert the file to line ends of LF or CRLF")
    return values


def column_names(header: list[str]) -> list[str]:
    """Return the names that a header gives, as pandas does: an empty one is `Unnamed: 0`, a second `a` is `a.1`."""
    names: list[str] = []
    taken = set(header)
    for place, raw in enumerate(header):
        name = raw or f"Unnamed: {place}"
        count = 0
        while name in names:
            count += 1
            candidate = f"{raw}.{count}"
            name = candidate if candidate not in taken else name
        names.append(name)
    return names


def rows_of_range(
    path: str, start: int, end: int, data_start: int, *, longest: int | None = None
) -> tuple[int, bytes]:
    """Return the rows whose first byte is in [start, end), and where the first of them begins.

    Reads that range, and on to the end of its last row.

    Args:
        longest: For a sample: leave the last row out if it goes on for more bytes than this.
    """
    begin = max(start, data_start)
    if begin >= end:
        return begin, b""
    with source_path.open_file(path) as file:
        # The byte before tells whether a row begins at `begin` itself.
        read_from = begin - 1 if begin > data_start else begin
        data = _read(file, read_from, end - read_from)
        skip = 0
        if begin > data_start:
            skip = data.find(b"\n") + 1
            if skip == 0 or read_from + skip >= end:
                return end, b""
        pieces = [data[skip:] if skip else data]
        while not pieces[-1].endswith(b"\n"):
            more = file.read(_HEAD)
            if not more:
                break
            newline = more.find(b"\n")
            pieces.append(more if newline < 0 else more[: newline + 1])
            if longest is not None and newline < 0 and len(pieces) * _HEAD > longest:
                return read_from + skip, pieces[0][: pieces[0].rfind(b"\n") + 1]
        return read_from + skip, pieces[0] if len(pieces) == 1 else b"".join(pieces)


def exact_range(path: str, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of a file."""
    with source_path.open_file(path) as file:
        return _read(file, start, end - start)


def _read(file: IO[bytes], start: int, length: int) -> bytes:
    file.seek(start)
    pieces: list[bytes] = []
    while length > 0:
        piece = file.read(length)
        if not piece:
            raise LoadError(f"{file.name} is shorter than when the step was planned")
        pieces.append(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def whole(path: str, encoding: str) -> bytes:
    """Return what is in a text file, decompressed, in UTF-8, without a byte-order mark."""
    return b"".join(blocks(path, encoding))


def first_rows(path: str, reader: dict[str, Any], count: int) -> bytes:
    """Return the text of a file up to the end of its `count`-th row (its header included as one), in UTF-8."""
    ends = RowEnds(row_separator(reader))
    pieces: list[bytes] = []
    for block in blocks(path, reader["encoding"]):
        found = ends.find(block)
        if len(found) >= count:
            pieces.append(block[: int(found[count - 1])] if count else b"")
            break
        count -= len(found)
        pieces.append(block)
    return b"".join(pieces)


def count_rows(path: str, reader: dict[str, Any], limit: int) -> int:
    """Return the number of rows of a file (without its header), at most `limit`; reads no more than that needs."""
    ends = RowEnds(row_separator(reader))
    header = 1 if reader.get("header") else 0
    count = -header
    for block in blocks(path, reader["encoding"], errors="replace"):
        count += len(ends.find(block))
        if count >= limit:
            return limit
    return max(min(count + ends.unfinished, limit), 0)


def rows_before(path: str, reader: dict[str, Any], start: int, data_start: int) -> int:
    """Return how many rows a file has between its header and the byte `start`; for messages only, reads it all."""
    ends = RowEnds(row_separator(reader))
    count = 0
    with source_path.open_file(path) as file:
        file.seek(data_start)
        left = start - data_start
        while left > 0 and (block := file.read(min(_BLOCK, left))):
            count += len(ends.find(block))
            left -= len(block)
    return count


def bom_length(path: str) -> int:
    """Return the length of the byte-order mark of a UTF-8 file: 3, or 0."""
    with source_path.open_file(path) as file:
        return len(_BOM) if file.read(len(_BOM)) == _BOM else 0
