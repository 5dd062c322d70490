"""How figures and other people's texts are written for readers."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Return `text` with everything that shows nothing, or that turns the line around, spelt out.

    Newlines and tabs stay; control characters, direction marks, U+2028 and lone surrogates become
    `\\x1b`, `\\u202e` and the like, so that two names that differ also look different.
    """
    return _UNSEEN.sub(_escaped, text)


def one_line(text: str) -> str:
    """Return `text` as `visible` does, and with newlines and tabs spelt out too: a file name may hold them."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def duration(seconds: float) -> str:
    """Write a duration: `40 µs`, `7 ms`, `0.43 s`, `12.3 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds <= 0:
        return "0 s"
    if seconds < 0.0000995:
        return f"{_digits(seconds * 1_000_000)} µs"
    if seconds < 0.0995:
        return f"{_digits(seconds * 1000)} ms"
    if seconds < 99.95:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def _digits(value: float) -> str:
    """Write a number with three digits at most, and no zeros at its end."""
    places = max(0, 2 - math.floor(math.log10(value))) if value < 100 else 0
    text = f"{value:.{min(places, 4)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def counted(number: int, noun: str) -> str:
    """Write how many there are: `1 item`, `1,849 items`, `2 mini-batches`, `3 processes`."""
    plural = noun + ("es" if noun.endswith(("ch", "s")) else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def moment(at: float) -> str:
    """Write a moment, given in seconds since the epoch: `2026-11-22 11:26:39 UTC`."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
