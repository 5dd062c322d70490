"""Queries as tables: each row once, typed as the whole, whatever the database and however it is cut."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
import sqlite3
from decimal import Decimal
from types import SimpleNamespace

import pandas as pd
import pytest

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.errors import ConfigError, DatasetError
from prefect_parallelrun_runtime.load_error import LoadError
from tests.sql.conftest import USER

LONG = 2**60 + 1
"""A float would round it."""


def filled(database, values, kind="BIGINT"):
    """Make a table `t` of rows (n, x), n from 0 and x from values."""
    database.execute(f"CREATE TABLE t (n INTEGER, x {kind})")
    database.execute("INSERT INTO t VALUES (?, ?)", list(enumerate(values)))


def kinds(frame):
    return list(map(str, frame.dtypes))


def test_one_mini_batch_without_partition_column(database, mini_batches):
    """R25: a query without partition_column is one mini-batch, in the order that the query asks for."""
    filled(database, range(1_000))
    dataset = TabularDataset.from_sql_query(database.url, "SELECT n, x FROM t ORDER BY n DESC")

    (frame,) = mini_batches(dataset, "1KB")

    assert list(frame.itertuples(index=False, name=None)) == [(n, n) for n in range(999, -1, -1)]
    assert kinds(frame) == ["int64", "int64"]
    pd.testing.assert_frame_equal(dataset.to_pandas_dataframe(), frame)


@pytest.mark.parametrize(
    "values",
    [
        list(range(-500, 500)),
        [7] * 300,
        [None] * 300,
        [3],
        [],
        [-(2**63), 0, 2**63 - 1] * 100,
        [1, 1, 1, 1, 1_000_000] * 100,
        [None, 5, None, -5] * 100,
    ],
    ids=["plain", "one value", "nulls only", "one row", "no rows", "widest", "skewed", "nulls"],
)
def test_ranges_of_whole_numbers(database, mini_batches, values):
    """R25: with partition_column each row is in exactly one mini-batch, rows without a value too."""
    filled(database, values)
    dataset = TabularDataset.from_sql_query(
        database.url, "SELECT * FROM t", partition_column="x", column_types={"x": "string"}
    )

    frames = mini_batches(dataset, "1KB")

    rows = [row for frame in frames for row in frame.itertuples(index=False, name=None)]
    found = sorted((n, None if pd.isna(x) else int(x)) for n, x in rows)
    assert found == list(enumerate(values))
    assert len(frames) > 1 or len(set(values)) <= 1
    without = [frame for frame in frames if frame["x"].isna().any()]
    assert len(without) == (None in values)
    assert all(frame["x"].isna().all() for frame in without)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("DOUBLE PRECISION", [n / 7 - 40 for n in range(400)]),
        ("DOUBLE PRECISION", [-1e308, 1e308, 0.0] * 50),
        ("DOUBLE PRECISION", [math.inf, -math.inf, math.nan, 1.5, None] * 50),
        ("NUMERIC", [Decimal(n) / 3 for n in range(400)]),
        ("DATE", [datetime.date(1969, 12, 1) + datetime.timedelta(n) for n in range(300)]),
        ("TIMESTAMP", [datetime.datetime(2024, 1, 1, 0, n) for n in range(60)] * 5),
        (
            "TIMESTAMPTZ",
            [datetime.datetime(1960, 1, 1, h, tzinfo=datetime.UTC) for h in range(24)] * 9,
        ),
    ],
    ids=["floats", "widest floats", "infinities", "decimals", "dates", "times", "times of a zone"],
)
def test_ranges_of_other_values(postgresql, mini_batches, kind, values):
    """R25: floats, decimals, dates and times are cut as whole numbers are; none is lost, infinities neither."""
    filled(postgresql, values, kind)
    dataset = TabularDataset.from_sql_query(postgresql.url, "SELECT * FROM t", partition_column="x")

    frames = mini_batches(dataset, "2KB")

    assert sorted(n for frame in frames for n in frame["n"]) == list(range(len(values)))
    assert len(frames) > 1
    assert len({tuple(kinds(frame)) for frame in frames}) == 1
    expected = {"DATE": "datetime64[ns]", "TIMESTAMP": "datetime64[ns]"}
    expected["TIMESTAMPTZ"] = "datetime64[ns, UTC]"
    assert kinds(frames[0])[1] == expected.get(kind, "float64")
    # Each range is in the order of its column.
    assert all(frame["x"].dropna().is_monotonic_increasing for frame in frames)


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        ("DOUBLE PRECISION", [math.nan]),
        ("REAL", [math.inf, -math.inf, math.nan, None]),
        ("NUMERIC", [Decimal("NaN"), None]),
    ],
)
def test_infinities_and_nan_make_no_range_wider(postgresql, mini_batches, kind, odd):
    """R25: they are in the first or last range, and the ranges are those of the numbers."""
    values = [*odd, *range(300)]
    filled(postgresql, values, kind)
    dataset = TabularDataset.from_sql_query(postgresql.url, "SELECT * FROM t", partition_column="x")

    frames = mini_batches(dataset, "1KB")

    assert sorted(n for frame in frames for n in frame["n"]) == list(range(len(values)))
    assert max(map(len, frames)) < 100


def test_infinities_and_nan_alone(postgresql, mini_batches):
    """R25: rows that have nothing else in the column are one mini-batch."""
    filled(postgresql, [math.nan, math.inf, -math.inf] * 100, "DOUBLE PRECISION")
    dataset = TabularDataset.from_sql_query(postgresql.url, "SELECT * FROM t", partition_column="x")
    assert [len(frame) for frame in mini_batches(dataset, "1KB")] == [300]


@pytest.mark.parametrize("partition_column", [None, "n"])
def test_many_columns(database, mini_batches, partition_column):
    """R25: as many columns as a database has are planned, and each has the type of all its rows."""
    names = [f"c{place}" for place in range(700)]
    database.execute(
        f"CREATE TABLE t (n INTEGER, {', '.join(f'{name} INTEGER' for name in names)})"
    )
    marks = ", ".join("?" * (len(names) + 1))
    rows = [(n, *range(700)) for n in range(1_500)]
    rows[-1] = (1_499, *(None if place % 7 == 3 else 2**30 for place in range(700)))
    database.execute(f"INSERT INTO t VALUES ({marks})", rows)
    dataset = TabularDataset.from_sql_query(
        database.url, "SELECT * FROM t", partition_column=partition_column
    )

    frames = mini_batches(dataset, "2MB")

    assert len(frames) > 1 or partition_column is None
    expected = ["float64" if place % 7 == 3 else "int64" for place in range(700)]
    assert {tuple(kinds(frame)) for frame in frames} == {("int64", *expected)}
    whole = pd.concat(frames)
    assert whole["n"].tolist() == list(range(1_500))
    assert whole["c699"].tolist() == [699] * 1_499 + [2**30]


@pytest.mark.parametrize("kind", ["JSON", "JSONB"])
@pytest.mark.parametrize("partition_column", [None, "n"])
def test_json_is_what_it_holds(postgresql, mini_batches, kind, partition_column):
    """R111: a column of JSON is one of objects, whatever its first rows hold: numbers, text, or nothing."""
    first = [(n, str(n), f'"{n}"', None, str(n)) for n in range(1_500)]
    late = [(n, '{"a": 1}', '{"a": 1}', '["b"]', str(n)) for n in range(1_500, 2_000)]
    columns = f"number {kind}, word {kind}, late {kind}, always {kind}"
    postgresql.execute(f"CREATE TABLE t (n INTEGER, {columns})")
    postgresql.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?)", first + late)
    dataset = TabularDataset.from_sql_query(
        postgresql.url,
        "SELECT * FROM t ORDER BY n",
        partition_column=partition_column,
        column_types={"always": "int64"},
    )

    frames = mini_batches(dataset, "20KB")

    assert len(frames) > 1 or partition_column is None
    assert {tuple(kinds(frame)) for frame in frames} == {("int64", *["object"] * 3, "int64")}
    whole = pd.concat(frames)
    assert whole["number"].tolist() == [*range(1_500), *[{"a": 1}] * 500]
    assert whole["word"].tolist() == [*map(str, range(1_500)), *[{"a": 1}] * 500]
    assert whole["late"].dropna().tolist() == [["b"]] * 500
    assert whole["always"].tolist() == list(range(2_000))


TYPED = {
    "whole": ("BIGINT", 5, "int64"),
    "gaps": ("BIGINT", None, "float64"),
    "long": ("BIGINT", LONG, "int64"),
    "real": ("DOUBLE PRECISION", 0.5, "float64"),
    "exact": ("NUMERIC(10, 2)", Decimal("1.25"), "float64"),
    "truth": ("BOOLEAN", True, "bool"),
    "maybe": ("BOOLEAN", None, "object"),
    "words": ("TEXT", "a\nb", "str"),
    "none": ("TEXT", None, "str"),
    "day": ("DATE", datetime.date(2024, 2, 29), "datetime64[ns]"),
    "old": ("DATE", datetime.date(1066, 10, 14), "datetime64[us]"),
    "moment": (
        "TIMESTAMPTZ",
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        "datetime64[ns, UTC]",
    ),
    "span": ("INTERVAL", datetime.timedelta(hours=30), "timedelta64[us]"),
    "raw": ("BYTEA", b"\x00\xff", "object"),
    "tree": ("JSONB", '{"a": [1, null]}', "object"),
    "list": ("INTEGER[]", [1, 2], "object"),
    "uuid": ("UUID", "b7e5c2de-17b4-4a70-8d4e-0ab4f3f0f4a1", "str"),
}
"""Column: its type in PostgreSQL, its value in all rows but some, and its dtype."""


@pytest.fixture
def typed(postgresql):
    """A table `t` with a column of every type, where what shapes the dtype is in the very last row."""
    columns = ", ".join(f"{name} {kind}" for name, (kind, _, _) in TYPED.items())
    postgresql.execute(f"CREATE TABLE t (n INTEGER, {columns})")
    early = {"gaps": 5, "maybe": True, "long": 1, "old": datetime.date(2024, 1, 1)}
    values = [value for _, value, _ in TYPED.values()]
    first = [early.get(name, value) for name, (_, value, _) in TYPED.items()]
    marks = ", ".join("?" * (len(TYPED) + 1))
    rows = [(n, *first) for n in range(2_999)] + [(2_999, *values)]
    postgresql.execute(f"INSERT INTO t VALUES ({marks})", rows)
    return postgresql


@pytest.mark.parametrize("partition_column", [None, "n"])
def test_types_are_those_of_all_rows(typed, mini_batches, partition_column):
    """R111: one dtype in all mini-batches; what only the last row shows (a gap, a long number, an old
    date) counts for the first as well."""
    dataset = TabularDataset.from_sql_query(
        typed.url, "SELECT * FROM t ORDER BY n", partition_column=partition_column
    )

    frames = mini_batches(dataset, "200KB")

    assert len(frames) > 1 or partition_column is None
    expected = ["int64", *(dtype for _, _, dtype in TYPED.values())]
    assert {tuple(kinds(frame)) for frame in frames} == {tuple(expected)}
    whole = pd.concat(frames, ignore_index=True)
    assert whole["n"].tolist() == list(range(3_000))
    first, last = whole.iloc[0], whole.iloc[-1]
    assert (first["gaps"], first["maybe"], last["long"]) == (5, True, LONG)
    assert pd.isna(last["gaps"])
    assert pd.isna(last["maybe"])
    assert last["old"] == pd.Timestamp(1066, 10, 14).as_unit("us")
    assert (last["raw"], last["tree"], last["list"]) == (b"\x00\xff", {"a": [1, None]}, [1, 2])
    assert (last["words"], last["exact"], last["uuid"]) == ("a\nb", 1.25, TYPED["uuid"][1])
    assert last["moment"] == pd.Timestamp("2024-01-01", tz="UTC")
    assert last["span"] == pd.Timedelta(hours=30)


@pytest.mark.parametrize("partition_column", [None, "n"])
def test_values_of_several_types_in_a_column_of_sqlite(sqlite, mini_batches, partition_column):
    """R111: where a late row has text, or a number that a float would round, all of the column is text."""
    sqlite.execute("CREATE TABLE t (n, mixed, long, half, empty)")
    rows = [(n, n, LONG, n, None) for n in range(2_000)]
    rows += [(2_000, "x", None, 0.5, None), (2_001, 2.5, LONG, 1, None)]
    sqlite.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
    dataset = TabularDataset.from_sql_query(
        sqlite.url, "SELECT * FROM t", partition_column=partition_column
    )

    whole = pd.concat(mini_batches(dataset, "20KB"), ignore_index=True)

    assert kinds(whole) == ["int64", "str", "str", "float64", "str"]
    assert whole["mixed"].tolist() == [*map(str, range(2_000)), "x", "2.5"]
    assert whole["long"].dropna().unique().tolist() == [str(LONG)]
    assert whole["half"].tolist() == [float(n) for n in range(2_000)] + [0.5, 1.0]
    assert whole["empty"].isna().all()


def test_column_types_are_the_users(sqlite, mini_batches):
    """R111: column_types sets types that no value shows, such as dates of SQLite, which are text."""
    sqlite.execute("CREATE TABLE t (day TEXT, code INTEGER, truth INTEGER)")
    sqlite.execute("INSERT INTO t VALUES ('2024-02-29', 7, 1), (NULL, 8, 0)")
    types = {"day": "datetime64[ns]", "code": "string", "truth": bool}
    dataset = TabularDataset.from_sql_query(sqlite.url, "SELECT * FROM t", column_types=types)

    (frame,) = mini_batches(dataset)

    assert kinds(frame) == ["datetime64[ns]", "str", "bool"]
    assert frame["day"][0] == pd.Timestamp("2024-02-29")
    assert (frame["code"].tolist(), frame["truth"].tolist()) == (["7", "8"], [True, False])


def test_a_value_that_does_not_fit_is_named(sqlite, mini_batches):
    """R111: query, row and column, and what to set."""
    filled(sqlite, [*range(700), "seven"], "ANY")
    query = "SELECT * FROM t ORDER BY n"
    dataset = TabularDataset.from_sql_query(sqlite.url, query, column_types={"x": "int64"})

    with pytest.raises(LoadError) as raised:
        mini_batches(dataset)

    assert f"{sqlite.url}: {query}, row 701: column 'x' is int64, and 'seven'" in str(raised.value)
    assert "column_types={'x': 'string'}" in str(raised.value)


def test_a_gap_that_came_after_planning_is_named(sqlite, mini_batches, monkeypatch):
    """R111: types that are settled hold; a row that does not fit them any more fails its mini-batch."""
    from prefect_parallelrun.node import sql_rows

    filled(sqlite, range(10))
    fetch = sql_rows.fetch

    def late(*arguments):
        sqlite.execute("UPDATE t SET x = NULL WHERE n = 4")
        fetch(*arguments)

    monkeypatch.setattr(sql_rows, "fetch", late)
    dataset = TabularDataset.from_sql_query(sqlite.url, "SELECT * FROM t", partition_column="n")
    with pytest.raises(LoadError, match=r"row 5: column 'x' is int64, and no value does not fit"):
        mini_batches(dataset)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT n, ':n' AS a, 'a:b' AS b, '12:30' AS c, '50%' AS d FROM t WHERE x < 5 -- the last: ?",
        "SELECT n, '1'::int AS a, '::' AS b, (ARRAY[1, 2, 3])[2:3]::text AS c FROM t",
        "  /* all */ WITH u AS (SELECT n, ' :x ' AS s FROM t)\nSELECT * FROM u WHERE n < 5;  ",
        "(SELECT n, '\\:n' AS s FROM t) UNION ALL SELECT n, '%s %(x)s' FROM t",
        "SELECT n, 'a;--' AS \";\", E'\\';--' AS e, $q$';--$q$ AS q FROM t; -- that's all; /*",
        "SELECT n FROM t /* ; */ ;; /* ' */\n -- ;\n ; ",
    ],
)
@pytest.mark.parametrize("partition_column", [None, "n"])
def test_a_query_is_sent_as_it_is(postgresql, mini_batches, query, partition_column):
    """Colons, percent signs, semicolons and comments in a query mean what they mean to the database."""
    filled(postgresql, range(10))
    dataset = TabularDataset.from_sql_query(
        postgresql.url, query, partition_column=partition_column
    )

    frames = mini_batches(dataset)

    found = [row for frame in frames for row in frame.itertuples(index=False, name=None)]
    assert sorted(found) == sorted(postgresql.rows(query))


def test_take_is_the_first_rows(database, mini_batches):
    """take(n) reads n rows, in one mini-batch."""
    filled(database, range(100))
    dataset = TabularDataset.from_sql_query(
        database.url, "SELECT * FROM t ORDER BY n", partition_column="n"
    ).take(7)

    (frame,) = mini_batches(dataset, "1KB")

    assert frame["n"].tolist() == list(range(7))
    assert dataset.to_pandas_dataframe()["n"].tolist() == list(range(7))


def test_nothing_is_written_to_the_database(database):
    """A query only reads, whatever it calls."""
    filled(database, range(3))
    query = "WITH gone AS (DELETE FROM t RETURNING n) SELECT * FROM gone"
    why = "syntax error"
    if database.url.startswith("postgresql"):
        body = "DELETE FROM t RETURNING n"
        database.execute(f"CREATE FUNCTION spoil() RETURNS INTEGER LANGUAGE sql AS '{body}'")
        query, why = "SELECT spoil() AS n", "read-only transaction"
    dataset = TabularDataset.from_sql_query(database.url, query)
    with pytest.raises(DatasetError, match=why):
        dataset.to_pandas_dataframe()
    assert database.rows("SELECT count(*) FROM t") == [(3,)]


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("people", "SELECT * FROM people"),
        ("DROP TABLE people", "one SELECT"),
        ("", "one SELECT"),
        (7, "one SELECT"),
    ],
)
def test_what_is_no_query_is_refused(query, hint):
    """R25: before anything is asked of the database."""
    with pytest.raises(ConfigError, match=f"query=.*{re.escape(hint)}"):
        TabularDataset.from_sql_query("sqlite:////tmp/there-is-none.db", query)


@pytest.mark.parametrize(
    ("connection", "why"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
        ("nonsense://u:s3cretword@h/d", "SQLAlchemy knows no nonsense"),
        ("postgresql+asyncpg://u:s3cretword@h/d", "asyncio"),
        ("://s3cretword", "SQLAlchemy URL"),
        ("s3cretword", "Prefect block"),
        (7, "SQLAlchemy URL"),
    ],
)
def test_a_connection_that_cannot_work_is_refused(connection, why):
    """R25: at once, and no part of it is shown, since a password may be in it."""
    with pytest.raises(ConfigError, match=why) as raised:
        TabularDataset.from_sql_query(connection, "SELECT 1")
    assert "s3cretword" not in str(raised.value)


def test_relative_paths_of_sqlite_are_those_of_now(tmp_path, monkeypatch, sqlite):
    """The working directory may be another one later."""
    monkeypatch.chdir(tmp_path)
    dataset = TabularDataset.from_sql_query("sqlite:///data.db", "SELECT 1 AS one")
    monkeypatch.chdir("/")
    assert dataset.to_pandas_dataframe()["one"].tolist() == [1]


def test_an_engine_is_its_url(postgresql):
    """R78: its password is used, and not shown."""
    from sqlalchemy import create_engine

    engine = create_engine(postgresql.url)
    dataset = TabularDataset.from_sql_query(engine, "SELECT 1 AS one")
    assert dataset.to_pandas_dataframe()["one"].tolist() == [1]
    shown = f"{dataset!r} {dataset.storage!r} {list(dataset.fingerprint_parts([]))}"
    assert postgresql.shown in shown
    assert "cret" not in shown
    engine.dispose()


def test_numbers_that_floats_hold_exactly(sqlite, mini_batches):
    """R111: in a column of floats a whole number of any size is one, if nothing of it is lost."""
    filled(sqlite, [0.5, 2**60, 3], "ANY")
    types = {"x": "float64"}
    dataset = TabularDataset.from_sql_query(sqlite.url, "SELECT * FROM t", column_types=types)
    (frame,) = mini_batches(dataset)
    assert frame["x"].tolist() == [0.5, float(2**60), 3.0]

    sqlite.execute("INSERT INTO t VALUES (3, ?)", [(LONG,)])
    with pytest.raises(LoadError, match=f"row 4: column 'x' is float64, and {LONG} does not fit"):
        mini_batches(dataset)


def test_names_of_columns_are_those_of_the_query(database, mini_batches):
    """R25: also words of SQL, and names with what SQL, drivers or SQLAlchemy take for their own."""
    filled(database, [*range(99), None])
    names = ["select", "Order Id: %(x)s", "a.b"]
    query = 'SELECT x AS "select", x AS "Order Id: %(x)s", n AS "a.b" FROM t'
    for name in names:
        dataset = TabularDataset.from_sql_query(database.url, query, partition_column=name)
        frames = mini_batches(dataset, "1KB")
        assert all(frame.columns.tolist() == names for frame in frames)
        assert sorted(n for frame in frames for n in frame["a.b"]) == list(range(100))
        assert len(frames) > 1


@pytest.mark.parametrize("components", [False, True])
def test_the_block_of_prefect_sqlalchemy_gives_its_url(components):
    """R78: a SqlAlchemyConnector holds a URL, or what makes one up."""
    from sqlalchemy import make_url

    from prefect_parallelrun.foreign_blocks import storage_options_of_foreign

    url = "postgresql+psycopg://u:p%40w@h:5/d"

    class SqlAlchemyConnector:
        """As that of prefect-sqlalchemy 0.6."""

        connection_info = SimpleNamespace(create_url=lambda: make_url(url)) if components else url

    assert storage_options_of_foreign(SqlAlchemyConnector()) == {"url": url}


def planned(dataset, tmp_path):
    from prefect_parallelrun.planning.plan import make_plan

    return make_plan([dataset], [dataset.list_files()], mini_batch_size="1MB", scratch=tmp_path)


@pytest.mark.parametrize(
    ("query", "options", "why"),
    [
        ("SELECT * FROM unknown", {}, "unknown"),
        ("SELECT n FROM t WHERE", {}, "syntax|incomplete"),
        ("SELECT n, x AS n FROM t", {}, "two columns are called 'n'"),
        ("SELECT n + 1, n + 1 FROM t", {}, "two columns are called .* with AS"),
        ("SELECT n FROM t; SELECT x FROM t", {}, 'syntax error at or near ";"|near ";": syntax'),
        ("SELECT n FROM t", {"partition_column": "y"}, r"partition_column='y'.*\['n'\]"),
        ("SELECT n FROM t", {"column_types": {"y": "string"}}, r"column_types names \['y'\]"),
        (
            "SELECT n, 'a' AS s FROM t",
            {"partition_column": "s"},
            "'s' cannot be used: its values are string",
        ),
    ],
)
def test_what_a_database_refuses_is_said_before_any_worker_starts(
    database, tmp_path, query, options, why
):
    """R25, R206: the query and the database's own words."""
    filled(database, range(3))
    dataset = TabularDataset.from_sql_query(database.url, query, **options)
    with pytest.raises(DatasetError, match=why) as raised:
        planned(dataset, tmp_path)
    assert f"{database.shown}: {query}" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_wrong_password_and_a_dead_server(postgresql, tmp_path):
    """R78, R206: both are said at once, and the password is not."""
    wrong = postgresql.url.replace("s3cret", "wr0ng")
    with pytest.raises(DatasetError, match="password authentication failed") as raised:
        planned(TabularDataset.from_sql_query(wrong, "SELECT 1 AS n"), tmp_path)
    assert "wr0ng" not in str(raised.value)
    assert not raised.value.passing

    dead = postgresql.url.replace(str(postgresql.port), "1")
    with pytest.raises(DatasetError, match="refused") as raised:
        planned(TabularDataset.from_sql_query(dead, "SELECT 1 AS n"), tmp_path)
    assert "s3cret" not in str(raised.value)
    assert raised.value.passing


