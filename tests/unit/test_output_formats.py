"""From what `run()` returned to the output file of each format, without processes (R220, R221)."""

from __future__ import annotations

import collections
import datetime
import decimal
import io
import itertools
import json
import logging
import math
import pathlib
import random
import tracemalloc
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun import ParallelRunConfig
from prefect_parallelrun.errors import ConfigError, OutputError
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output import parquet_file, parquet_schema
from prefect_parallelrun.output.columns import Misfit, admission
from prefect_parallelrun.output.journal import place
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun_runtime import arrow_rows, encode
from prefect_parallelrun_runtime.returned import BadReturn

PLAIN = {"header": False, "to_csv": {}}
Point = collections.namedtuple("Point", "x y")


def encoded(result, output_format):
    return encode.encode(result, "append_row", PLAIN, output_format)


def success(mini_batch):
    return AttemptRecord(
        mini_batch=mini_batch,
        attempt=1,
        final=True,
        outcome=Outcome.SUCCEEDED,
        node="node000",
        process="process000",
        items_total=1,
        items_succeeded=1,
        items_failed=0,
    )


class Run:
    """The driver's side of a run; opened again on the same folder it goes on."""

    def __init__(self, folder, output_format="parquet"):
        self.folder, self.format = folder, output_format

    def add(self, results, output=None):
        """Take in results by mini-batch, in this order; then publish all."""
        with OutputWriter(RunPaths(self.folder / "run"), keep_rows=True) as writer:
            admit = admission(self.format, writer.journal)
            for index, result in results:
                rows, data, columns = encoded(result, self.format)
                assert rows == len(result)
                if admit is not None and columns is not None:
                    columns = admit(columns, place(index), data)
                writer.add(success(index), data, columns)
            return writer.publish(self.folder, "out", order="input", output_format=self.format)


@pytest.fixture
def output_of(tmp_path):
    """Return a function: results in input order, and optionally the order in which they are done."""
    numbers = itertools.count()

    def call(results, output_format="parquet", order=None):
        folder = tmp_path / str(next(numbers))
        order = range(len(results)) if order is None else order
        return Run(folder, output_format).add([(index, results[index]) for index in order])

    return call


FRAME = pd.DataFrame({"name": ["a b", None], "score": [0.5, 2.0]})
RETURNS = {
    "DataFrame": (FRAME, ["name", "score"]),
    "Arrow table": (pa.table({"name": ["a b", None], "score": [0.5, 2.0]}), ["name", "score"]),
    "record batch": (
        pa.record_batch({"name": ["a b", None], "score": [0.5, 2]}),
        ["name", "score"],
    ),
    "dicts": ([{"name": "a b", "score": 0.5}, {"score": 2.0}], ["name", "score"]),
    "named tuples": ([Point("a b", 0.5), Point(None, 2.0)], ["x", "y"]),
    "Series in a list": ([row for _, row in FRAME.iterrows()], ["name", "score"]),
    "tuples": ([("a b", 0.5), (None, 2.0)], ["Column1", "Column2"]),
    "lists": (([("a b", 0.5), (None, 2.0)]), ["Column1", "Column2"]),
}


@pytest.mark.parametrize("output_format", ["csv", "parquet"])
@pytest.mark.parametrize("kind", RETURNS)
def test_what_has_columns_keeps_them(output_of, kind, output_format):
    """Columns have their names, or Column1, Column2; None and NaN are missing values (R221)."""
    result, names = RETURNS[kind]
    file = output_of([result], output_format)
    frame = pd.read_csv(file) if output_format == "csv" else pd.read_parquet(file)

    assert list(frame.columns) == names
    assert frame.iloc[0].tolist() == ["a b", 0.5]
    assert frame[names[0]].isna().tolist() == [False, True]
    assert frame[names[1]].tolist() == [0.5, 2.0]


