"""Whether a file in another storage has the content of one here, as far as the storage tells by digests."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PART = 50 << 20
"""Bytes of the parts in which s3fs sends a large file; S3's etag of it tells the digest of their digests."""
_MD5 = re.compile(r"[0-9a-f]{32}(-\d+)?")


def is_shown(info: Mapping[str, Any], file: Path) -> bool:
    """Return whether what a storage tells of a file proves that it has the content of `file`.

    False proves nothing: some storages tell no digest, and S3's etag is none where keys of KMS encrypt.

    Args:
        info: as fsspec gives it.
    """
    if info.get("size") != file.stat().st_size:
        return False
    told = set(_told(info))
    return any(_digest(file, in_parts="-" in one) == one for one in told)


def _told(info: Mapping[str, Any]) -> list[str]:
    """Return what may be an MD5 of the content, as text."""
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    told = [etag] if _MD5.fullmatch(etag) else []
    if blob := (info.get("content_settings") or {}).get("content_md5"):  # Azure
        told.append(bytes(blob).hex())
    if text := info.get("md5Hash"):  # Google
        told.append(base64.b64decode(text).hex())
    return told


def _digest(path: Path, *, in_parts: bool) -> str:
    with path.open("rb") as file:
        if not in_parts:
            return hashlib.file_digest(file, _md5).hexdigest()
        digests = [_md5(part).digest() for part in iter(lambda: file.read(_PART), b"")]
    return f"{_md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)