def test_parameters_of_a_url_are_shown_unless_they_may_be_secret(postgresql, tmp_path):
    """R78, R206: who connects is shown, the password is not, and nothing is written as a URL's escapes."""
    bare = postgresql.shown.replace(f"{USER}:***@", "")
    url = f"{bare}?user=nobody&password=s3cretword&connect_timeout=5"
    shown = f"{bare}?connect_timeout=5&password=***&user=nobody"
    with pytest.raises(DatasetError) as raised:
        planned(TabularDataset.from_sql_query(url, "SELECT 1 AS n"), tmp_path)
    text = str(raised.value)
    assert text.startswith(f"{shown}: SELECT 1 AS n: ")
    assert 'password authentication failed for user "nobody"' in text
    assert "s3cretword" not in text


@pytest.mark.parametrize("value", ["infinity", "0044-03-15 BC"])
@pytest.mark.parametrize("kind", ["DATE", "TIMESTAMP", "TIMESTAMPTZ"])
def test_dates_that_python_has_not(postgresql, mini_batches, kind, value):
    """R111, R206: what to do about them is said, and it helps."""
    filled(postgresql, [value], kind)
    dataset = TabularDataset.from_sql_query(postgresql.url, "SELECT * FROM t")
    with pytest.raises(DatasetError, match=r"too (large|small) .*CAST\(… AS TEXT\)") as raised:
        mini_batches(dataset)
    assert not raised.value.passing

    dataset = TabularDataset.from_sql_query(postgresql.url, "SELECT CAST(x AS TEXT) AS x FROM t")
    (frame,) = mini_batches(dataset)
    assert frame["x"][0].endswith(value[-2:])


