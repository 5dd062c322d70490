"""Where rows of delimited text end, however the text arrives."""

from __future__ import annotations

import csv
import io
import itertools
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.planning import multi_line
from prefect_parallelrun_runtime.quotes import RowEnds

TEXTS = st.lists(st.sampled_from([b"a", b"b", b",", b'"', b"\n", b"\r\n"]), max_size=60).map(
    b"".join
)


def ends_of(pieces, separator):
    finder, ends, place = RowEnds(separator), [], 0
    for piece in pieces:
        ends.extend(place + int(end) for end in finder.find(piece))
        place += len(piece)
    return ends, finder.unfinished


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 60)), st.sampled_from([None, ord(",")]))
def test_row_ends_do_not_depend_on_blocks(text, cuts, separator):
    """Text that comes in pieces has its rows where the whole has them."""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]

    assert ends_of(pieces, separator) == ends_of([text], separator)


def reference_ends(text):
    """Where rows end, byte by byte: a quote opens a value at its beginning only, `""` inside is a quote."""
    ends, begun, quoted, at_start, place = [], False, False, True, 0
    while place < len(text):
        byte = text[place : place + 1]
        if quoted:
            if byte == b'"' and text[place + 1 : place + 2] == b'"':
                place += 1
            elif byte == b'"':
                quoted = False
        elif byte == b'"' and at_start:
            quoted, at_start, begun = True, False, True
        elif byte == b"\n":
            if begun:
                ends.append(place + 1)
            begun, at_start = False, True
        else:
            at_start = byte in b",\r"
            begun = begun or byte != b"\r"
        place += 1
    return ends


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_row_ends_are_those_of_a_plain_reader(text):
    """Quotes open values only where these begin, doubled ones are characters, empty lines no rows."""
    assert ends_of([text], ord(","))[0] == reference_ends(text)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.text(st.sampled_from('a,"\n'), max_size=8), min_size=2, max_size=2)),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_ranges_do_not_depend_on_blocks(rows, size, block):
    """The scan for ranges of whole rows gives the same, whatever it reads at once, and no row twice (R24)."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    data = text.getvalue().encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(data)
        file = FileItem(str(path), len(data), 0)
        expected = list(multi_line.ranges(file, 0, size, ord(",")))
        large, multi_line._BLOCK = multi_line._BLOCK, block
        try:
            found = list(multi_line.ranges(file, 0, size, ord(",")))
        finally:
            multi_line._BLOCK = large

    assert found == expected
    assert "".join(data[start:end].decode() for start, end in found) == data.decode()
    ends = [0, *reference_ends(data)]
    assert {start for start, _ in found} <= set(ends)
    for start, end in found:
        begins = [place for place in ends[:-1] if start <= place < end]
        assert {place // size for place in begins} == {start // size}
