"""Codes that look like numbers: found wherever they stand, and never by mistake."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import delimited

VALUES = st.sampled_from(
    [
        "0",
        "00",
        "007",
        "10",
        "0.5",
        "05:30",
        "2020-01-02",
        "x01",
        "a 03",
        " 08 ",
        "0x1",
        "a0x",
        '"09"',
        "",
        "1",
    ]
)


@settings(deadline=None)
@given(rows=st.lists(st.lists(VALUES, min_size=1, max_size=3), max_size=6), end=st.booleans())
@pytest.mark.parametrize("piece", [3, 1 << 16])
def test_a_leading_zero_is_seen_wherever_it_stands(piece, rows, end):
    """R111: the quick look finds each value of digits that begins with a zero, and 0x1F, at the edges of
    the pieces that it works in too, and lets 0, 10, 0.5, times and dates pass."""
    text = "\n".join(";".join(row) for row in rows) + ("\n" if end else "")
    code = r'[" ]*(0[0-9]+[" ]*|0x.*)'
    holds = any(re.fullmatch(code, value) for row in rows for value in row)
    # In front of `a 03` it may hesitate, but not of what has no such word.
    may_hold = any(re.fullmatch(code, word) for word in re.split("[; \n]", text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_PIECE", piece)

        assert holds <= delimited.may_hold_codes(text.encode(), ";") <= may_hold


def test_the_type_that_a_code_gets_does_not_depend_on_its_neighbours(tmp_path):
    """R111: one code makes a column of numbers text, whole or not, with gaps or not; spaces around it
    change nothing, with a sign it is none; numbers of the other columns stay numbers."""
    (tmp_path / "a.csv").write_text(
        "int,gap,float,space,sign,zero,plain,day\n"
        "1,,1.5,1,-01,0,10,2020-01-01\n"
        "02,03,04, 06,5,0.5,0,2020-02-02\n"
    )

    table = TabularDataset.from_delimited_files(tmp_path).to_pandas_dataframe()

    text = ["int", "gap", "float", "space"]
    assert table.loc[1, text].tolist() == ["02", "03", "04", " 06"]
    assert table.loc[0, text].fillna("-").tolist() == ["1", "-", "1.5", "1"]
    kinds = [str(table[name].dtype) for name in ("zero", "plain", "sign", "day")]
    assert kinds == ["float64", "int64", "int64", "datetime64[ns]"]


def test_a_ragged_row_beside_codes_fails_its_own_mini_batch(tmp_path):
    """R111: types are settled from the rows that are whole, whatever has to be looked at to settle them."""
    (tmp_path / "a.csv").write_text("code,n\n007,1\n008\n009,3\n")

    with pytest.raises(DatasetError, match=r"a\.csv, row 2: it has 1 value, and the dataset has 2"):
        TabularDataset.from_delimited_files(tmp_path).to_pandas_dataframe()


def test_a_code_in_a_column_that_the_user_set(tmp_path):
    """R111: zeros mean nothing where the user says that a column is one of numbers; 0x1F is none even so."""
    (tmp_path / "a.csv").write_text("n\n07\n12\n")
    types = {"n": "int64"}
    dataset = TabularDataset.from_delimited_files(tmp_path, column_types=types)
    assert dataset.to_pandas_dataframe()["n"].tolist() == [7, 12]

    (tmp_path / "a.csv").write_text("n\n07\n0x1F\n")
    with pytest.raises(DatasetError, match=r"row 2: column 'n' is int64, and '0x1F' does not fit"):
        TabularDataset.from_delimited_files(tmp_path, column_types=types).to_pandas_dataframe()
