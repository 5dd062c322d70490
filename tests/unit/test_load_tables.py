"""The rows of mini-batches: each once, whatever the cut, with one dtype per column in all of them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.planning import make_plan
from prefect_parallelrun_runtime.load import load
from prefect_parallelrun_runtime.load_error import LoadError


def loaded(dataset, size, scratch):
    """Return the DataFrames of all mini-batches, through JSON as on the way to a worker process."""
    plan = make_plan([dataset], [dataset.list_files()], mini_batch_size=size, scratch=scratch)
    reader = json.loads(json.dumps(plan.readers[0]))
    batches = [load(json.loads(json.dumps(batch.work)), reader) for batch in plan]
    assert all(batch.items == len(batch.data) for batch in batches)
    return [batch.data for batch in batches]


def joined(frames):
    return pd.concat(frames, ignore_index=True)


def same_dtypes(frames):
    assert len({tuple(map(str, frame.dtypes)) for frame in frames}) == 1
    return dict(zip(frames[0].columns, map(str, frames[0].dtypes), strict=True))


WORDS = st.text(st.sampled_from('ab ,;"é€😀\t'), max_size=6)
LINES = st.lists(st.sampled_from(["a", "b", ",", '"', "\n", "\r\n", "é"]), max_size=6).map("".join)


@st.composite
def csv_texts(draw, words):
    """A rectangular CSV text, as some writer or other would write it."""
    separator = draw(st.sampled_from(",;\t"))
    width = draw(st.integers(2, 4))
    rows = draw(st.lists(st.lists(words, min_size=width, max_size=width), max_size=12))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=separator,
        lineterminator=end,
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    )
    writer.writerow([f"c{place}" for place in range(width)])
    writer.writerows(rows)
    data = text.getvalue()
    if draw(st.booleans()):
        data = data.removesuffix(end)
    if draw(st.booleans()):
        data = data.replace(end, end + end)
    return separator, data


def check_against_pandas(separator, text, size, encoding, multi_line):
    data = text.encode(encoding)
    expected = pd.read_csv(
        io.BytesIO(data), sep=separator, dtype=str, encoding=encoding, keep_default_na=True
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(data)
        dataset = TabularDataset.from_delimited_files(
            path,
            separator=separator,
            encoding=encoding,
            support_multi_line=multi_line,
            column_types=dict.fromkeys(expected.columns, str),
        )
        frames = loaded(dataset, size, Path(folder))
        whole = dataset.to_pandas_dataframe()

    pd.testing.assert_frame_equal(whole, expected)
    if frames or len(expected):
        pd.testing.assert_frame_equal(joined(frames), expected)


@settings(max_examples=60, deadline=None)
@given(csv_texts(WORDS), st.integers(1, 80), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_any_cut_gives_each_row_once(case, size, encoding):
    """Whatever the text and the size, the mini-batches together are what pandas reads (R23, R24)."""
    check_against_pandas(*case, size, encoding, multi_line=False)


@settings(max_examples=60, deadline=None)
@given(csv_texts(LINES), st.integers(1, 80))
def test_any_cut_gives_each_row_once_with_newlines_in_values(case, size):
    """The same with newlines inside quoted values (R24)."""
    check_against_pandas(*case, size, "utf-8", multi_line=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(['5" x', "a", '"b ""c"" d"', '"e\nf"', 'g"', '"h"i']), WORDS),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 60),
)
def test_quotes_inside_plain_values_are_plain(rows, size):
    """A quote that does not begin a value is a character like others, as for pandas: no row is lost."""
    words = [word.translate(str.maketrans("", "", ',"')) for _, word in rows]
    text = "x,y\n" + "".join(
        f"{first},{word}\n" for (first, _), word in zip(rows, words, strict=True)
    )
    check_against_pandas(",", text, size, "utf-8", multi_line=True)


def test_large_files_with_newlines_in_values(tmp_path):
    """Blocks of the scan may end anywhere: inside quotes, between doubled ones, in a line end."""
    rng = np.random.default_rng(1)
    rows = [
        [place, "".join(rng.choice(list('ab"\n,'), size=rng.integers(0, 60)))]
        for place in range(60_000)
    ]
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    assert path.stat().st_size > 2 << 20

    frames = loaded(
        TabularDataset.from_delimited_files(
            path, support_multi_line=True, column_types={"text": str}
        ),
        "64KB",
        tmp_path,
    )

    pd.testing.assert_frame_equal(joined(frames), pd.read_csv(path, dtype={"text": str}))
    assert same_dtypes(frames)["id"] == "int64"


def test_one_dtype_whatever_a_mini_batch_holds(tmp_path):
    """A column has the same dtype in every mini-batch: the one that pandas gives the whole (R111)."""
    count = 2000
    whole = pd.DataFrame(
        {
            "int": range(count),
            "late_float": [*range(count - 1), 0.5],
            "late_text": [*range(count - 1), "x"],
            "late_gap": [*range(count - 1), None],
            "bool": [True, False] * (count // 2),
            "bool_gap": [None, *[True] * (count - 1)],
            "nothing": [None] * count,
            "text_gap": ["a", *[None] * (count - 1)],
        }
    )
    whole["late_gap"] = whole["late_gap"].astype("Int64")
    path = tmp_path / "a.csv"
    whole.to_csv(path, index=False)
    expected = pd.read_csv(path, dtype={"nothing": str})

    frames = loaded(TabularDataset.from_delimited_files(path), "2KB", tmp_path)

    assert len(frames) > 10
    same_dtypes(frames)
    pd.testing.assert_frame_equal(joined(frames), expected)


def test_types_come_from_a_sample_of_a_large_input(tmp_path, monkeypatch):
    """Head, tail and evenly spaced blocks settle the types where the input is large (R111)."""
    monkeypatch.setattr("prefect_parallelrun.datasets.sampling.SAMPLE_BYTES", 1 << 18)
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write("tail,everywhere,int\n")
        file.writelines(f"{n},{n if n % 50 else n + 0.5},{n}\n" for n in range(99_999))
        file.write("1.5,1,1\n")

    frames = loaded(TabularDataset.from_delimited_files(path), "200KB", tmp_path)

    assert same_dtypes(frames) == {"tail": "float64", "everywhere": "float64", "int": "int64"}
    assert sum(map(len, frames)) == 100_000


@pytest.mark.parametrize("late", ["1", "0"])
def test_a_digit_that_the_sample_of_truth_values_does_not_show(tmp_path, monkeypatch, late):
    """It would have made the column text, so it is an error, until the user says that it is one (R111)."""
    monkeypatch.setattr("prefect_parallelrun.datasets.sampling.SAMPLE_BYTES", 1 << 18)
    path = tmp_path / "a.csv"
    rows = [f"{n:05},{'true' if n % 2 else 'false'}\n" for n in range(100_000)]
    rows[20_000] = f"20000,{late}\n"
    path.write_text("n,flag\n" + "".join(rows))

    with pytest.raises(
        LoadError, match=r"a\.csv, row 20,001: column 'flag' is bool, and '[01]' does"
    ):
        loaded(TabularDataset.from_delimited_files(path), "1MB", tmp_path)

    said = TabularDataset.from_delimited_files(path, column_types={"flag": "bool"})
    flags = joined(loaded(said, "1MB", tmp_path))["flag"].tolist()
    assert flags == [n % 2 == 1 if n != 20_000 else late == "1" for n in range(100_000)]


def test_a_sample_of_values_with_newlines_is_not_led_astray(tmp_path, monkeypatch):
    """A block from the middle of quoted text is aligned to rows all the same (R111)."""
    monkeypatch.setattr("prefect_parallelrun.datasets.sampling.SAMPLE_BYTES", 1 << 18)
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write("id,text,value\n")
        file.writelines(f'{n},"one, 1\n2,two\n{n}",{n}.5\n' for n in range(50_000))

    frames = loaded(
        TabularDataset.from_delimited_files(path, support_multi_line=True), "200KB", tmp_path
    )

    dtypes = same_dtypes(frames)
    assert (dtypes["id"], dtypes["value"]) == ("int64", "float64")
    assert joined(frames)["id"].tolist() == list(range(50_000))


def test_dates_and_long_numbers(tmp_path):
    """Dates are datetimes, in microseconds where nanoseconds cannot say them; long numbers stay text (R111)."""
    path = tmp_path / "a.csv"
    path.write_text(
        "day,moment,far,zoned,number\n"
        "2020-01-01,2020-01-01 10:00:00,9999-12-31,2020-01-01T00:00:00Z,18446744073709551616\n"
        "2020-01-02,2020-01-02,2020-01-01,2020-01-01T02:00:00+02:00,18446744073709551617\n"
    )

    frames = loaded(TabularDataset.from_delimited_files(path), 100, tmp_path)

    dtypes = same_dtypes([frame for frame in frames if len(frame)])
    assert dtypes["day"] == dtypes["moment"] == "datetime64[ns]"
    assert dtypes["far"] == "datetime64[us]"
    assert dtypes["zoned"] == "datetime64[ns, UTC]"
    assert joined(frames)["number"].tolist() == ["18446744073709551616", "18446744073709551617"]
    assert joined(frames)["zoned"].nunique() == 1


def test_the_user_settles_types(tmp_path):
    """A type that the user sets holds, by any of its names; other columns are found (R111)."""
    path = tmp_path / "a.csv"
    path.write_text("zip,n,flag,when\n00123,1,1,2020-01-01\n00456,2,0,2020-01-02\n")
    dataset = TabularDataset.from_delimited_files(
        path,
        column_types={
            "zip": str,
            "n": np.dtype("float64"),
            "flag": bool,
            "when": "datetime64[us]",
        },
    )

    frame = dataset.to_pandas_dataframe()

    assert frame["zip"].tolist() == ["00123", "00456"]
    assert frame["flag"].tolist() == [True, False]
    assert [str(frame[name].dtype) for name in ("n", "flag", "when")] == [
        "float64",
        "bool",
        "datetime64[us]",
    ]


def test_names_without_header_and_odd_headers(tmp_path):
    """Without a header columns are Column1, Column2, …; a doubled or empty name is mended as pandas does."""
    path = tmp_path / "a.csv"
    path.write_text("1,2\n3,4\n")
    frame = joined(loaded(TabularDataset.from_delimited_files(path, header=False), 3, tmp_path))
    assert frame.to_dict("list") == {"Column1": [1, 3], "Column2": [2, 4]}

    path.write_text("\n\na,,a,a.1\n1,2,3,4\n")
    frame = joined(loaded(TabularDataset.from_delimited_files(path), 7, tmp_path))
    assert frame.columns.tolist() == pd.read_csv(path).columns.tolist()


def test_each_file_has_its_own_header(tmp_path):
    """The header of each file is no row, also where it is longer than a mini-batch; order may differ (R24)."""
    (tmp_path / "a.csv").write_text("first_column,second_column\n1,a\n2,b\n")
    (tmp_path / "b.csv").write_text("second_column,first_column\r\nc,3\r\nd,4")

    frame = joined(loaded(TabularDataset.from_delimited_files(tmp_path), 4, tmp_path))

    assert frame.to_dict("list") == {
        "first_column": [1, 2, 3, 4],
        "second_column": ["a", "b", "c", "d"],
    }


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-32-le", "gbk"])
def test_other_encodings(tmp_path, encoding):
    """Text in another encoding comes as the text it is."""
    word = "中文" if encoding == "gbk" else "Zürich"
    path = tmp_path / "a.csv"
    path.write_bytes(("name;größe\n" + f"{word};1\n" * 20).replace("ö", "o").replace("ß", "ss").encode(encoding))  # fmt: skip
    dataset = TabularDataset.from_delimited_files(path, separator=";", encoding=encoding)

    frame = joined(loaded(dataset, 17, tmp_path))

    assert frame["name"].tolist() == [word] * 20
    assert frame["grosse"].tolist() == [1] * 20


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
    ],
)
def test_compressed_files(tmp_path, suffix, compress):
    """A compressed file is read whole, whether CSV or JSON lines."""
    lines = b"".join(b'{"a":%d}\n' % n for n in range(500))
    (tmp_path / f"a.csv{suffix}").write_bytes(compress(b"a\n" + b"1\n" * 500))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(lines))

    (frame,) = loaded(TabularDataset.from_delimited_files(str(tmp_path / "*.csv*")), 100, tmp_path)
    assert frame["a"].tolist() == [1] * 500
    (frame,) = loaded(
        TabularDataset.from_json_lines_files(str(tmp_path / "*.jsonl*")), 100, tmp_path
    )
    assert frame["a"].tolist() == list(range(500))


JSON_VALUES = st.one_of(
    st.none(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(st.sampled_from('ab"\\\né😀'), max_size=5),
    st.lists(st.integers(0, 9), max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from("xyz"), JSON_VALUES), min_size=1, max_size=10),
    st.integers(1, 60),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_any_cut_of_json_lines_gives_each_row_once(records, size, ascii_only, end):
    """Whatever the values and the size: each line once, in order, and one dtype per column (R24, R111)."""
    text = end.join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(text, encoding="utf-8", newline="")
        frames = loaded(TabularDataset.from_json_lines_files(path), size, Path(folder))

    same_dtypes([frame for frame in frames if len(frame)] or frames)
    frame = joined(frames)
    assert len(frame) == len(records)
    for name in frame.columns:
        for record, value in zip(records, frame[name].tolist(), strict=True):
            expected = record.get(name)
            if expected is None:
                assert value is None or value != value
            elif isinstance(value, str) and not isinstance(expected, str):
                assert json.loads(value) == expected
            else:
                assert value == expected


def test_json_lines_types(tmp_path):
    """JSON values keep their kind: text that looks like a date is text, lists are lists, gaps make floats."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"i":1,"d":"2020-01-01","l":[1],"g":1}\n' * 30 + '{"i":2,"d":"x","l":null,"t":true}\n'
    )

    frames = loaded(TabularDataset.from_json_lines_files(path), 200, tmp_path)

    dtypes = same_dtypes(frames)
    assert (dtypes["i"], dtypes["g"], dtypes["l"], dtypes["t"]) == (
        "int64",
        "float64",
        "object",
        "object",
    )
    assert joined(frames)["d"].tolist() == ["2020-01-01"] * 30 + ["x"]
    typed = TabularDataset.from_json_lines_files(
        path, column_types={"d": "string", "i": "float64", "rare": "int64"}
    )
    assert "rare" in typed.settle(typed.list_files()).reader["columns"][-1]


