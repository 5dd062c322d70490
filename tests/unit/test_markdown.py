"""Other people's texts on Prefect's pages: a reader of Markdown gets them back as they were."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefect_parallelrun.report.wording import one_line
from prefect_parallelrun.ui import markdown

PIECES = [
    *"a`*_[]()<>|#~&!\\-+.:\n\r\t 1\x1b\u202e",
    "&lt;",
    "<b>",
    "http://a.b",
    "WWW.a.b",
    "a@b.c",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=30).map("".join).filter(str.strip)
READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def words(text):
    """Return kind and content of what is in the one paragraph of a text."""
    _, line, _ = READER.parse(text)
    return [(one.type, one.content) for one in line.children]


@given(TEXTS)
def test_code_within_a_line(text):
    """Code within a line is the text, whatever is in it, and nothing of it is Markdown or HTML."""
    assert words(f"log: {markdown.code(text)}, x") == [
        ("text", "log: "),
        ("code_inline", one_line(text.strip())),
        ("text", ", x"),
    ]


@given(TEXTS)
def test_plain_text_within_a_line(text):
    """A text in the middle of a paragraph is nothing but text and code, and keeps to its line."""
    found = words(f"x {markdown.plain(text)} x")
    assert {kind for kind, _ in found} <= {"text", "code_inline"}
    assert "".join(content for _, content in found) == f"x {one_line(text.strip())} x"
    # In code no reader looks for links; elsewhere there is nothing that GFM's autolinks begin with.
    texts = (content for kind, content in found if kind == "text")
    assert not any(re.search("(?i)https?://|ftp://|www[.]|[^ ]@[^ ]", one) for one in texts)


def test_addresses_within_a_line():
    """An address in a text is code: of a text with backslashes a reader would make a link that leads nowhere."""
    text = "1 changed: http://a.b/my_file.0.txt (its content changed), s3://my_data/c.txt"
    assert markdown.plain(text) == (
        r"1 changed: `http://a.b/my_file.0.txt` \(its content changed\), `s3://my_data/c.txt`"
    )
    assert markdown.plain("http://a.b/" + "c" * 1000) == f"`http://a.b/{'c' * 489}…`"


@given(st.lists(TEXTS, min_size=1, max_size=5).map("\n".join))
def test_a_block_of_code(text):
    """A block of code is the text in all its lines; its language keeps it from being drawn."""
    (block,) = READER.parse(markdown.block(text))
    assert (block.type, block.info) == ("fence", "text")
    assert block.content.count("\n") == text.strip("\n").count("\n") + 1


def test_long_texts():
    """Of a long text the end is left out; of a long block the beginning, so that the error itself is there."""
    assert markdown.code("x" * 10_000) == f"`{'x' * markdown.LONGEST}…`"
    lines = markdown.block("\n".join(map(str, range(1000)))).splitlines()
    assert lines[:3] == ["```text", "…", "960"]
    assert lines[-2:] == ["999", "```"]
