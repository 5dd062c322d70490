"""The types of columns, through the real path: what `run()` gets of input that was made byte by byte."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.errors import DatasetError
from tests.dask.conftest import lines

DESCRIBE = """
    import json

    def run(mini_batch):
        kinds = {str(name): str(kind) for name, kind in mini_batch.dtypes.items()}
        rows = mini_batch.itertuples(index=False, name=None)
        return [json.dumps([kinds, [repr(value) for value in row]]) for row in rows]
"""
"""Gives for each row the dtypes of the mini-batch that it came in, and its values."""

KEYS = """
    def run(mini_batch):
        kinds = " ".join(map(str, mini_batch.dtypes))
        return [f"{key}|{kinds}" for key in mini_batch["key"]]
"""
"""Gives for each row its key, and the dtypes of the mini-batch that it came in."""

AS_THE_WHOLE = {
    "byte-order mark, Windows newlines": (b"\xef\xbb\xbfid,t\r\n1,x\r\n2,y\r\n", {}, {}),
    "no last newline, empty lines": (b"id,t\n\n1,x\n\n2,y", {}, {}),
    "empty file": (b"", {}, None),
    "header only": (b"id,t\n", {}, None),
    "names that come twice": (b"a,a,b,a\n1,2,x,4\n5,6,y,8\n", {}, {}),
    "separator at the end": (b"a,b,\n1,2,\n3,4,\n", {}, {"dtype": {"Unnamed: 2": str}}),
    "latin-1": ("näme,n\nMüller,1\nGroß,2\n".encode("latin-1"), {"encoding": "latin-1"}, {"encoding": "latin-1"}),
    "newlines in quotes": (b'n,t\r\n1,"a\r\nb"\r\n2,"c,""d"""\r\n', {"support_multi_line": True}, {}),
    "no value": (b"n,t\n1,\n2,NA\n", {}, {"dtype": {"t": str}}),
    "truth values": (b"a,b,c\ntrue,TRUE,1\nfalse,,0\n", {}, {}),
    "numbers with gaps": (b"i,f\n1,0.5\n,\n3,1e3\n", {}, {}),
    "dates": (
        b"d,m,z\n2020-02-29,2020-02-29 01:02:03.5,2020-02-29T01:00:00Z\n"
        b",2020-03-01T00:00:00,2020-02-28T23:00:00Z\n",
        {},
        {"parse_dates": ["d", "m", "z"], "date_format": "ISO8601"},
    ),
    "leading zeros": (b"zip,n,f\n00501,10,1.5\n94043,0,007\n", {}, {"dtype": {"zip": str, "f": str}}),
    "leading zeros that mean nothing": (
        b"month,x\n01,05\n10,\n",
        {"column_types": {"month": int, "x": float}},
        {},
    ),
}  # fmt: skip
"""By case: the file, settings of the dataset, and how pandas is told to read the whole (None: no rows)."""


def described(table: pd.DataFrame) -> list[str]:
    """Return what DESCRIBE gives for the whole table."""
    kinds = {str(name): str(kind) for name, kind in table.dtypes.items()}
    rows = table.itertuples(index=False, name=None)
    return [json.dumps([kinds, [repr(value) for value in row]]) for row in rows]


