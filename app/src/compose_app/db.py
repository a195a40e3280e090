"""PostgreSQL: one autocommit connection a worker, opened when first used, reopened by itself."""

from __future__ import annotations

import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, LiteralString, Protocol, TypeVar

import psycopg
import structlog
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, TupleRow, dict_row

from compose_app import metrics
from compose_app.dependencies import FailFast, Unavailable

CONNECT_TIMEOUT = 2
"""Seconds to connect and sign in; libpq knows no less."""
ANSWER_TIMEOUT = 2.0
"""Seconds to wait for an answer: a server that is frozen or cut off sends none."""
STATEMENT_TIMEOUT = 1800
"""Milliseconds after which the server cancels a statement; the connection is then kept."""
_PLANS = "-c enable_seqscan=off -c jit=off"
"""A request reads few rows by an index, whatever the statistics say of a table that was small when
the plan was made, which a connection keeps. JIT goes by the cost, which that setting inflates."""

_log = structlog.get_logger("compose_app")
_T = TypeVar("_T")


class _Connection(psycopg.Connection[DictRow]):
    """A connection on which no wait is without end."""

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        return super().wait(gen, interval, ANSWER_TIMEOUT if timeout is None else timeout)


def conninfo(url: str, password: str, **options: str) -> str:
    """A libpq connection string.

    Args:
        url: postgresql:// URL without password.
        password: added to it.
        options: further libpq parameters.
    """
    return make_conninfo(
        url,
        password=password,
        connect_timeout=CONNECT_TIMEOUT,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=2,
        tcp_user_timeout=3000,
        **options,
    )


class Query(Protocol):
    """Runs a statement and returns its rows."""

    def __call__(
        self, statement: LiteralString, parameters: Mapping[str, Any] | None = None
    ) -> list[DictRow]: ...


class Database:
    """The worker's connection to PostgreSQL. Made before fork, connected after it."""

    def __init__(
        self, url: str, password: str, name: str = "compose-app", settings: str = ""
    ) -> None:
        """Take where it is, what it is called there, and settings as for PGOPTIONS."""
        self._conninfo = conninfo(
            url,
            password,
            application_name=name,
            options=f"-c statement_timeout={STATEMENT_TIMEOUT} -c timezone=UTC {_PLANS} "
            f"{settings}".strip(),
        )
        self._connection: _Connection | None = None
        self._fail_fast = FailFast("database")

    def query(
        self, statement: LiteralString, parameters: Mapping[str, Any] | None = None
    ) -> list[DictRow]:
        """Run one statement in a transaction of its own and return its rows.

        A statement that fails for want of an answer may have taken effect.

        Raises:
            compose_app.dependencies.Unavailable: within 2 s, when the server does not answer, or
                has cancelled the statement because it took too long.
            psycopg.Error: the statement itself is at fault, a violated constraint for example.
        """
        with self._in_use() as connection:
            return connection.execute(statement, parameters, prepare=True).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[Query]:
        """Several statements in one transaction: yields what runs each as `query` does.

        Raises:
            as `query`; the transaction is then rolled back, as it is by any other exception.
        """
        with self._in_use() as connection, connection.transaction():

            def query(
                statement: LiteralString, parameters: Mapping[str, Any] | None = None
            ) -> list[DictRow]:
                cursor = connection.execute(statement, parameters, prepare=True)
                return cursor.fetchall() if cursor.description else []

            yield query

    @contextmanager
    def _in_use(self) -> Iterator[_Connection]:
        self._fail_fast.check()
        try:
            yield self._connected()
        except psycopg.errors.QueryCanceled as error:
            # A slow statement, not a lost server: it has answered, and others may be quick.
            _log.warning("statement cancelled", error=str(error).strip())
            self._fail_fast.succeeded()
            raise Unavailable(self._fail_fast.name) from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if self._connection:
                self.close()
            raise self._fail_fast.failed(error) from error
        self._fail_fast.succeeded()

    def _connected(self) -> _Connection:
        connection = self._connection
        if connection is not None:
            if not connection.closed and not _hung_up(connection):
                return connection
            self.close()
        connection = _Connection.connect(self._conninfo, autocommit=True, row_factory=dict_row)
        self._connection = connection
        metrics.DB_CONNECTIONS.set(1)
        return connection

    def close(self) -> None:
        """Close the connection; the next query opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            metrics.DB_CONNECTIONS.set(0)


class ProcessConnection:
    """The connection of a process that turns. Whoever uses it tries again."""

    STATEMENT_TIMEOUT = 30_000
    """Milliseconds after which the server cancels a statement."""

    def __init__(
        self, url: str, password: str, name: str, settings: str = "", first: LiteralString = ""
    ) -> None:
        """Take what `Database` takes, and a statement that each connection begins with."""
        self._conninfo = conninfo(
            url,
            password,
            application_name=name,
            options=f"-c statement_timeout={self.STATEMENT_TIMEOUT} -c timezone=UTC "
            f"{settings}".strip(),
        )
        self._first = first
        self._connection: psycopg.Connection[TupleRow] | None = None

    def open(self) -> psycopg.Connection[TupleRow]:
        """The connection, in autocommit mode; another one after `close`.

        Raises:
            psycopg.Error: the server does not answer.
        """
        if self._connection is None or self._connection.closed:
            connection = psycopg.connect(self._conninfo, autocommit=True)
            if self._first:
                connection.execute(self._first)
            self._connection = connection
        return self._connection

    def close(self) -> None:
        """Close it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _hung_up(connection: _Connection) -> bool:
    """Whether the server has something to say on an idle connection; costs one poll(2).

    That is its farewell, or rarely a changed setting. Known before a statement is sent, the
    statement can go to a new connection without the risk of running twice.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
