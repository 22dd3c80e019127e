"""A real Dagster instance, as dagster.yaml describes it, beside the test's databases."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings

ROOT = Path(__file__).parents[3]
_numbers = count()


@pytest.fixture
def instance(
    server: embedded_postgres.Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An empty instance on PostgreSQL; its compute logs lie in the test's data folder."""
    name = f"dagster_{next(_numbers)}"
    monkeypatch.setenv("DAGSTER_DATABASE_URL", embedded_postgres.ensure_database(server, name))
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(settings.pipeline_data_dir))
    with dg.DagsterInstance.from_config(str(ROOT)) as found:
        yield found
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
