"""Other people's texts in Markdown: whatever a file name or a message holds, it is shown as it is."""

from __future__ import annotations

import re

from prefect_parallelrun.report.wording import one_line, visible

LONGEST = 500
"""Characters of a text within a line; of a longer one the end is left out."""
LINES = 40
"""Lines of a block."""

_ACTIVE = re.compile(r"[\\`*_{}\[\]<>()#+\-.!|~&]")
_ADDRESS = re.compile(r"(\S*(?:://|www\.|@)\S*)", re.IGNORECASE)
"""Words of which readers of Markdown make links by themselves, with what follows and with backslashes."""


def plain(text: str, longest: int = LONGEST) -> str:
    """Return a text for the middle of a paragraph, in which nothing is Markdown, HTML or a link.

    Addresses are shown as code.
    """
    words = _ADDRESS.split(_cut(one_line(text.strip()), longest))
    # Every second one is an address; it has been cut, and keeps the mark of that.
    return "".join(
        code(word, longest + 1) if at % 2 else _ACTIVE.sub(r"\\\g<0>", word)
        for at, word in enumerate(words)
    )


def code(text: str, longest: int = LONGEST) -> str:
    """Return a text as code within a line; not for a table, where a `|` ends the cell."""
    text = _cut(one_line(text.strip()), longest) or " "
    fence = "`" * (_longest_run(text) + 1)
    # A backtick at an end would be taken for the fence.
    space = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{space}{text}{space}{fence}"


def block(text: str) -> str:
    """Return a text of several lines as a block of code; of a longer one the end is shown."""
    lines = [_cut(line, LONGEST) for line in visible(text.strip("\n")).split("\n")]
    if len(lines) > LINES:
        lines = ["…", *lines[-LINES:]]
    fence = "`" * max(3, max(map(_longest_run, lines)) + 1)
    # With a language, or the pages would draw what says that it is a diagram.
    return "\n".join((f"{fence}text", *lines, fence))


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + "…"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
