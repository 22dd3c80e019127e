"""Fixtures for tests that need databases: each gets its own pair on one real embedded server.

Nothing starts unless a test asks for it.
"""

import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from psycopg import sql

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets_tests import databases

SOURCE_SCHEMA = """
CREATE SCHEMA shop;
CREATE TABLE shop.transactions (
    order_id text, customer_id bigint, ordered_at timestamptz, amount numeric, currency text,
    quantity integer, status text, updated_at timestamptz
);
CREATE INDEX ON shop.transactions (updated_at);
CREATE INDEX ON shop.transactions (order_id);
"""
# A shell's background job ignores SIGINT, Dagster gives SIGTERM the same handler, and children inherit
# both: a test that ends a child by SIGTERM would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine takes longer than Hypothesis' 200 ms for an example.
hypothesis.settings.register_profile("any machine", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("any machine")

pytest_plugins = ["pipeline_assets_tests.model_world", "pipeline_assets_tests.dagster_instance"]
FIRST_DAY = datetime(2026, 1, 7, tzinfo=UTC)
_numbers = count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded_postgres.Server]:
    """One real PostgreSQL server for the session."""
    folder = tmp_path_factory.mktemp("postgres")
    found = embedded_postgres.connect_or_start(folder)
    databases.without_sync(found)
    yield found
    embedded_postgres.release(folder)
    embedded_postgres.stop(folder)


@pytest.fixture
def settings(server: embedded_postgres.Server, tmp_path: Path) -> Iterator[Settings]:
    """Settings with an empty source table and an empty warehouse of the test's own."""
    names = [f"{role}_{next(_numbers)}" for role in ("source", "warehouse")]
    urls = [embedded_postgres.ensure_database(server, name) for name in names]
    with psycopg.connect(urls[0]) as connection:
        connection.execute(SOURCE_SCHEMA)
    yield Settings(
        pipeline_data_dir=tmp_path,
        source_database_url=urls[0],
        warehouse_database_url=urls[1],
    )
    databases.drop(server, *names)


class Shop:
    """The source table of a test."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)

    def put(self, order_id: str | None, day: int = 0, second: int = 0, **values: Any) -> None:
        """Insert an order that last changed on a day after the first, or replace it."""
        updated_at = FIRST_DAY + timedelta(days=day, seconds=second)
        order = {
            "order_id": order_id,
            "customer_id": 1,
            "ordered_at": updated_at,
            "amount": Decimal("10.00"),
            "currency": "USD",
            "quantity": 1,
            "status": "completed",
            "updated_at": updated_at,
        } | values
        self.remove(order_id)
        self.connection.execute(
            sql.SQL("INSERT INTO shop.transactions ({}) VALUES ({})").format(
                sql.SQL(", ").join(map(sql.Identifier, order)),
                sql.SQL(", ").join(map(sql.Placeholder, order)),
            ),
            order,
        )

    def remove(self, order_id: str | None) -> None:
        """Delete an order without a trace."""
        self.connection.execute("DELETE FROM shop.transactions WHERE order_id = %s", [order_id])


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    """The source table, to be filled."""
    assert settings.source_database_url
    found = Shop(settings.source_database_url.get_secret_value())
    yield found
    found.connection.close()


@pytest.fixture
def warehouse(settings: Settings) -> Iterator[psycopg.Connection]:
    """A connection to the warehouse, to look at it."""
    assert settings.warehouse_database_url
    url = settings.warehouse_database_url.get_secret_value()
    with psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC") as connection:
        yield connection
