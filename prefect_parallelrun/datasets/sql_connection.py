"""Databases by SQLAlchemy: connections that change nothing there, and errors that show no secret."""
# Paths are text here, as in URLs.
# ruff: noqa: PTH100, PTH111, PTH113

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

from prefect_parallelrun.datasets import credentials
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection
    from sqlalchemy.exc import SQLAlchemyError

PROTOCOL = "sql"
"""Of the `Storage` of a query; its option `url` is SQLAlchemy's, or its credentials block gives that. A
URL with nothing to hide is no option."""

_SHOWN_PARAMETERS = frozenset(
    {
        "application_name",
        "charset",
        "connect_timeout",
        "host",
        "mode",
        "options",
        "port",
        "sslmode",
        "uri",
        "user",
    }
)
"""Parameters of a URL that may be seen; others can hold passwords."""
_NEITHER = (
    "give a SQLAlchemy URL, such as postgresql://user:password@host/database or "
    "sqlite:////folder/file.db, an engine, or a Prefect block that was saved, with block.save('name'), "
    "or its name, '<block type>/<block name>'"
)
_CONNECT_S = 30
"""So long PostgreSQL may take to answer, unless the URL says otherwise."""

_LIMIT = (
    "SELECT set_config('statement_timeout', '{ms}', true) FROM pg_settings "
    "WHERE name = 'statement_timeout' AND setting::bigint NOT BETWEEN 1 AND {ms}"
)
"""For this transaction alone; a shorter limit, which the user or the server has set, stays."""

_LONGEST_S = 2_000_000
"""PostgreSQL cannot count many more in milliseconds."""

_PASSING_STATES = re.compile(r"08|40|53|57P0[123]|55P03")
"""SQL states that another try may mend: connections, deadlocks, too much in use, a restart, locks."""
_PASSING_MYSQL = frozenset({1040, 1205, 1213, 2002, 2003, 2006, 2013, 2055})
_PASSING_WORDS = re.compile(
    r"too many|remaining connection slots|starting up|shutting down|in recovery"
)
"""Why PostgreSQL refuses a connection (libpq hands on no SQL state) that it may take later."""


class DatabaseError(DatasetError):
    """A database does not answer, or refuses a query; it shows no secret."""

    passing: bool = False
    """Whether another try may help: the connection was lost, the server restarts, there was a deadlock."""


def located(connection: object) -> tuple[Storage, str]:
    """Return what opens a database, and the text that stands for it wherever people look.

    Args:
        connection: a SQLAlchemy URL, as text or `sqlalchemy.URL`; an engine, for its URL; or a
            credentials block that was saved, or its name.

    Raises:
        ConfigError: it is something else, or the nodes could not use it; SQLAlchemy or the driver is
            not installed.
    """
    _check_installed()
    from sqlalchemy import URL

    name = isinstance(connection, str) and "://" not in connection
    if name or hasattr(connection, "_block_document_name"):
        try:
            reference = credentials.reference(connection)
        except ConfigError:
            raise _unusable(_NEITHER) from None
        assert reference is not None
        return Storage(PROTOCOL, reference), reference
    given = getattr(connection, "url", connection)  # an engine's
    if not isinstance(given, str | URL):
        raise _unusable(_NEITHER)
    url = _absolute(given)
    _check_driver(url)
    whole, place = url.render_as_string(hide_password=False), shown(url)
    return Storage(PROTOCOL, None, Hidden({} if whole == place else {"url": whole})), place


def url_of(storage: Storage, place: str) -> str:
    """Return the URL of a database, its password included, for who connects to it.

    Args:
        storage: what `located` returned, like `place`.

    Raises:
        ConfigError: its credentials block is not there, or has no URL that the nodes could use; or the
            URL was not kept.
    """
    options = storage.unlocked().options
    given = options.get("url") if options or storage.credentials else place
    if not isinstance(given, str):
        raise _unusable(f"the block {storage.credentials} gives no SQLAlchemy URL")
    return _absolute(given).render_as_string(hide_password=False)


def shown(url: URL) -> str:
    """Return a URL without its password, and without parameters that may hold one."""
    hidden = {key: value if key in _SHOWN_PARAMETERS else "***" for key, value in url.query.items()}
    text = url.set(query=hidden).render_as_string(hide_password=True)
    return text.replace(quote_plus("***"), "***")


