"""What the server keeps of clients that are done, or lost by a power cut, a dead network or a kill.

And how clients give up on a server that is lost.
"""

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import psutil
import psycopg
import pytest
import sqlalchemy
from dagster._core.instance import InstanceRef

from pipeline_assets.failures import is_transient
from pipeline_assets.resources import dagster_instance, embedded_postgres, postgres
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.extract import source_reader
from pipeline_assets_tests.load_steps import lenient
from pipeline_assets_tests.waiting import until

EXPECTED = {
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    # Without it a session waits a quarter of an hour for its answer to be acknowledged.
    "tcp_user_timeout": "30000",
}


def over_tcp(server: embedded_postgres.Server) -> Settings:
    url = server.url("postgres")
    assert "@127.0.0.1:" in url, "over a socket in a file there is nothing to lose"
    return Settings.model_validate({"warehouse_database_url": url, "dagster_database_url": url})


def test_sessions_of_lost_hosts_end_within_half_a_minute(server: embedded_postgres.Server) -> None:
    with Database("warehouse", over_tcp(server)).connect() as connection:
        found = {name: connection.execute(f"SHOW {name}").fetchone() for name in EXPECTED}
    assert found == {name: (value,) for name, value in EXPECTED.items()}


def test_so_do_those_of_dagster_and_celery(server: embedded_postgres.Server) -> None:
    settings = over_tcp(server)
    url = server.url("postgres").replace("postgresql", "postgresql+psycopg2", 1)
    engine = sqlalchemy.create_engine(
        f"{url}?options=-c%20work_mem%3D5MB", poolclass=sqlalchemy.NullPool
    )
    Database("dagster", settings).follow(engine)
    for _ in range(2):  # the second connection is made from the same parameters
        with engine.connect() as connection:
            show = {
                name: connection.execute(sqlalchemy.text(f"SHOW {name}")).scalar()
                for name in EXPECTED
            }
            assert connection.execute(sqlalchemy.text("SHOW work_mem")).scalar() == "5MB"
        assert show == EXPECTED


@contextmanager
def by_psycopg(url: str) -> Iterator[None]:
    with Database("warehouse", Settings.model_validate({"warehouse_database_url": url})).connect():
        yield


@contextmanager
def by_sqlalchemy(url: str) -> Iterator[None]:
    settings = Settings.model_validate({"dagster_database_url": url})
    engine = sqlalchemy.create_engine(
        url.replace("postgresql", "postgresql+psycopg2", 1), poolclass=sqlalchemy.NullPool
    )
    Database("dagster", settings).follow(engine)
    with engine.connect():
        yield


@contextmanager
def by_adbc(url: str) -> Iterator[None]:
    with source_reader(url):
        yield


