"""Text of others in a cell of a CSV file that people open."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula; an apostrophe before it makes it text."""


def in_one_cell(text: str) -> str:
    r"""Return a text in one line (its line ends as `\n` and `\r`) that no spreadsheet takes for a formula."""
    guard = "'" if text.startswith(_FORMULA) else ""
    return guard + text.replace("\r", "\\r").replace("\n", "\\n")