def test_text_of_sqlite_that_is_not_utf8(sqlite, mini_batches):
    """R206: it never passes, whatever words are in it, and what to do is said."""
    sqlite.execute("CREATE TABLE t (x TEXT)")
    sqlite.execute("INSERT INTO t VALUES (CAST(x'62757379206c6f636b6564ff' AS TEXT))")
    with pytest.raises(DatasetError, match=r"busy locked.*CAST\(… AS BLOB\)") as raised:
        mini_batches(TabularDataset.from_sql_query(sqlite.url, "SELECT x FROM t"))
    assert not raised.value.passing

    query = "SELECT CAST(x AS BLOB) AS x FROM t"
    (frame,) = mini_batches(TabularDataset.from_sql_query(sqlite.url, query))
    assert frame["x"].tolist() == [b"busy locked\xff"]


def test_a_database_of_sqlite_that_is_locked_may_pass(sqlite, mini_batches):
    """R205: another try may come after who locks it."""
    filled(sqlite, [1])
    with contextlib.closing(sqlite3.connect(sqlite.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        dataset = TabularDataset.from_sql_query(f"{sqlite.url}?timeout=0.1", "SELECT x FROM t")
        with pytest.raises(DatasetError, match="locked") as raised:
            mini_batches(dataset)
    assert raised.value.passing


def test_a_database_of_sqlite_that_is_not_there_is_not_made(tmp_path):
    """SQLite would make an empty one."""
    dataset = TabularDataset.from_sql_query(f"sqlite:///{tmp_path}/gone.db", "SELECT 1 AS n")
    with pytest.raises(DatasetError, match=r"there is no SQLite database .*gone\.db"):
        planned(dataset, tmp_path)
    assert not (tmp_path / "gone.db").exists()


def test_a_lost_connection_may_pass(postgresql, tmp_path):
    """R205: of a connection that the server ends, another try may come to something."""
    from prefect_parallelrun.datasets import sql_tables
    from prefect_parallelrun.datasets.sql_connection import DatabaseError

    query = "SELECT pg_terminate_backend(pg_backend_pid())::text AS n"
    work = {"path": "here", "sql": {}}
    reader = {"columns": None, "column_types": {}}
    with pytest.raises(DatabaseError) as raised:
        sql_tables.write_rows(postgresql.url, query, reader, work, tmp_path / "rows")
    assert raised.value.passing


def test_a_run_that_is_gone_on_with_has_the_ranges_that_it_had(sqlite, tmp_path):
    """R201: rows that came since change neither ranges nor types: mini-batches are what they were."""
    filled(sqlite, range(1_000))
    dataset = TabularDataset.from_sql_query(sqlite.url, "SELECT * FROM t", partition_column="x")

    def works(query):
        from prefect_parallelrun.planning.plan import make_plan

        plan = make_plan([query], [[]], mini_batch_size="2KB", scratch=tmp_path)
        return [one.work for one in plan]

    before = works(dataset)
    sqlite.execute("INSERT INTO t VALUES (1000, 1000000)")
    assert works(dataset) == before
    other = TabularDataset.from_sql_query(sqlite.url, "SELECT x FROM t", partition_column="x")
    assert works(other) != before