def in_nanoseconds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with times as R111's default has them; pandas' own reader takes another unit."""
    return table.astype(
        {
            name: str(kind).replace("[us", "[ns").replace("[s", "[ns")
            for name, kind in table.dtypes.items()
        }
    )


def error_text(result) -> str:
    """Return what all worker processes say went wrong."""
    folder = Path(result.logs_directory, "user", "error")
    return "".join(path.read_text() for path in sorted(folder.glob("*/*.txt")))


def test_delimited_text_comes_as_pandas_reads_the_whole(run, tmp_path):
    """R111: whatever writer made the text, each row comes once, with the dtypes of the whole file,
    though a mini-batch holds a row or two; codes with leading zeros stay text unless the user says."""
    datasets, expected = [], []
    for place, (data, settings, reading) in enumerate(AS_THE_WHOLE.values()):
        path = tmp_path / f"{place}.csv"
        path.write_bytes(data)
        datasets.append(TabularDataset.from_delimited_files(path, **settings))
        if reading is not None:
            whole = in_nanoseconds(pd.read_csv(io.BytesIO(data), **reading))
            expected += described(whole)

    result = run(DESCRIBE, datasets, mini_batch_size=12)

    assert lines(result) == expected


def test_types_that_the_user_sets(run, tmp_path):
    """R111: with column_types 1 and 0 are truth values, gaps among them too; dates reach the year 9999;
    a column without any value is what it is said to be, in text and in JSON lines."""
    (tmp_path / "a.csv").write_bytes(
        b"flag,gaps,until,empty,number\n1,1,9999-12-31,,1\n0,,2020-01-01,,2\n"
    )
    (tmp_path / "a.jsonl").write_bytes(
        b'{"flag": true, "gaps": null, "until": "9999-12-31", "number": 1}\r\n'
        b'{"flag": false, "gaps": true, "until": "2020-01-01T00:00:00", "empty": null, "number": 2.5}'
    )
    types = {
        "flag": bool,
        "gaps": "boolean",
        "until": "datetime64[us]",
        "empty": float,
        "number": "float64",
    }

    result = run(
        DESCRIBE,
        [
            TabularDataset.from_delimited_files(tmp_path / "a.csv", column_types=types),
            TabularDataset.from_json_lines_files(tmp_path / "a.jsonl", column_types=types),
        ],
        mini_batch_size=25,
    )

    rows = [json.loads(line) for line in lines(result)]
    kinds = ["bool", "object", "datetime64[us]", "float64", "float64"]
    assert [dict(zip(types, kinds, strict=True))] * 4 == [row[0] for row in rows]
    values = [dict(zip(row[0], row[1], strict=True)) for row in rows]
    assert [value["flag"] for value in values] == ["True", "False"] * 2
    assert [value["gaps"] for value in values] == ["True", "nan", "nan", "True"]
    far, near = "Timestamp('9999-12-31 00:00:00')", "Timestamp('2020-01-01 00:00:00')"
    assert [value["until"] for value in values] == [far, near] * 2
    assert [value["number"] for value in values] == ["1.0", "2.0", "1.0", "2.5"]


def test_json_lines_keep_the_kinds_of_their_values(run, tmp_path):
    """R111: a byte-order mark, Windows newlines, empty lines and files without a row do no harm; text
    like `007` or a date is text, a key that is missing a gap, and a column without any value text."""
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "0.jsonl").write_bytes(b"")
    (folder / "1.jsonl").write_bytes(
        b'\xef\xbb\xbf{"id": 1, "code": "007", "day": "2020-01-01", "flag": true, "none": null}\r\n'
        b'\r\n{"id": 2.5, "code": "8"}'
    )

    result = run(DESCRIBE, [TabularDataset.from_json_lines_files(folder)], mini_batch_size=30)

    kinds = {"id": "float64", "code": "str", "day": "str", "flag": "object", "none": "str"}
    text = str(pd.Series(["text"]).dtype)
    kinds = {name: text if kind == "str" else kind for name, kind in kinds.items()}
    assert [json.loads(line) for line in lines(result)] == [
        [kinds, ["1.0", "'007'", "'2020-01-01'", "True", "nan"]],
        [kinds, ["2.5", "'8'", "nan", "nan", "nan"]],
    ]


def test_rows_that_cannot_be_read_fail_with_file_row_and_reason(run, tmp_path):
    """R111: too few and too many values, a quoted newline that was not announced, a wrong encoding, and
    a word in a column of truth values: each fails its mini-batch, and the rows of the others are kept."""
    cases = {
        "few.csv": (b"key,b\n1,2\n3\n5,6\n", "row 2: it has 1 value, and the dataset has 2 columns"),
        "many.csv": (b"key,b\n1,2\n3,4,5\n5,6\n", "row 2: it has 3 values, and the dataset has 2 columns"),
        "quoted.csv": (b'key,b\n1,2\n3,"x\ny"\n', "row 2: a quoted value goes on over the end of its line; create the dataset with support_multi_line=True"),
        "latin.csv": ("key,b\n1,x\n3,ä\n5,y\n".encode("latin-1"), "row 2: column 'b' holds b'\\xe4', which is not utf8; name the right encoding="),
        "flag.csv": (b"key,flag\n1,1\n3,maybe\n5,0\n", "row 2: column 'flag' is bool, and 'maybe' does not fit"),
        "latin.jsonl": ('{"key": 1}\n{"key": 3, "b": "ä"}\n{"key": 5}\n'.encode("latin-1"), "row 2: it holds b'\\xe4\"}', which is not utf8; name the right encoding="),
        "array.jsonl": (b'{"key": 1}\n[3]\n{"key": 5}\n', "row 2: it is not a JSON object but list"),
    }  # fmt: skip
    datasets = []
    for name, (data, _) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        if path.suffix == ".csv":
            types = {"flag": bool} if name.startswith("flag") else {}
            dataset = TabularDataset.from_delimited_files(path, column_types=types)
        else:
            dataset = TabularDataset.from_json_lines_files(path)
        datasets.append(dataset)

    result = run(KEYS, datasets, mini_batch_size=4, run_max_try=1, error_threshold=-1)

    text = error_text(result)
    for name, (_, said) in cases.items():
        assert f"{tmp_path / name}, {said}" in text
    keys = {line.split("|")[0] for line in lines(result)}
    assert {"1", "5"} <= keys
    assert "3" not in keys


LATE_KINDS = {
    "gap": "int64",
    "real": "int64",
    "flag": "bool",
    "day": "datetime64[ns]",
    "code": "int64",
}
"""Types as the sample of the large file below shows them."""
MENDED = {
    "gap": "float64",
    "real": "float64",
    "flag": "boolean",
    "day": "datetime64[us]",
    "code": "string",
}
LATE = {"gap": None, "real": 2.5, "flag": None, "day": "9999-12-31", "code": "007"}
"""By column: the value that comes once, late."""
LINE = 1_000
COUNT = 24_000
BETWEEN_BLOCKS = (COUNT * LINE - (64 << 10)) / 255
"""Bytes from one block of the sample, 64 KB, to the next."""


def late_rows(columns: list[str]) -> dict[int, str]:
    """Return for some rows between the blocks of the sample which column has its late value there."""
    return {
        int((40 * place + 20.85) * BETWEEN_BLOCKS / LINE): name
        for place, name in enumerate(columns)
    }


def record(row: int, late: dict[int, str]) -> dict[str, object]:
    usual = {
        "key": row,
        "gap": row % 7,
        "real": row % 5,
        "flag": row % 2 == 0,
        "day": f"2020-01-{row % 28 + 1:02d}",
        "code": row % 11 + 1,
    }
    if row in late:
        usual[late[row]] = LATE[late[row]]
    return usual


@pytest.mark.slow
def test_late_values_in_a_large_csv(run, tmp_path):
    """R111: what the sample of a large file does not show (a gap, a float among integers, a date beyond
    nanoseconds, leading zeros) fails its own mini-batch, naming file, row and column; the types that the
    errors suggest mend it; a dtype is the same in every mini-batch, before and after."""
    path = tmp_path / "late.csv"
    late = late_rows(list(LATE))
    with path.open("wb") as file:
        header = ",".join([*record(0, {}), "pad"])
        file.write(header.encode() + b"\n")
        for row in range(COUNT):
            values = ["" if v is None else str(v) for v in record(row, late).values()]
            text = ",".join(values) + ","
            file.write(text.encode() + b"x" * (LINE - len(text) - 1) + b"\n")

    check_late(run, path, late, TabularDataset.from_delimited_files)


@pytest.mark.slow
def test_late_values_in_large_json_lines(run, tmp_path):
    """R111: the same for JSON lines, whose gaps are keys that a line lacks; dates and codes are text there."""
    path = tmp_path / "late.jsonl"
    late = late_rows(["gap", "real", "flag"])
    with path.open("wb") as file:
        for row in range(COUNT):
            values = {name: value for name, value in record(row, late).items() if value is not None}
            text = json.dumps(values)[:-1] + ', "pad": "'
            file.write(text.encode() + b"x" * (LINE - len(text) - 3) + b'"}\n')

    check_late(run, path, late, TabularDataset.from_json_lines_files)


def check_late(run, path, late, read) -> None:
    """Run over a file with late values, as it is and with the types that mend it."""
    found = run(KEYS, [read(path)], run_max_try=1, error_threshold=-1)

    assert found.mini_batches.failed == len(late)
    text = error_text(found)
    for row, name in late.items():
        value = LATE[name] if path.suffix == ".jsonl" or LATE[name] is None else str(LATE[name])
        shown = "no value" if value is None else repr(value)
        said = f"column {name!r} is {LATE_KINDS[name]}, and {shown} "
        assert f"{path}, row {row + 1:,}: {said}" in text
        assert f"column_types={{{name!r}: {MENDED[name]!r}}}" in text
    kept = [line.split("|") for line in lines(found)]
    assert len({kinds for _, kinds in kept}) == 1
    assert not {int(key) for key, _ in kept} & set(late)

    mended = run(KEYS, [read(path, column_types={name: MENDED[name] for name in late.values()})])

    rows = [line.split("|") for line in lines(mended)]
    assert [int(key) for key, _ in rows] == list(range(COUNT))
    assert len({kinds for _, kinds in rows}) == 1


def test_parquet_types_come_from_its_footer(run, tmp_path):
    """R111: in Parquet a gap or a wider type in the last row group or file is known before the first
    mini-batch; dates, times and codes have the dtypes that pandas gives the whole."""
    day = datetime.date(9999, 12, 31)
    moment = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "gap": pa.array([1, 2, None]),
            "flag": pa.array([True, False, None]),
            "day": pa.array([day, day, None]),
            "zoned": pa.array([moment, moment, None], pa.timestamp("us", "UTC")),
            "code": ["007", "008", None],
            "none": pa.nulls(3),
        }
    )
    folder = tmp_path / "table"
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet", row_group_size=1)
    pq.write_table(table.slice(0, 0), folder / "b.parquet")

    result = run(DESCRIBE, [TabularDataset.from_parquet_files(folder)], mini_batch_size=1)

    assert result.mini_batches.total == 3
    expected = pd.read_parquet(folder / "a.parquet")
    # Of truth values too, NaN, as in text.
    expected["flag"] = expected["flag"].where(expected["flag"].notna(), float("nan"))
    assert lines(result) == described(expected)


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    """Columns that share a name cannot be told apart in Parquet: the file and the name are given (R111)."""
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = TabularDataset.from_parquet_files(tmp_path)

    with pytest.raises(DatasetError, match=r"a\.parquet: several columns are called 'a'"):
        dataset.to_pandas_dataframe()


@pytest.mark.parametrize("kind", ["csv", "multi-line csv", "jsonl", "parquet"])
def test_a_row_much_longer_than_a_mini_batch(run, tmp_path, kind):
    """R24, R111: a row of several MB comes once and whole, and so do its neighbours, in mini-batches of KBs."""
    long = "long, " * 700_000
    table = pd.DataFrame({"key": range(2_000), "text": ["x" * 20] * 2_000})
    table.loc[1_000, "text"] = long
    path = tmp_path / f"a.{kind.split()[-1]}"
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
        dataset = TabularDataset.from_json_lines_files(path)
    elif kind == "parquet":
        table.to_parquet(path, row_group_size=500)
        dataset = TabularDataset.from_parquet_files(path)
    else:
        table.to_csv(path, index=False)
        dataset = TabularDataset.from_delimited_files(path, support_multi_line="multi" in kind)

    result = run(
        """
        def run(mini_batch):
            return [f"{key}|{len(text)}" for key, text in mini_batch.itertuples(index=False)]
        """,
        [dataset],
        mini_batch_size="20KB",
    )

    assert lines(result) == [f"{n}|{len(long) if n == 1_000 else 20}" for n in range(2_000)]
