"""Databases that really answer: SQLite's files, and a PostgreSQL server of the tests' own on loopback.

A test takes `database`, and runs with both; or `sqlite`, or `postgresql`. Each is an empty database with
`.url` (SQLAlchemy's, password included), `.execute(statement, rows)` and `.rows(query)`, by the driver
itself and not by SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest

from prefect_parallelrun.planning.plan import make_plan
from prefect_parallelrun_runtime.load import load
from tests.storage.servers import lacking

USER, PASSWORD = "scorer", "s3cret:/@%?&word"
INITDB = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
_numbers = itertools.count()


def pytest_configure(config):
    # psycopg cannot close a cursor whose connection the server has ended, and complains of that itself,
    # whenever the cursor is collected.
    config.addinivalue_line("filterwarnings", r"ignore:<psycopg\.ServerCursor:ResourceWarning")


class Sqlite:
    """An SQLite database in a file."""

    def __init__(self, path):
        self.path = path
        self.url = f"sqlite:///{path}"
        self.shown = self.url
        self.execute("CREATE TABLE unused (x INTEGER)")

    def execute(self, statement, rows=None):
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            if rows is None:
                connection.execute(statement)
            else:
                connection.executemany(statement, rows)
            connection.commit()

    def rows(self, query):
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()


class Postgresql:
    """A database of a PostgreSQL server."""

    def __init__(self, port, name):
        self.port, self.name = port, name
        place = f"127.0.0.1:{port}/{name}"
        self.url = f"postgresql+psycopg://{USER}:{quote(PASSWORD, safe='')}@{place}"
        self.shown = f"postgresql+psycopg://{USER}:***@{place}"

    def connected(self):
        import psycopg

        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=self.name
        )

    def execute(self, statement, rows=None):
        with self.connected() as connection:
            if rows is None:
                connection.execute(statement)
            else:
                connection.cursor().executemany(statement.replace("?", "%s"), rows)

    def rows(self, query):
        with self.connected() as connection:
            return connection.execute(query).fetchall()


def programs():
    """Return the folder of PostgreSQL's programs: the newest of Debian's, or that on PATH; None for none."""
    found = list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return max(found, key=lambda path: int(path.parts[-3])).parent
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


@contextlib.contextmanager
def server(folder):
    """Run a PostgreSQL server, whose data are in a folder; gives its port."""
    bin = programs()
    if bin is None:
        lacking("postgresql", "PostgreSQL is not installed (Debian: apt install postgresql)")
    # It refuses to run as root.
    root = os.getuid() == 0
    who = {"user": "postgres", "group": "postgres"} if root else {}
    if root:
        shutil.chown(folder, "postgres", "postgres")
    words = folder / "password"
    words.write_text(PASSWORD)
    words.chmod(0o644)
    data = folder / "data"
    made = subprocess.run(
        [bin / "initdb", "-D", data, "-U", USER, f"--pwfile={words}", *INITDB],
        capture_output=True,
        cwd=folder,
        **who,
    )
    assert made.returncode == 0, made.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    arguments = [word for option in options for word in ("-c", option)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [bin / "postgres", "-D", data, "-p", str(port), *arguments],
            stdout=log,
            stderr=log,
            cwd=folder,
            **who,
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                Postgresql(port, "postgres").rows("SELECT 1")
                break
            except Exception:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"PostgreSQL does not answer: {(folder / 'log').read_text()}")
                time.sleep(0.05)
        yield port
    finally:
        # Now, whoever is connected.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def postgresql_port():
    """The port of a PostgreSQL server."""
    if find_spec("psycopg") is None:
        lacking("postgresql", "psycopg is not installed (pip install 'psycopg[binary]')")
    # Not below pytest's own folder, which is closed to other users.
    with tempfile.TemporaryDirectory(prefix="parallelrun-postgresql-", dir="/tmp") as folder:
        with server(Path(folder)) as port:
            yield port


@pytest.fixture
def postgresql(postgresql_port):
    """An empty database of a PostgreSQL server."""
    import psycopg

    name = f"test{next(_numbers)}"
    main = Postgresql(postgresql_port, "postgres")
    with contextlib.closing(main.connected()) as connection:
        connection.autocommit = True
        connection.execute(
            psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name))
        )
    return Postgresql(postgresql_port, name)


@pytest.fixture
def sqlite(tmp_path):
    """An empty SQLite database."""
    return Sqlite(tmp_path / "data.db")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    """An empty database, of either kind."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def mini_batches(tmp_path):
    """Return a function that cuts a query, and fetches and loads each mini-batch as a node would."""
    from prefect_parallelrun.datasets.hidden import Hidden
    from prefect_parallelrun.node import sql_rows
    from prefect_parallelrun.node.sources import Query

    def call(dataset, size="1MB"):
        folder = tmp_path / f"mini-batches-{next(_numbers)}"
        folder.mkdir()
        plan = make_plan([dataset], [dataset.list_files()], mini_batch_size=size, scratch=folder)
        query = Query(database=Hidden({"url": dataset.sql.url()}), query=dataset.sql.query)
        (reader,) = plan.readers
        found = []
        for one in plan:
            target = folder / f"{one.index}.parquet"
            sql_rows.fetch(query, reader, one.work, target)
            found.append(load({**one.work, "local": str(target)}, reader).data)
        return found

    return call
