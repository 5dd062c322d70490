"""Queries through the real path: nodes fetch the rows, and nobody but them has the password."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.errors import DatasetError, EntryScriptError
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import sql_cuts
from prefect_parallelrun.report.verify import verify
from tests.dask.conftest import lines
from tests.sql.conftest import PASSWORD

DESCRIBE = """
    def run(mini_batch):
        kinds = " ".join(map(str, mini_batch.dtypes))
        return [f"{row.n}|{row.x!r}|{row.s}|{kinds}" for row in mini_batch.itertuples()]
"""


@pytest.fixture
def filled(database):
    """A database with a table `t` of 2,000 rows."""
    database.execute("CREATE TABLE t (n INTEGER, x DOUBLE PRECISION, s TEXT)")
    rows = [(n if n % 100 else None, n / 3, f"row {n}") for n in range(2_000)]
    database.execute("INSERT INTO t VALUES (?, ?, ?)", rows)
    return database


def expected(database):
    return sorted(
        f"{float('nan') if n is None else float(n)}|{x!r}|{s}|float64 float64 str"
        for n, x, s in database.rows("SELECT n, x, s FROM t")
    )


def texts(folder):
    """Return all that is in the files below a folder."""
    return b"".join(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())


def forms(secret):
    return [secret.encode(), quote(secret, safe="").encode(), quote(secret).encode()]


@pytest.mark.parametrize("partition_column", [None, "n"])
def test_the_rows_are_those_of_the_database(run, filled, partition_column):
    """R7, R25, R111: each row once, whatever the database and the cut, with the dtypes of the whole."""
    dataset = TabularDataset.from_sql_query(
        filled.url, "SELECT * FROM t", partition_column=partition_column
    )

    result = run(DESCRIBE, [dataset], mini_batch_size="10KB")

    assert sorted(lines(result)) == expected(filled)
    assert result.items.total == result.items.succeeded == 2_000
    log = Path(result.logs_directory, "70_driver_log.txt").read_text()
    note = f"{filled.shown}: SELECT * FROM t is one mini-batch"
    assert (result.mini_batches.total > 5, note in log) == (
        partition_column is not None,
        partition_column is None,
    )


def test_the_password_is_nowhere(run, postgresql):
    """R78: not in the run folder with its logs, journal and definition, whether the run fails or not."""
    postgresql.execute("CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
    query = "SELECT 100 / (n - 50) AS x, n FROM t"
    dataset = TabularDataset.from_sql_query(postgresql.url, query, partition_column="n")
    script = """
        def run(mini_batch):
            raise ValueError("no")
    """
    with pytest.raises(DatasetError, match="division by zero") as raised:
        run(script, [dataset])
    assert "s3cret" not in str(raised.value)

    good = TabularDataset.from_sql_query(postgresql.url, "SELECT n FROM t", partition_column="n")
    result = run("def run(mini_batch): return list(mini_batch.n)", [good], mini_batch_size="100")
    found = texts(result.run_directory)
    assert postgresql.shown.encode() in found
    assert not [form for form in forms(PASSWORD) if form in found]
    assert verify(RunPaths(Path(result.run_directory))).findings == ()


def test_a_range_that_the_database_refuses_fails_its_own_mini_batch(run, postgresql, monkeypatch):
    """R25, R206: the attempt's error has the database's own words and says which range it was."""
    postgresql.execute("CREATE TABLE t AS SELECT n, 1 AS d FROM generate_series(1, 1000) AS n")
    survey = sql_cuts.survey

    def spoilt(*arguments):
        found = survey(*arguments)
        postgresql.execute("UPDATE t SET d = 0 WHERE n = 1000")
        return found

    monkeypatch.setattr(sql_cuts, "survey", spoilt)
    query = "SELECT n, n / d AS x FROM t"
    dataset = TabularDataset.from_sql_query(postgresql.url, query, partition_column="n")

    result = run(
        "def run(mini_batch): return list(mini_batch.x)",
        [dataset],
        mini_batch_size="2KB",
        run_max_try=1,
        error_threshold=-1,
    )

    assert result.mini_batches.failed == 1
    text = Path(result.logs_directory, "user", "error.txt").read_text()
    assert "division by zero" in text
    assert f"{postgresql.shown}: {query} [n >= " in text


def test_a_connection_that_is_lost_is_made_again(run, postgresql):
    """R205: the server ends the connection while the rows come; the mini-batch has all of them, once."""
    postgresql.execute("CREATE TABLE t AS SELECT generate_series(1, 600) AS n")
    killing = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'FETCH%'"
    )
    killed = []

    def kill():
        while not killed and not ended.wait(0.01):
            killed.extend(postgresql.rows(killing))

    ended = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    query = "SELECT n FROM t WHERE pg_sleep(0.002) IS NOT NULL ORDER BY n"
    dataset = TabularDataset.from_sql_query(postgresql.url, query)
    try:
        result = run("def run(mini_batch): return list(mini_batch.n)", [dataset], run_max_try=1)
    finally:
        ended.set()
        killer.join()

    assert killed == [(True,)]
    assert lines(result) == [str(n) for n in range(1, 601)]
    assert result.attempts == 1


def test_a_query_that_takes_too_long_ends_on_the_server_too(run, postgresql):
    """R205: nobody waits for its rows any more, and the server is free of it."""
    query = "SELECT n FROM generate_series(1, 3) AS n WHERE pg_sleep(n * 60) IS NOT NULL"
    dataset = TabularDataset.from_sql_query(postgresql.url, query)

    with pytest.raises(EntryScriptError, match=r"no answer in 2 seconds|statement timeout"):
        run(
            "def run(mini_batch): return list(mini_batch.n)",
            [dataset],
            run_max_try=1,
            arguments=["--task_overhead_timeout=2"],
        )

    asleep = (
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state = 'active'"
    )
    deadline = time.monotonic() + 20
    while postgresql.rows(asleep):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("own", "limit_s", "kept"),
    [("0", 90.0, "90s"), ("5s", 90.0, "5s"), ("0", 1e-5, "1ms"), ("0", 1e9, "2000000s")],
)
def test_a_shorter_limit_of_the_server_stays(postgresql, own, limit_s, kept):
    """R205: who gave the server a limit for queries meant it; 0 is none."""
    from prefect_parallelrun.datasets.sql_connection import connected

    postgresql.execute(f"ALTER DATABASE {postgresql.name} SET statement_timeout = '{own}'")
    postgresql.execute(f"CREATE TABLE expected AS SELECT '{kept}'::interval AS kept")
    asked = "SELECT current_setting('statement_timeout')::interval = kept FROM expected"
    with connected(postgresql.url, "here", limit_s) as connection:
        assert connection.exec_driver_sql(asked).scalar_one()


def test_debugging_and_planning_ask_the_database(tmp_path, sqlite, prefect_server):
    """R1: a dry run tells the ranges, and `debug` runs the first of them in this process."""
    from prefect_parallelrun import ParallelRunConfig, ParallelRunStep

    sqlite.execute("CREATE TABLE t (n INTEGER)")
    sqlite.execute("INSERT INTO t VALUES (?)", [(n,) for n in range(1_000)])
    (tmp_path / "score.py").write_text("def run(mini_batch): return list(mini_batch.n)")
    dataset = TabularDataset.from_sql_query(sqlite.url, "SELECT n FROM t", partition_column="n")
    config = ParallelRunConfig(
        "score.py", source_directory=str(tmp_path), mini_batch_size="2KB", error_threshold=-1
    )
    step = ParallelRunStep("sum-up", config, [dataset], output=str(tmp_path / "out"))

    assert len(step.plan()) == 4
    assert step.debug(mini_batches=2) == [list(range(250)), list(range(250, 500))]


def test_a_registered_query_names_its_block(prefect_server, sqlite):
    """R78: a query is registered with its block, or a URL without a secret; never with a password."""
    from prefect_parallelrun.blocks import SqlConnection
    from prefect_parallelrun.errors import ConfigError

    SqlConnection(url=sqlite.url).save("some-database", overwrite=True)
    for connection in (
        "sql-connection/some-database",
        SqlConnection.load("some-database"),
        sqlite.url,
    ):
        dataset = TabularDataset.from_sql_query(connection, "SELECT 1 AS n")
        version = dataset.register("ones", create_new_version=True).version
        got = TabularDataset.get_by_name("ones", version)
        assert got.to_pandas_dataframe()["n"].tolist() == [1]

    secret = TabularDataset.from_sql_query(f"postgresql://u:{PASSWORD[:6]}@h/d", "SELECT 1 AS n")
    with pytest.raises(ConfigError, match="secret"):
        secret.register("others")


def test_completed_runs_are_not_reused_and_others_are_gone_on_with(run, sqlite, tmp_path):
    """R201: a run that failed goes on, with the ranges that it had."""
    sqlite.execute("CREATE TABLE t (n INTEGER)")
    sqlite.execute("INSERT INTO t VALUES (?)", [(n,) for n in range(1_000)])
    dataset = TabularDataset.from_sql_query(sqlite.url, "SELECT n FROM t", partition_column="n")
    assert not dataset.shows_changes([])
    script = """
        import os

        def run(mini_batch):
            if (mini_batch.n == 500).any() and not os.path.exists(os.environ["MENDED"]):
                raise ValueError("not yet")
            return list(mini_batch.n)
    """
    settings = {"mini_batch_size": "1KB", "run_max_try": 1}
    settings["environment_variables"] = {"MENDED": str(tmp_path / "mended")}
    folder = tmp_path / "run"
    with pytest.raises(Exception, match="not yet"):
        run(script, [dataset], run_folder=folder, error_threshold=0, **settings)

    (tmp_path / "mended").touch()
    sqlite.execute("INSERT INTO t VALUES (5000)")
    result = run(script, [dataset], run_folder=folder, **settings)

    # The last range has no upper end.
    assert set(map(int, lines(result))) >= set(range(1_000))
    assert result.items.failed == 0


def test_a_step_in_a_flow_reads_with_a_block(prefect_server, postgresql, tmp_path):
    """R25, R78: a Prefect block names the database; a second run reads it again."""
    from prefect import flow

    from prefect_parallelrun import ParallelRunConfig, ParallelRunStep
    from prefect_parallelrun.blocks import SqlConnection

    postgresql.execute("CREATE TABLE t AS SELECT n, n * 0.5 AS x FROM generate_series(0, 99) AS n")
    SqlConnection(url=postgresql.url).save("sales-database", overwrite=True)
    (tmp_path / "score.py").write_text("def run(mini_batch): return [int(mini_batch.n.sum())]")
    dataset = TabularDataset.from_sql_query("sql-connection/sales-database", "SELECT * FROM t")
    assert "s3cret" not in repr(dataset)
    config = ParallelRunConfig(
        "score.py",
        source_directory=str(tmp_path),
        node_count=1,
        process_count_per_node=1,
        error_threshold=-1,
    )

    @flow
    def score():
        step = ParallelRunStep("sum-up", config, [dataset], output=str(tmp_path / "out"))
        return step()

    first = score()
    assert Path(first.append_row_file).read_text().split() == [str(sum(range(100)))]
    assert not [form for form in forms(PASSWORD) if form in texts(first.run_directory)]

    postgresql.execute("INSERT INTO t VALUES (100, 1)")
    second = score()
    assert second.run_id != first.run_id
    assert Path(second.append_row_file).read_text().split() == [str(sum(range(101)))]
    whole = dataset.to_pandas_dataframe()
    pd.testing.assert_series_equal(whole["n"], pd.Series(range(101), name="n"))