def test_parquet_dtypes_are_the_same_in_every_row_group(tmp_path):
    """Integers with a gap anywhere are floats everywhere; truth values with one are objects (R111)."""
    table = pa.table(
        {
            "i": pa.array([1, 2, 3, None]),
            "j": [1, 2, 3, 4],
            "b": pa.array([None, True, True, True]),
            "s": pa.array(["a", None, "b", "c"]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    pq.write_table(
        pa.table({"s": ["d"], "j": pa.array([5], pa.int32()), "i": [4], "b": [False]}),
        tmp_path / "b.parquet",
    )

    frames = loaded(TabularDataset.from_parquet_files(tmp_path), 1, tmp_path)

    assert len(frames) == 5
    dtypes = same_dtypes(frames)
    assert (dtypes["i"], dtypes["j"], dtypes["b"]) == ("float64", "int64", "object")
    assert joined(frames)["j"].tolist() == [1, 2, 3, 4, 5]
    assert frames[0].columns.tolist() == ["i", "j", "b", "s"]


def test_a_data_frame_comes_back_as_it_was(tmp_path):
    """The dtypes of a DataFrame are those of its mini-batches, but categories are values; its index is left out (R7)."""
    frame = pd.DataFrame(
        {
            "i8": np.arange(100, dtype="int8"),
            "nullable": pd.array([None, *range(99)], dtype="Int64"),
            "category": pd.Categorical(["x", "y"] * 50, categories=["z", "y", "x"]),
            "when": pd.date_range("2020", periods=100, tz="Europe/Paris"),
            "truth": [None, *[True] * 99],
            "text": ["a", None] * 50,
            "list": [[n] for n in range(100)],
        },
        index=range(500, 600),
    )
    dataset = TabularDataset.from_pandas_dataframe(frame)
    frame.loc[500, "i8"] = 99

    frames = loaded(dataset, 300, tmp_path)

    assert len(frames) > 5
    expected = dict(zip(frame.columns, map(str, frame.dtypes), strict=True))
    expected["category"] = str(frame["category"].cat.categories.dtype)
    assert same_dtypes(frames) == expected
    assert same_dtypes([dataset.to_pandas_dataframe()]) == expected
    got = joined(frames)
    assert got["i8"].tolist() == list(range(100))
    assert got["list"].map(list).tolist() == frame["list"].tolist()
    assert got["category"].tolist() == frame["category"].tolist()
    pd.testing.assert_series_equal(got["when"], frame["when"].reset_index(drop=True), check_freq=False)  # fmt: skip


def test_a_data_frame_without_names_for_its_columns(tmp_path):
    """Columns whose names are numbers keep them, in every mini-batch."""
    frame = pd.DataFrame([[n, n % 2 == 0, None] for n in range(50)])
    frame[1] = frame[1].astype(object).where(frame[0] > 0, None)

    frames = loaded(TabularDataset.from_pandas_dataframe(frame), 100, tmp_path)

    assert len(frames) > 3
    same_dtypes(frames)
    assert joined(frames)[1].tolist()[1:] == frame[1].tolist()[1:]


def test_take_and_the_whole_table(tmp_path):
    """`take(n)` gives the first n rows, of any format; the whole table has the same dtypes (R1)."""
    frame = pd.DataFrame({"a": range(100), "b": [n / 2 for n in range(100)]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=30)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))

    for dataset in (
        TabularDataset.from_delimited_files(tmp_path / "a.csv"),
        TabularDataset.from_delimited_files(tmp_path / "a.csv.gz"),
        TabularDataset.from_delimited_files(tmp_path / "a.csv", support_multi_line=True),
        TabularDataset.from_json_lines_files(tmp_path / "a.jsonl"),
        TabularDataset.from_parquet_files(tmp_path / "a.parquet"),
        TabularDataset.from_pandas_dataframe(frame),
    ):
        pd.testing.assert_frame_equal(dataset.to_pandas_dataframe(), frame)
        pd.testing.assert_frame_equal(dataset.take(45).to_pandas_dataframe(), frame.head(45))
        taken = joined(loaded(dataset.take(45), "1KB", tmp_path))
        pd.testing.assert_frame_equal(taken, frame.head(45))


LONG = 2**53 + 1
"""The first whole number that is no float64."""


def write_groups(path, groups, **settings):
    """Write a column `id` of int64 in the given row groups."""
    schema = pa.schema([("id", pa.int64())])
    with pq.ParquetWriter(path, schema, **settings) as writer:
        for group in groups:
            writer.write_table(pa.table({"id": group}, schema))


@pytest.mark.parametrize(
    ("groups", "settings"),
    [
        ([[], [LONG, 2]], {}),
        ([[LONG], [2]], {"write_statistics": False}),
    ],
    ids=["an empty row group", "no statistics"],
)
def test_parquet_integers_without_gaps_are_never_rounded(tmp_path, groups, settings):
    """What a footer does not tell of is no gap: ids stay int64, to the last digit (R111)."""
    write_groups(tmp_path / "a.parquet", groups, **settings)
    dataset = TabularDataset.from_parquet_files(tmp_path)

    frames = loaded(dataset, 1, tmp_path)

    assert same_dtypes(frames) == {"id": "int64"}
    assert joined(frames)["id"].tolist() == [LONG, 2]
    assert dataset.to_pandas_dataframe()["id"].tolist() == [LONG, 2]


def test_parquet_gaps_are_found_without_statistics(tmp_path):
    """Where footers do not count gaps, the columns themselves are looked at (R111)."""
    table = pa.table({"id": [1, 2, None], "a.b": [1, 2, 3], "t": [True, True, None]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1, write_statistics=False)

    frames = loaded(TabularDataset.from_parquet_files(tmp_path), 1, tmp_path)

    assert same_dtypes(frames) == {"id": "float64", "a.b": "int64", "t": "object"}


def test_parquet_categories_are_values(tmp_path):
    """Files with other categories in a column, or in another order, give one dtype: that of the values (R111)."""
    for name, values in (("a", ["a", "b"]), ("b", ["z", None])):
        frame = pd.DataFrame({"c": pd.Categorical(values), "n": pd.Categorical([1, 2])})
        frame.to_parquet(tmp_path / f"{name}.parquet")

    dataset = TabularDataset.from_parquet_files(tmp_path)
    frames = loaded(dataset, 1, tmp_path)

    text = str(pd.Series(["a"]).dtype)
    assert same_dtypes(frames) == {"c": text, "n": "int64"}
    assert joined(frames)["c"].tolist()[:3] == ["a", "b", "z"]
    assert same_dtypes([dataset.to_pandas_dataframe()]) == {"c": text, "n": "int64"}


def test_categories_of_a_data_frame_are_values(tmp_path):
    """Categories of numbers and truth values have the same dtypes in run() as on the user's machine, gaps or not (R7)."""
    frame = pd.DataFrame(
        {
            "n": pd.Categorical([1, 2, 1, 2]),
            "gap": pd.Categorical([LONG, None, LONG, 1]),
            "truth": pd.Categorical([True, None, False, True]),
            "real": pd.Categorical([0.5, None, 1.5, 0.5]),
        }
    )
    dataset = TabularDataset.from_pandas_dataframe(frame)

    frames = loaded(dataset, 20, tmp_path)

    assert len(frames) > 1
    dtypes = {"n": "int64", "gap": "Int64", "truth": "boolean", "real": "float64"}
    assert same_dtypes(frames) == same_dtypes([dataset.to_pandas_dataframe()]) == dtypes
    assert joined(frames)["gap"].tolist() == [LONG, pd.NA, LONG, 1]
    assert frame["n"].dtype == "category"


def test_text_like_0x1f_is_text(tmp_path):
    """Identifiers that only Arrow takes for hexadecimal numbers stay what they are (R111)."""
    path = tmp_path / "a.csv"
    path.write_text("id,n,m\n0x1F,1, 0X2\n0x20,2,3\n")

    frames = loaded(TabularDataset.from_delimited_files(path), 10, tmp_path)

    same_dtypes(frames)
    assert joined(frames).to_dict("list") == {
        "id": ["0x1F", "0x20"],
        "n": [1, 2],
        "m": [" 0X2", "3"],
    }


def test_parquet_files_of_no_bytes_are_left_out(tmp_path):
    """A folder as Spark leaves it, with an empty `_SUCCESS`, is read like others."""
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "part-0.parquet")
    (tmp_path / "_SUCCESS").touch()
    dataset = TabularDataset.from_parquet_files(tmp_path)

    assert joined(loaded(dataset, 1, tmp_path))["a"].tolist() == [1, 2]
    assert dataset.take(2).to_pandas_dataframe()["a"].tolist() == [1, 2]


@pytest.mark.parametrize("rows", ["9007199254740993,\n,x\n", "1,\n9007199254740993,\n,x\n"])
def test_long_whole_numbers_in_a_column_with_gaps_keep_their_digits(rows, tmp_path):
    """R111: beyond 2**53 a float would make two identifiers one; such a column is text instead."""
    (tmp_path / "a.csv").write_text("id,more\n" + rows)
    (tmp_path / "a.jsonl").write_text('{"id": 9007199254740993}\n{"more": "x"}\n')

    (frame,) = loaded(TabularDataset.from_delimited_files(str(tmp_path / "a.csv")), "1MB", tmp_path)
    assert "9007199254740993" in frame["id"].tolist()
    (frame,) = loaded(
        TabularDataset.from_json_lines_files(str(tmp_path / "a.jsonl")), "1MB", tmp_path
    )
    assert frame["id"][0] == "9007199254740993"


def test_long_whole_numbers_without_gaps_stay_numbers(tmp_path):
    """R111: they are whole numbers of 64 bits, exactly."""
    (tmp_path / "a.csv").write_text("id\n9007199254740993\n-9007199254740995\n")

    (frame,) = loaded(TabularDataset.from_delimited_files(str(tmp_path / "a.csv")), "1MB", tmp_path)
    assert frame["id"].tolist() == [9007199254740993, -9007199254740995]