@pytest.mark.parametrize("output_format", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("result", "name"),
    [
        ([1, 2], "Column1"),
        ((1, 2), "Column1"),
        (np.array([1, 2]), "Column1"),
        (pd.Series([1, 2]), "Column1"),
        (pd.Series([1, 2], name="n", index=[7, 8]), "n"),
        (pd.DataFrame({"n": [1, 2]}, index=["x", "y"]), "n"),
        (np.array([(1,), (2,)], dtype=[("n", "i8")]), "n"),
        (np.array([[1], [2]]), "Column1"),
        (pd.DataFrame({5: [1, 2]}), "5"),
    ],
    ids=repr,
)
def test_single_values_are_one_column(output_of, result, name, output_format):
    """A scalar is Column1, a Series has its name or is Column1, an index is left out (R221)."""
    file = output_of([result], output_format)
    frame = pd.read_csv(file) if output_format == "csv" else pd.read_parquet(file)

    pd.testing.assert_frame_equal(frame, pd.DataFrame({name: [1, 2]}))


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        ([1, "a\nb", None, 0.5, True], ["1", r'"a\nb"', "null", "0.5", "true"]),
        ([(1, "é")], ['[1, "é"]']),
        ([[float("nan"), float("inf")], {"a": -math.inf}], ["[null, null]", '{"a": null}']),
        ([{"a": {"b": [1]}, 2: np.int64(3)}], ['{"a": {"b": [1]}, "2": 3}']),
        ([{np.int64(2): np.float32(0.5)}], ['{"2": 0.5}']),
        (np.array([[1, 2], [3, 4]]), ["[1, 2]", "[3, 4]"]),
        (np.array([0.5, np.nan]), ["0.5", "null"]),
        (pd.Series([1, None], dtype="Int64"), ["1", "null"]),
        (FRAME, ['{"name": "a b", "score": 0.5}', '{"name": null, "score": 2.0}']),
        (pa.table({"n": [1, None]}), ['{"n": 1}', '{"n": null}']),
        (pd.DataFrame({'a"%s': [1]}), [r'{"a\"%s": 1}']),
        (pd.DataFrame({"b": [True], "c": pd.Categorical(["x"])}), ['{"b": true, "c": "x"}']),
        (pd.DataFrame({"v": [[1, {"a": np.nan}]]}), ['{"v": [1, {"a": null}]}']),
        (pd.DataFrame(index=[1, 2]), ["{}", "{}"]),
        ([datetime.datetime(2024, 2, 29, 12)], ['"2024-02-29T12:00:00"']),
        ([datetime.date(2024, 2, 29), pd.NaT, pd.NA], ['"2024-02-29"', "null", "null"]),
        ([np.datetime64("2024-02-29")], ['"2024-02-29"']),
        ([pd.Timestamp("2024-02-29", tz="UTC")], ['"2024-02-29T00:00:00+00:00"']),
        ([decimal.Decimal("1.10"), decimal.Decimal("NaN")], ['"1.10"', "null"]),
        ([pathlib.PurePosixPath("/a"), b"bytes"], ['"/a"', '"bytes"']),
        ([uuid.UUID(int=1)], ['"00000000-0000-0000-0000-000000000001"']),
        (["caf\udce9", "\ud800"], [r'"caf\udce9"', r'"\ud800"']),
        ([pd.Series({"a": 1})], ['{"a": 1}']),
    ],
    ids=repr,
)
def test_an_element_is_one_json_value(output_of, result, lines):
    """A row of a table is an object, anything else as it is; always valid JSON, in UTF-8 (R221)."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    found = output_of([result], "jsonl").read_bytes().decode("utf-8")

    assert found.split("\n") == [*lines, ""]
    for line in lines:
        json.loads(line, parse_constant=refuse)


class Odd:
    def __repr__(self):
        return "Odd()"


LOOP: list = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("result", "output_format", "words"),
    [
        (
            [1, Odd()],
            "jsonl",
            r"element 1 .* cannot be written as JSON: it holds Odd\(\) \(an Odd\)",
        ),
        ([{"a": {1, 2}}], "jsonl", r"element 0 .*\(a set\)"),
        ([{(1, 2): 3}], "jsonl", "element 0 .*"),
        ([b"\xff"], "jsonl", "element 0 .* no text in UTF-8; base64"),
        ([LOOP], "jsonl", "element 0 .* holds itself"),
        ([1, "a"], "parquet", r"column 'Column1' .*'a' \(a str\) in element 1 does not go with 1"),
        ([{"a": 1}, {"a": "x"}], "parquet", "column 'a' .*'x'.* in element 1"),
        (pd.DataFrame({"v": [0.5, "x"]}), "parquet", "column 'v' .*'x'.* in element 1"),
        (["caf\udce9"], "parquet", "column 'Column1' with a value .* cannot hold: .* element 0"),
        ([2**70], "parquet", "column 'Column1' with a value .* cannot hold: .* in element 0"),
        ([Odd()], "parquet", r"cannot hold: Odd\(\) \(an Odd\) in element 0"),
        (
            ["x", "a\n\ud800"],
            "csv",
            r"column 'Column1' with .*ud800' in element 1, which is no text",
        ),
        ([{}, {}], "parquet", r"rows without any column \(2\)"),
        ([[], []], "csv", r"rows without any column \(2\)"),
        (pd.DataFrame(index=range(1)), "csv", r"rows without any column \(1\)"),
        (np.zeros((3, 0)), "parquet", r"rows without any column \(3\)"),
        (
            pd.DataFrame({"p": pd.period_range("2024", periods=1, freq="M")}),
            "parquet",
            "column 'p'",
        ),
        ([{"a": 1}, 5], "csv", r"with names .*, but element 1 is an int"),
        ([1, {"a": 1}], "parquet", "single values, but element 1 is a dict"),
        ([(1, 2), [1]], "csv", "rows of 2 values, but element 1 has 1"),
        ([FRAME, FRAME], "csv", "element 0 .* a DataFrame, a table in itself"),
        (np.zeros((1, 2, 2)), "parquet", "element 0 .* a table in itself"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "csv", "two columns with the name 'a'"),
        ([{"1": 0, 1: 0}], "parquet", "two columns with the name '1'"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_a_format_cannot_hold_is_refused(result, output_format, words):
    """The error names the element, or column and value (R206, R221)."""
    with pytest.raises(BadReturn, match=f"(?s){words}"):
        encoded(result, output_format)


@pytest.mark.parametrize("text", ['a,b"c"', "a\nb", "a\rb", "a\r\nb", " a ", "é", "", "ä;\t'"])
def test_csv_brings_every_text_back(output_of, text):
    """Separators, quotes and line ends within a value survive; rows end with a newline alone (R221)."""
    results = [pd.DataFrame({"t": [text], "n": [1]}), [{"t": text, "n": 1}]]
    file = output_of(results, "csv")
    frame = pd.read_csv(file, keep_default_na=False)

    assert frame["t"].tolist() == [text, text]
    assert frame["n"].tolist() == [1, 1]
    assert file.read_bytes().startswith(b"t,n\n")


def test_csv_has_one_header_and_refuses_others(tmp_path):
    """What has other columns, or the same in another order, is told how it differs (R221)."""
    run = Run(tmp_path, "csv")
    assert run.add([(0, [{"a": 1, "b": 2}]), (1, [{"a": 3, "b": 4}])]).read_text() == (
        "a,b\n1,2\n3,4\n"
    )
    for columns, words in (
        ({"a": 1}, "lacks 'b'"),
        ({"a": 1, "b": 2, "c": 3}, "adds 'c'"),
        ({"b": 2, "a": 1}, "has 'b' where 'a' should be"),
    ):
        with pytest.raises(Misfit, match=words):
            run.add([(2, [columns])])


def test_an_empty_csv_has_the_header_that_is_known(output_of):
    """Without rows there is the header, if some mini-batch told it (R221)."""
    assert output_of([[], []], "csv").read_bytes() == b""
    assert output_of([[], pd.DataFrame(columns=["a"])], "csv").read_bytes() == b"a\n"


def test_an_empty_parquet_file_has_what_is_known(output_of):
    """Without rows there are the columns, if some mini-batch told them (R221)."""
    assert pd.read_parquet(output_of([[], []])).shape == (0, 0)
    frame = pd.read_parquet(output_of([pd.DataFrame({"a": np.zeros(0)}), []]))
    assert frame.shape == (0, 1)
    assert frame["a"].dtype == "float64"


KINDS = {
    "i": pd.array([1, None], dtype="Int64"),
    "b": pd.array([True, None], dtype="boolean"),
    "f": pd.array([0.5, None], dtype="Float32"),
    "s": pd.array(["x", None], dtype="string"),
    "small": np.array([1, 255], dtype="uint8"),
    "half": [0.5, np.nan],
    "t": pd.to_datetime(["2024-02-29", None]),
    "tz": pd.to_datetime(["2024-02-29", None]).tz_localize("Europe/Berlin"),
    "ns": pd.to_datetime(["2024-02-29T00:00:00.000000001", None]).astype("datetime64[ns]"),
    "took": pd.to_timedelta([1, None], unit="s"),
    "truth": [True, False],
}


def test_dtypes_come_back(output_of):
    """Nullable types, texts, times and their zones are after reading as they were returned (R221)."""
    frame = pd.DataFrame(KINDS)
    found = pd.read_parquet(output_of([frame, frame.iloc[:0], frame]))

    pd.testing.assert_frame_equal(found, pd.concat([frame, frame], ignore_index=True))


def test_values_that_are_no_plain_types(output_of):
    """Categories become their values; dates, decimals, bytes, lists and structures are kept (R221)."""
    frame = pd.DataFrame(
        {
            "c": pd.Categorical(["u", "v"]),
            "d": [datetime.date(2024, 2, 29), None],
            "m": [decimal.Decimal("1.5"), decimal.Decimal("20.25")],
            "by": [b"\xff", None],
            "l": [np.array([1.0, 2.0]), np.array([])],
            "o": [{"a": 1}, {"a": None}],
        }
    )
    found = pq.read_table(output_of([frame]))

    assert found.schema.field("c").type == pa.string()
    assert found.to_pylist() == [
        {
            "c": "u",
            "d": datetime.date(2024, 2, 29),
            "m": decimal.Decimal("1.50"),
            "by": b"\xff",
            "l": [1.0, 2.0],
            "o": {"a": 1},
        },
        {"c": "v", "d": None, "m": decimal.Decimal("20.25"), "by": None, "l": [], "o": {"a": None}},
    ]


NS = pd.Timestamp("2024-01-01T00:00:00.000000001")
US = datetime.datetime(2024, 1, 1)
WIDENING = {
    "nulls": ([{"v": None}], [{"v": "x"}], pa.string()),
    "all NaN and texts": (pd.DataFrame({"v": [np.nan]}), [{"v": "x"}], pa.string()),
    "whole and other numbers": ([{"v": 2**53}], [{"v": 0.5}], pa.float64()),
    "narrow and wide": (np.array([1], "i1"), np.array([2**40], "i8"), pa.int64()),
    "without and with sign": (np.array([200], "u1"), np.array([-1], "i1"), pa.int16()),
    "float32 and whole": (np.array([0.5], "f4"), np.array([7], "i8"), pa.float64()),
    "decimals": ([decimal.Decimal("1.25")], [decimal.Decimal("100.5")], pa.decimal128(5, 2)),
    "times": ([{"v": US}], pd.DataFrame({"v": [NS.as_unit("ns")]}), pa.timestamp("ns")),
    "lists": ([{"v": []}], [{"v": [0.5]}], pa.list_(pa.float64())),
    "lists of numbers": ([{"v": [1]}], [{"v": [0.5]}], pa.list_(pa.float64())),
    "structures": ([{"v": {"a": None}}], [{"v": {"a": 1}}], pa.struct([("a", pa.int64())])),
    "structures of nothing": ([{"v": {}}], [{"v": {"a": 1}}], pa.struct([("a", pa.int64())])),
    "structures that lack fields": (
        [{"v": [{"z": {"n": 1}, "a": 2}]}],
        [{"v": [{"b": 3, "z": {"m": 5}}, None]}],
        pa.list_(
            pa.struct(
                [
                    ("z", pa.struct([("n", pa.int64()), ("m", pa.int64())])),
                    ("a", pa.int64()),
                    ("b", pa.int64()),
                ]
            )
        ),
    ),
    "fields in another order": (
        [{"v": {"z": 1, "a": 1}}],
        [{"v": {"a": 1, "z": 0.5}}],
        pa.struct([("z", pa.float64()), ("a", pa.int64())]),
    ),
    "categories": (pd.DataFrame({"v": pd.Categorical(["x"])}), [{"v": "y"}], pa.string()),
    "names of one zone": (
        pd.DataFrame({"v": pd.to_datetime([US]).tz_localize("Etc/UTC").as_unit("us")}),
        [{"v": US.replace(tzinfo=datetime.UTC)}],
        pa.timestamp("us", "UTC"),
    ),
    "sparse": (pd.DataFrame({"v": pd.arrays.SparseArray([0])}), [{"v": 1}], pa.int64()),
    "lacking": ([{"w": 1}], [{"v": 1, "w": 1}], pa.int64()),
}


@pytest.mark.parametrize("case", WIDENING)
def test_harmless_differences_make_one_type(output_of, case):
    """The type holds both, and the file is the same whichever mini-batch is done first (R220, R221)."""
    one, other, kind = WIDENING[case]
    first, second = output_of([one, other]), output_of([one, other], order=[1, 0])
    table = pq.read_table(first)

    assert first.read_bytes() == second.read_bytes()
    assert table.schema.field("v" if "v" in table.column_names else "Column1").type == kind
    assert table.num_rows == 2


def nested(value):
    """Return a value in each way in which it may stand in a column of objects."""
    return [value, [value], {"a": value}, {"a": [{"b": value}]}, np.array([value], dtype=object)]


ZONED = US.replace(tzinfo=datetime.UTC)
UNLIKE = [
    (US.date(), US, "a date, .* in element 1 and a time without a time zone, .* in element 3"),
    (US, ZONED, "a time without a time zone, .* in element 1 and a time with a time zone, "),
    (ZONED, US, "a time with a time zone, .* in element 1 and a time without a time zone, "),
    ("x", b"x", "a text, 'x', in element 1 and bytes, b'x', in element 3"),
    (b"x", "é", "bytes, b'x', in element 1 and a text, 'é', in element 3"),
]


@pytest.mark.parametrize(("one", "other", "words"), UNLIKE, ids=lambda value: repr(value)[:20])
def test_no_value_is_changed_to_go_with_another(one, other, words):
    """What Arrow would make of one kind unasked is refused, with both values and elements (R221)."""
    for ours, theirs in zip(nested(one), nested(other), strict=True):
        values = [None, ours, ours, theirs]
        results = (
            [{"v": value} for value in values],
            pd.DataFrame({"v": pd.Series(values, dtype=object)}),
        )
        for result in results:
            with pytest.raises(BadReturn, match=f"(?s)column 'v' with {words}"):
                encoded(result, "parquet")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (pd.Timestamp("2024-01-01T00:00:00.000000001"), "keeps microseconds alone"),
        (pd.Timedelta(1, "ns"), "keeps microseconds alone"),
        (datetime.time(12, tzinfo=datetime.UTC), "no time zone for a time of day"),
    ],
    ids=repr,
)
def test_no_value_loses_anything_by_itself(value, words):
    """Nanoseconds, and the zone of a time of day, which Arrow would leave out, are refused (R221)."""
    for one in nested(value):
        with pytest.raises(BadReturn, match=f"(?s)column 'v' .* element 1.*{words}"):
            encoded([{"v": None}, {"v": one}], "parquet")


def test_a_structure_without_fields_is_null(output_of):
    """Parquet has none; with fields in another mini-batch, it has these, without values (R221)."""
    rows = [{"meta": {}, "more": [{}, None], "deep": {"a": {}, "b": 1}}, {"meta": None}]
    found = pq.read_table(output_of([rows[:1], rows[1:], []])).to_pylist()
    assert found == [
        {"meta": None, "more": [None, None], "deep": {"a": None, "b": 1}},
        {"meta": None, "more": None, "deep": None},
    ]

    found = pq.read_table(output_of([rows, [{"meta": {"k": 1}}]])).to_pylist()
    assert [row["meta"] for row in found] == [{"k": None}, None, {"k": 1}]


def test_an_element_without_values_is_a_row_of_nulls(output_of):
    """A dictionary that has no keys is a row like the others, if these have columns (R221)."""
    results = [[{}, {"a": 1, "b": 2}, {}]]
    frame = pd.read_csv(output_of(results, "csv"))

    assert frame["a"].isna().tolist() == [True, False, True]
    assert pq.read_table(output_of(results)).column("b").to_pylist() == [None, 2, None]


def test_what_arrow_cannot_write_says_what_is_kept(output_of, monkeypatch):
    """R206: whatever Arrow refuses at the end, the error says that the rows are there, and how to go on."""
    monkeypatch.setattr(parquet_schema, "kept", lambda kind: kind)
    with pytest.raises(OutputError, match=r"struct type 'v'.* All rows are kept; start a new run"):
        output_of([[{"v": {}}]])
    monkeypatch.setattr(parquet_schema, "kept", lambda kind: pa.list_(pa.int8()))
    with pytest.raises(OutputError, match=r"column 'v' .* as struct<.*All rows are kept; start a"):
        output_of([[{"v": {}}]])


MISFITS = [
    ([{"v": 1}], [{"v": None}, {"v": "bad"}], r"string, .*int64.*'bad' in element 1"),
    ([{"v": 0.5}], [{"v": 1}, {"v": 2**53 + 1}], "int64, .*double.*9007199254740993 in element 1"),
    ([{"v": 2**53 + 1}], [{"v": 0.5}], "double, .*int64.*0.5 in element 0"),
    ([{"v": "x"}], [{"v": b"x"}], "binary, .*string"),
    ([{"v": True}], [{"v": 1}], "int64, .*bool"),
    ([{"v": US}], [{"v": US.replace(tzinfo=datetime.UTC)}], "timestamp.*UTC"),
    ([{"v": datetime.datetime(1066, 1, 1)}], pd.DataFrame({"v": [NS.as_unit("ns")]}), "timestamp"),
    ([{"v": {"a": 1}}], [{"v": {"b": 1, "a": "x"}}], "struct<b"),
    ([{"v": {"a": {}}}], [{"v": {"a": 1}}], "struct<a: int64>"),
    ([{"v": [1]}], [{"v": ["x"]}], "list<.*string"),
    # Values that keep a column from widening, whatever else is in it.
    (
        [{"v": 1}],
        pd.DataFrame({"v": np.array([1, 2**63 + 5], "u8")}),
        "uint64, .*9223372036854775813 in element 1",
    ),
    ([{"v": 0.5}], [{"v": 1}, {"v": -(2**63)}], "int64, .*-9223372036854775808 in element 1"),
    (
        [{"v": {"a": 0.5}}],
        [{"v": None}, {"v": {"a": 1}}, {"v": {"a": -(2**63)}}],
        "struct<.*{'a': -9223372036854775808} in element 2",
    ),
    (
        pd.DataFrame({"v": [NS.as_unit("ns")]}),
        [{"v": US}, {"v": datetime.datetime(1066, 1, 1)}],
        r"timestamp.*1066, .* in element 1",
    ),
]


@pytest.mark.parametrize(("one", "other", "words"), MISFITS, ids=lambda value: repr(value)[:30])
def test_what_does_not_fit_names_column_types_and_value(tmp_path, one, other, words):
    """What no type holds fails its own mini-batch, and leaves the schema as it was (R221)."""
    run = Run(tmp_path)
    run.add([(0, one)])
    with pytest.raises(Misfit, match=f"(?s)column 'v' as {words}"):
        run.add([(1, other)])
    table = pq.read_table(run.add([(2, one)]))

    assert table.num_rows == 2


def test_columns_stand_where_the_input_first_has_them(output_of):
    """The order of the columns does not depend on which mini-batch was done first (R220)."""
    results = [[{"a": 1, "c": 1}], [{"a": 1, "b": 1}], [{"d": 1, "c": 1}], [{"b": 1, "a": 1}]]
    files = {
        output_of(results, order=order).read_bytes() for order in itertools.permutations(range(4))
    }

    assert len(files) == 1
    assert pq.read_table(io.BytesIO(*files)).column_names == ["a", "c", "b", "d"]


@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_any_sittings_make_the_same_file(tmp_path, output_of, seed):
    """R200, R220: the schema so far is read from the journal, whose notes of it stay few."""
    chance = random.Random(seed)
    names = "abcdef"

    def rows(index):
        keys = [name for name in names if chance.random() < 0.7] or ["a"]
        values = [None, index, index / 2]
        return [{key: chance.choice(values) for key in keys} for _ in range(chance.randint(1, 3))]

    results = [rows(index) for index in range(300)]
    order = list(range(300))
    chance.shuffle(order)
    run = Run(tmp_path / "sittings")
    for start in range(0, 300, 100):
        file = run.add([(index, results[index]) for index in order[start : start + 100]])

    assert file.read_bytes() == output_of(results).read_bytes()
    expected = [
        {name: row.get(name) for name in pq.read_table(file).column_names}
        for rows in results
        for row in rows
    ]
    assert pq.read_table(file).to_pylist() == expected
    with OutputWriter(RunPaths(tmp_path / "sittings" / "run"), keep_rows=True) as writer:
        assert len(writer.journal.columns()) < 60


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(
            st.fixed_dictionaries(
                {
                    "n": st.none() | st.integers(-(2**63), 2**63 - 1),
                    "t": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
                    "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
                    "b": st.none() | st.booleans(),
                    "l": st.lists(st.integers(0, 9), max_size=3),
                }
            ),
            max_size=3,
        ),
        max_size=5,
    )
)
def test_whatever_is_returned_is_read_back(tmp_path_factory, results):
    """Rows of any values come back as they were, from Parquet and from JSON (R221)."""
    expected = [row for rows in results for row in rows]
    for output_format in ("parquet", "jsonl"):
        run = Run(tmp_path_factory.mktemp("any"), output_format)
        file = run.add(list(enumerate(results)))
        if output_format == "parquet":
            found = pq.read_table(file).to_pylist()
        else:
            found = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
        assert found == expected


def test_row_groups_are_of_bounded_size(output_of, monkeypatch):
    """Many small mini-batches share a row group, and a large one is cut into several (R221)."""
    monkeypatch.setattr(parquet_file, "ROW_GROUP_BYTES", 100_000)
    monkeypatch.setattr(parquet_file, "_JOIN_BYTES", 10_000)
    monkeypatch.setattr(arrow_rows, "BATCH_BYTES", 20_000)
    small = [np.arange(5) for _ in range(4_000)]
    large = np.arange(100_000)
    for results in (small, [large], [*small, large]):
        file = pq.ParquetFile(output_of(results))
        sizes = [file.metadata.row_group(n).num_rows * 8 for n in range(file.num_row_groups)]
        assert all(80_000 <= size <= 130_000 for size in sizes[:-1])
        assert file.read().column(0).to_pylist() == np.concatenate(results).tolist()


def test_the_driver_holds_little_of_a_large_output(tmp_path):
    """Publishing takes memory of some row groups, not of the output (R221)."""
    paths = RunPaths(tmp_path / "run")
    _, data, columns = encoded(
        pd.DataFrame({"v": np.random.default_rng(0).random(1_000_000)}), "parquet"
    )
    with OutputWriter(paths, keep_rows=True, log=logging.getLogger("test")) as writer:
        for index in range(25):  # 200 MB
            writer.add(success(index), data, columns)
        writer.flush()
        usual = pa.default_memory_pool()
        own = pa.proxy_memory_pool(usual)  # it counts from here on
        pa.set_memory_pool(own)
        tracemalloc.start()
        writer.publish(tmp_path, "out", order="input", output_format="parquet")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        pa.set_memory_pool(usual)

    assert pq.ParquetFile(tmp_path / "out").metadata.num_rows == 25_000_000
    assert own.max_memory() > 1 << 20
    assert peak + own.max_memory() < 150 << 20


def test_a_format_needs_rows():
    """R12: summary_only keeps no rows, so a format that would do nothing is refused at construction."""
    with pytest.raises(ConfigError, match=r"output_format='csv'.*summary_only.* keeps no rows"):
        ParallelRunConfig("score.py", output_action="summary_only", output_format="csv")


@pytest.mark.parametrize("output_format", ["csv", "jsonl", "parquet"])
def test_a_result_reads_its_format(output_of, output_format):
    """to_pandas() takes values as they are, and passes its keywords to the reader of the format."""
    rows = [{"code": "007", "created_at": 1_700_000_000, "share": 0.1}]
    file = output_of([rows], output_format)
    result = ParallelRunResult.model_construct(
        name="step",
        run_directory=str(file.parent / "run"),
        output=str(file.parent),
        append_row_file=str(file),
        output_format=output_format,
        output_credentials=None,
    )
    keywords = {
        "csv": {"dtype": {"code": str}},
        "jsonl": {"nrows": 1},
        "parquet": {"columns": ["code", "created_at", "share"]},
    }

    found = result.to_pandas(**keywords[output_format])

    assert found.to_dict("records") == rows