@contextmanager
def connected(url: str, place: str, limit_s: float | None = None) -> Iterator[Connection]:
    """Give a connection that reads only, in pieces as they are asked for; it is closed at the end.

    Args:
        place: what errors begin with.
        limit_s: after so long nobody waits for the answer to a statement: where the server can be told,
            it gives it up.

    Raises:
        DatabaseError: the database does not answer, or refuses what is asked of it meanwhile.
    """
    _check_installed()
    from sqlalchemy import create_engine, pool
    from sqlalchemy.exc import SQLAlchemyError

    parsed = _absolute(url)
    _check_driver(parsed)
    backend = parsed.get_backend_name()
    options: dict[str, Any] = {}
    if backend == "sqlite":
        _check_there(parsed, place)
    elif parsed.get_driver_name() in ("psycopg", "psycopg2"):
        options = {"connect_timeout": parsed.query.get("connect_timeout", _CONNECT_S)}
    engine = create_engine(
        parsed, poolclass=pool.NullPool, hide_parameters=True, connect_args=options
    )
    try:
        with engine.connect() as connection:
            streaming = connection.execution_options(stream_results=True)
            if backend == "postgresql":
                streaming = streaming.execution_options(postgresql_readonly=True)
                if limit_s is not None:
                    streaming.exec_driver_sql(
                        _LIMIT.format(ms=max(1, round(min(limit_s, _LONGEST_S) * 1000))),
                        execution_options={"stream_results": False},
                    )
            elif backend == "sqlite":
                streaming.exec_driver_sql("PRAGMA query_only = ON")
            yield streaming
    except SQLAlchemyError as error:
        # Not with its cause: the text of that may quote the URL and the parameters.
        raise _explained(error, parsed, place) from None
    finally:
        engine.dispose()


def _explained(error: SQLAlchemyError, url: URL, place: str) -> DatabaseError:
    cause = getattr(error, "orig", None) or error
    text = str(cause).strip() or type(cause).__name__
    explained = DatabaseError(f"{place}: {_scrubbed(text, url)}{_hint(cause, text)}")
    explained.passing = _is_passing(error, cause, text)
    return explained


def _hint(cause: BaseException, text: str) -> str:
    """Return what to do where the driver cannot make a value of Python of what the database sent."""
    driver = type(cause).__module__.partition(".")[0]
    if driver == "sqlite3" and text.startswith("Could not decode"):
        return "; text in another encoding comes as bytes of CAST(… AS BLOB)"
    if driver == "psycopg" and type(cause).__name__ == "DataError" and _state(cause) is None:
        return "; what Python has no value for comes as text of CAST(… AS TEXT)"
    return ""


def _state(cause: BaseException) -> object:
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def _is_passing(error: SQLAlchemyError, cause: BaseException, text: str) -> bool:
    from sqlalchemy.exc import DBAPIError, OperationalError

    if not isinstance(error, DBAPIError):
        return False
    state = _state(cause)
    if isinstance(state, str):
        return bool(_PASSING_STATES.match(state))
    if type(cause).__module__.startswith("sqlite3"):
        code: int = getattr(cause, "sqlite_errorcode", 0)
        # Above the lowest byte it tells which kind of them it is.
        return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    if cause.args and isinstance(cause.args[0], int):
        return cause.args[0] in _PASSING_MYSQL
    if error.connection_invalidated:
        return True
    # FATAL is the answer of a PostgreSQL that is there: to a wrong password, for one.
    answered = "FATAL" in text and not _PASSING_WORDS.search(text)
    return isinstance(error, OperationalError) and not answered


def _scrubbed(text: str, url: URL) -> str:
    secrets = {url.password} if url.password else set()
    for key, value in url.query.items():
        if key not in _SHOWN_PARAMETERS:
            secrets |= {value} if isinstance(value, str) else set(value)
    forms = {form for one in secrets if one for form in (one, quote(one), quote_plus(one))}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def _absolute(given: str | URL) -> URL:
    """Return a URL that means the same in any folder and process.

    Raises:
        ConfigError: it is none, or its database is in the memory of one process.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        # Never the text itself, which may hold a password.
        raise _unusable(_NEITHER) from None
    if url.get_backend_name() != "sqlite":
        return url
    database = url.database or ""
    if database in ("", ":memory:") or ":memory:" in database or url.query.get("mode") == "memory":
        raise _unusable("an SQLite database in memory is in this process alone: give one in a file")
    scheme = "file:" if database.startswith("file:") else ""
    path = database.removeprefix(scheme)
    if scheme and path.startswith("/"):
        return url
    return url.set(database=scheme + os.path.abspath(os.path.expanduser(path)))


def _check_there(url: URL, place: str) -> None:
    database = url.database or ""
    # SQLite would make an empty one.
    if not database.startswith("file:") and not os.path.isfile(database):
        raise DatabaseError(f"{place}: there is no SQLite database {database} on this machine")


def _check_installed() -> None:
    try:
        import sqlalchemy  # noqa: F401
    except ImportError:
        raise ConfigError("SQL needs SQLAlchemy: pip install 'prefect-parallelrun[sql]'") from None


def _check_driver(url: URL) -> None:
    from sqlalchemy.exc import ArgumentError

    try:
        dialect = url.get_dialect()
        if dialect.is_async:
            raise _unusable(
                f"{url.drivername} is for asyncio: name another driver, such as postgresql+psycopg"
            )
        dialect.import_dbapi()
    except ArgumentError:
        raise _unusable(
            f"SQLAlchemy knows no {url.drivername}: install the package that brings it"
        ) from None
    except ImportError as error:
        driver = getattr(error, "name", None) or url.get_driver_name()
        raise ConfigError(
            f"the driver of {url.drivername} is not installed: pip install {driver}; "
            "'prefect-parallelrun[sql]' brings that of PostgreSQL"
        ) from None


def _unusable(why: str) -> ConfigError:
    # Never the value: it may hold a password.
    return ConfigError(f"connection cannot be used: {why}")
