"""Which bytes the elements that `run()` returns become."""

from __future__ import annotations

import io
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun_runtime import encode

PLAIN = {"header": False, "to_csv": {}}
FRAME = pd.DataFrame({"name": ["a b", "c"], "score": [0.5, 1.0]})


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([1, "a", None, (1, 2)], b"1\na\nNone\n(1, 2)\n"),
        ((), b""),
        (np.array([0.5, 1.0]), b"0.5\n1.0\n"),
        (np.array([[1, 2], [3, 4]]), b"[1 2]\n[3 4]\n"),
        (pd.Series(["x", "y"]), b"x\ny\n"),
        ([os.fsdecode(b"caf\xe9.png")], b"caf\xe9.png\n"),
        (FRAME, b'"a b" 0.5\nc 1.0\n'),
        (pa.table({"name": ["a b"], "n": [1]}), b'"a b" 1\n'),
    ],
)
def test_each_element_is_one_line(result, expected):
    """An element is `str(element)`, a table row is space-separated with no header and no index (R103)."""
    encoded = encode.encode(result, "append_row", PLAIN)

    assert (encoded.rows, encoded.data, encoded.columns) == (len(result), expected, None)


@pytest.mark.parametrize("count", [3, 40, 5_000])
@pytest.mark.parametrize("kind", ["rows of an array", "in a list", "in a Series"])
def test_an_array_as_an_element_is_one_whole_line(count, kind):
    """However long an element that is an array is, its line holds all its numbers (R103)."""
    rows = np.arange(2 * count).reshape(2, count)
    result = {
        "rows of an array": rows,
        "in a list": list(rows),
        "in a Series": pd.Series(list(rows)),
    }[kind]

    encoded = encode.encode(result, "append_row", PLAIN)

    lines = encoded.data.decode().splitlines()
    assert [[int(number) for number in line.strip("[]").split()] for line in lines] == rows.tolist()
    assert np.get_printoptions()["threshold"] == 1000  # the script's own printing is as it was


def test_a_table_of_numbers_as_an_element_is_one_line():
    """An array of two dimensions has newlines of its own; a text's newlines are the script's business."""
    encoded = encode.encode([np.arange(4).reshape(2, 2), "a\nb"], "append_row", PLAIN)

    assert (encoded.rows, encoded.data) == (2, b"[[0 1]  [2 3]]\na\nb\n")


@pytest.mark.parametrize("result", [[1, 2], np.arange(2), FRAME, pa.table({"n": [1, 2]})])
def test_summary_only_counts_and_keeps_nothing(result):
    """Each returned element counts, its content is ignored (R12, R13)."""
    assert encode.encode(result, "summary_only", PLAIN) == (2, b"", None)


def test_the_settings_file_overrides_to_csv():
    """Keywords of the settings file reach to_csv; a header is told once, apart from the rows (R103)."""
    options = {"header": True, "to_csv": {"sep": ",", "float_format": "%.2f"}}

    encoded = encode.encode(FRAME, "append_row", options)

    assert encoded.columns == "name,score\n"
    whole = pd.read_csv(io.BytesIO(encoded.columns.encode() + encoded.data))
    pd.testing.assert_frame_equal(whole, FRAME)


def test_a_header_among_the_keywords_is_a_header_too():
    """`header` in the settings file, a list of other names included, does not repeat with each mini-batch."""
    options = {"header": False, "to_csv": {"header": ["n", "s"]}}

    encoded = encode.encode(FRAME, "append_row", options)

    assert (encoded.columns, encoded.data) == ("n s\n", b'"a b" 0.5\nc 1.0\n')


@pytest.mark.parametrize(
    ("result", "word"),
    [
        (None, "None"),
        ("abc", "a str"),
        ({}, "a dict"),
        ((x for x in "ab"), "a generator"),
        (5, "an int"),
        (np.array(5), "a ndarray"),
        (b"ab", "a bytes"),
    ],
)
def test_what_has_no_rows_is_refused_by_name(result, word):
    """Anything but a DataFrame or an array fails the attempt, naming its type (R10)."""
    with pytest.raises(encode.BadReturn, match=rf"run\(\) returned {word}; it must return"):
        encode.encode(result, "summary_only", PLAIN)
