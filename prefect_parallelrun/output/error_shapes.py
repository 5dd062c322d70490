"""Which errors are one and the same, where nobody knows the line of the script that raised them (R209)."""

from __future__ import annotations

import re

SHAPES = 100
"""Of more shapes than this, of one type, the others count as one: they tell nothing apart any more."""

_LOOKED_AT = 500
_QUOTED = re.compile(r"(?<!\w)('[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`)(?!\w)")
_PATHS = re.compile(r"(?<!\S)(?:\S*[/\\.]\S+[\s:;,]*)+")
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+", re.IGNORECASE)


def shape(where: str, message: str) -> str:
    """Return what the messages of one distinct error have in common, beside their type.

    Where it was raised says enough. Without that, it is the beginning of the message, in which a mark
    stands for each thing that differs from one mini-batch to the next: what is quoted, paths and file
    names (several with blanks between them are one), and numbers.
    """
    if where:
        return ""
    text = _QUOTED.sub("'…'", message[:_LOOKED_AT])
    return _NUMBERS.sub("#", _PATHS.sub("<path> ", text))
