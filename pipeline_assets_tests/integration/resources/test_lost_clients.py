"""What the server has of clients that are lost, by a power cut, a dead network or a kill, or are done."""

import gc
import subprocess
import sys
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import sqlalchemy
from dagster._core.instance import InstanceRef

from pipeline_assets.resources import dagster_instance, embedded_postgres
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import ledger
from pipeline_assets_tests.load_steps import lenient
from pipeline_assets_tests.reliability.kills import until

EXPECTED = {
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    # Without it a session that has answered waits a quarter of an hour for somebody to hear it.
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
    for _ in range(2):  # its second connection is made by the same parameters
        with engine.connect() as connection:
            show = {
                name: connection.execute(sqlalchemy.text(f"SHOW {name}")).scalar()
                for name in EXPECTED
            }
            assert connection.execute(sqlalchemy.text("SHOW work_mem")).scalar() == "5MB"
        assert show == EXPECTED


STEPS = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'steps'"


@pytest.fixture
def reference(
    server: embedded_postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> InstanceRef:
    """What a process opens an instance by, on a database of its own."""
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
    """A code server opens and closes one for each tick; the collector comes when it likes."""
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
from pipeline_assets_tests.load_steps import lenient
from pipeline_assets_tests.reliability.kills import until
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    with ledger.partition_lock(connection, lenient().contract, "2026-01-07"):
        connection.execute("SELECT pg_sleep(3600)")
"""


@pytest.mark.slow
def test_a_partition_is_free_soon_after_the_death_of_who_worked_on_it(
    settings: Settings, warehouse: psycopg.Connection
) -> None:
    """Its statement would go on for an hour."""
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
        assert warehouse.execute(at_work).fetchone() is None