CLIENTS = [by_psycopg, by_sqlalchemy, by_adbc]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gives_up_a_server_that_falls_silent(
    server: embedded_postgres.Server, client: Callable[[str], Any]
) -> None:
    """The kernel is told when to probe the connection; by default it would after two hours."""
    url = server.url("postgres")

    def connected() -> set[int]:
        found = psutil.Process().net_connections("tcp")
        return {each.fd for each in found if each.raddr and each.raddr[1] == urlsplit(url).port}

    before = connected()
    with client(url):
        ours = connected() - before
        assert ours
        for descriptor in ours:
            with socket.socket(fileno=os.dup(descriptor)) as end:
                found = [
                    end.getsockopt(level, option)
                    for level, option in (
                        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                    )
                ]
            assert found == [1, 15, 5, 3, 30_000]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a host that drops new connections: its backlog is full, and nothing accepts any."""
    with ExitStack() as stack:
        listener = stack.enter_context(closing(socket.socket()))
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield port


@pytest.mark.slow
def test_a_client_gives_up_a_server_that_never_answers(silent: int) -> None:
    """Before the kernel does, whose message differs, and so before a tick or a scrape is given up."""

    def connect(client: Callable[[str], Any]) -> Exception:
        with (
            pytest.raises(Exception, match="timeout expired") as caught,
            client(f"postgresql://u:p@127.0.0.1:{silent}/x"),
        ):
            pass
        return caught.value

    with ThreadPoolExecutor(len(CLIENTS)) as threads:
        errors = list(threads.map(connect, CLIENTS))
    assert all(map(is_transient, errors))


@pytest.mark.slow
@pytest.mark.parametrize("client", [by_psycopg, by_adbc])  # Dagster's storage has one server
def test_of_two_servers_the_one_that_answers_is_found(
    server: embedded_postgres.Server, silent: int, client: Callable[[str], Any]
) -> None:
    there = f"@127.0.0.1:{server.port}/"
    url = server.url("postgres")
    assert there in url
    with client(url.replace(there, f"@127.0.0.1:{silent},127.0.0.1:{server.port}/")):
        pass


def test_what_a_url_says_itself_stays() -> None:
    stated = postgres.finding_lost_servers("postgresql://u:p%27%20%5C@h:1,i:2/x?connect_timeout=9")
    found = psycopg.conninfo.conninfo_to_dict(stated)
    assert {name: str(value) for name, value in found.items()} == {
        **{"user": "u", "password": "p' \\", "host": "h,i", "port": "1,2", "dbname": "x"},
        **{"keepalives_idle": "15", "keepalives_interval": "5", "keepalives_count": "3"},
        **{"tcp_user_timeout": "30000", "connect_timeout": "9"},
    }


STEPS = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'steps'"


@pytest.fixture
def reference(
    server: embedded_postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> InstanceRef:
    """The reference by which a process opens an instance, on a database of the test's own."""
    url = embedded_postgres.ensure_database(server, "steps")
    root = Path(__file__).parents[3]
    (tmp_path / "dagster.yaml").write_text((root / "dagster.yaml").read_text())
    for name, value in {"DAGSTER_HOME": tmp_path, "DAGSTER_DATABASE_URL": url}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(tmp_path / "data"))
    with dg.DagsterInstance.get() as instance:
        return instance.get_ref()


def test_a_worker_holds_no_connection_of_the_steps_it_has_done(
    server: embedded_postgres.Server, reference: InstanceRef
) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for _ in range(5):  # what dagster-celery does for a step
            instance = dg.DagsterInstance.from_ref(reference)
            assert instance.get_runs_count() == 0
            assert not instance.all_asset_keys()
            assert connection.execute(STEPS).fetchone() != (0,)
            dagster_instance.close_connections()
            until(lambda: connection.execute(STEPS).fetchone() == (0,), "closed")
            assert instance.get_runs_count() == 0, "it can be used again"


def test_an_instance_that_is_closed_holds_no_connection(
    server: embedded_postgres.Server, reference: InstanceRef
) -> None:
    """A code server opens and closes one per tick; the garbage collector may run much later."""
    gc.collect()  # what other tests have left
    gc.disable()
    try:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for _ in range(3):
                with dg.DagsterInstance.from_ref(reference) as instance:
                    assert instance.get_runs_count() == 0
                    assert not instance.all_asset_keys()
                    assert connection.execute(STEPS).fetchone() != (0,)
                until(lambda: connection.execute(STEPS).fetchone() == (0,), "closed")
    finally:
        gc.enable()


HOLD = """
import sys, psycopg
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.extract import source_reader
from pipeline_assets_tests.load_steps import lenient
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    with ledger.partition_lock(connection, lenient().contract, "2026-01-07"):
        connection.execute("SELECT pg_sleep(3600)")
"""


@pytest.mark.slow
def test_a_partition_is_free_soon_after_the_death_of_who_worked_on_it(
    settings: Settings, warehouse: psycopg.Connection
) -> None:
    """The statement of the killed process would run for an hour."""
    assert settings.warehouse_database_url
    url = settings.warehouse_database_url.get_secret_value()
    at_work = (
        "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%%'"
    )
    with subprocess.Popen([sys.executable, "-c", HOLD, url]) as holder:
        until(lambda: warehouse.execute(at_work).fetchone(), "at work")
        holder.kill()
    assert warehouse.execute(at_work).fetchone(), "the server has not looked yet"
    warehouse.execute("SET lock_timeout = '120s'")
    with ledger.partition_lock(warehouse, lenient().contract, "2026-01-07"):
        pass  # otherwise it would fail after waiting for two minutes
    until(lambda: warehouse.execute(at_work).fetchone() is None, "over")
