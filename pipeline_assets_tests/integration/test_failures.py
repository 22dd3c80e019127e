"""Which failures are tried again, judged on errors that real servers and libraries raise."""

import errno
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psycopg
import pyarrow as pa
import pytest
import requests
from pytest_httpserver import HTTPServer

from pipeline_assets.failures import PERMANENT, NotYetError, PermanentError, is_transient
from pipeline_assets.resources import embedded_postgres
from pipeline_assets.resources.http import FetchError, HttpClient, Limits, PermanentFetchError
from pipeline_assets.running import permanent_failures


def raised(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def nobody_listens() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def test_a_server_that_is_away_is_transient_and_a_refused_login_is_not(
    server: embedded_postgres.Server,
) -> None:
    url = server.url()
    away = raised(lambda: psycopg.connect(f"postgresql://u:p@127.0.0.1:{nobody_listens()}/x"))
    password = raised(lambda: psycopg.connect(psycopg.conninfo.make_conninfo(url, password="no")))
    database = raised(lambda: psycopg.connect(psycopg.conninfo.make_conninfo(url, dbname="no")))
    assert [is_transient(error) for error in (away, password, database)] == [True, False, False]


def test_a_replica_before_its_promotion_is_transient(server: embedded_postgres.Server) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = on")
        assert is_transient(raised(lambda: connection.execute("CREATE TABLE written (n int)")))


def test_a_lost_connection_a_deadlock_and_a_conflict_are_transient(
    server: embedded_postgres.Server,
) -> None:
    with psycopg.connect(server.url(), autocommit=True) as one:
        one.execute("CREATE TABLE IF NOT EXISTS pairs (id int PRIMARY KEY, n int)")
        one.execute("INSERT INTO pairs VALUES (1, 0), (2, 0) ON CONFLICT DO NOTHING")

    def crossing(first: int, second: int, meet: threading.Barrier, errors: list[Exception]) -> None:
        with psycopg.connect(server.url()) as connection:
            connection.execute("UPDATE pairs SET n = n + 1 WHERE id = %s", [first])
            meet.wait()
            try:
                connection.execute("UPDATE pairs SET n = n + 1 WHERE id = %s", [second])
            except psycopg.Error as error:
                errors.append(error)
                connection.rollback()

    errors: list[Exception] = []
    meet = threading.Barrier(2)
    threads = [
        threading.Thread(target=crossing, args=(*pair, meet, errors)) for pair in ((1, 2), (2, 1))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (deadlock,) = errors
    assert isinstance(deadlock, psycopg.errors.DeadlockDetected)

    with psycopg.connect(server.url()) as one, psycopg.connect(server.url()) as two:
        for connection in (one, two):
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            connection.execute("SELECT sum(n) FROM pairs")
        one.execute("UPDATE pairs SET n = n + 1 WHERE id = 1")
        one.commit()
        conflict = raised(lambda: two.execute("UPDATE pairs SET n = n + 1 WHERE id = 1"))
        two.rollback()

    with psycopg.connect(server.url(), autocommit=True) as one:
        two = psycopg.connect(server.url(), autocommit=True)
        one.execute("SELECT pg_terminate_backend(%s)", [two.info.backend_pid])
        lost = raised(lambda: two.execute("SELECT 1"))

    assert all(map(is_transient, (deadlock, conflict, lost)))


@pytest.mark.parametrize(
    "statement",
    ["SELECT * FROM nowhere", "SELECT 1/0", "SELEKT", "INSERT INTO pairs VALUES (1, 1), (1, 2)"],
)
def test_what_is_wrong_with_a_statement_stays_wrong(
    server: embedded_postgres.Server, statement: str
) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS pairs (id int PRIMARY KEY, n int)")
        assert not is_transient(raised(lambda: connection.execute(statement)))


@pytest.mark.parametrize(
    ("status", "transient"), [(429, True), (500, True), (503, True), (401, False), (404, False)]
)
def test_an_http_status_tells(httpserver: HTTPServer, status: int, transient: bool) -> None:
    httpserver.expect_request("/").respond_with_data("", status=status)
    answer = requests.get(httpserver.url_for("/"), timeout=5)
    assert is_transient(raised(answer.raise_for_status)) == transient


def test_network_errors_are_transient_by_whatever_library() -> None:
    port = nobody_listens()
    client = HttpClient("tests", Limits(attempts=1))
    errors = [
        raised(lambda: requests.get(f"http://127.0.0.1:{port}", timeout=1)),
        raised(lambda: socket.create_connection(("127.0.0.1", port), timeout=1)),
        raised(lambda: client.get(f"http://127.0.0.1:{port}")),
    ]
    assert all(map(is_transient, errors))


def test_a_full_disk_is_transient_as_postgresqls_is() -> None:
    def fill(path: str) -> None:
        with Path(path).open("wb", buffering=0) as file:
            file.write(b"x")

    full = raised(lambda: fill("/dev/full"))
    by_arrow = raised(lambda: pa.OSFile("/dev/full", "wb").write(b"x"))
    for error in (full, by_arrow):
        assert isinstance(error, OSError)
        assert error.errno == errno.ENOSPC
    quota = OSError(errno.EDQUOT, "only a quota raises it")
    servers = psycopg.errors.DiskFull()
    assert all(map(is_transient, (full, by_arrow, quota, servers)))


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a bug"),
        TypeError("another"),
        FileNotFoundError(2, "no file"),
        PermanentError("bad contract"),
        PermanentFetchError("bad key"),
        MemoryError(),
    ],
)
def test_bugs_and_broken_things_are_permanent(error: Exception) -> None:
    assert not is_transient(error)


def test_the_chain_decides_and_its_permanent_part_wins() -> None:
    def wrapped(cause: Exception) -> Exception:
        def fail() -> None:
            raise RuntimeError("while loading") from cause

        return raised(fail)

    assert is_transient(wrapped(ConnectionResetError()))
    assert is_transient(wrapped(FetchError("was silent")))
    assert not is_transient(wrapped(PermanentFetchError("refused")))

    def worded() -> None:
        try:
            raise ConnectionResetError
        except ConnectionResetError as error:
            raise PermanentError("the key was revoked") from error

    assert not is_transient(raised(worded))


@pytest.mark.parametrize(
    ("error", "attempts", "tagged"),
    [
        (ConnectionResetError("gone"), 3, False),
        (KeyError("a bug"), 1, True),
        (NotYetError("a day is missing"), 1, False),
    ],
)
def test_a_step_is_tried_again_only_if_that_can_help(
    error: Exception, attempts: int, tagged: bool
) -> None:
    """With a policy that has none of RETRY's pauses."""
    tried = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=2))
    def fails() -> None:
        tried.append(1)
        with permanent_failures():
            raise error

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([fails], instance=instance, raise_on_error=False)
        run = instance.get_run_by_id(result.run_id)
    assert not result.success
    assert len(tried) == attempts
    assert run
    assert (run.tags.get(PERMANENT) == "true") == tagged
    assert run.tags.get("dagster/will_retry") != "true", "nor is the run"
