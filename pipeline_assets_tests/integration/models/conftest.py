"""The whole cohort in a warehouse table, and its snapshots: 70,000 real orders over 18 months."""

from collections.abc import Callable, Iterator
from datetime import date
from functools import cache

import psycopg
import pyarrow as pa
import pytest

from pipeline_assets.models import snapshots
from pipeline_assets.quality.ddl import ensure_table
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources import embedded_postgres, sample_shop
from pipeline_assets_tests import databases

LOAD = """
INSERT INTO analytics.fct_transactions (order_id, customer_id, ordered_at, amount, currency, quantity,
    status, updated_at, net_amount, business_day, business_week)
SELECT order_id, customer_id, ordered_at, amount, currency, quantity, status, updated_at, amount,
    ordered_at::date, date_trunc('week', ordered_at)::date
FROM shop.orders WHERE amount > 0
"""
LAST_DAY = date(2027, 7, 6)
"""The day of the cohort's last orders."""

Snapshot = Callable[[date], pa.Table]


@pytest.fixture(scope="session")
def cohort(server: embedded_postgres.Server) -> Iterator[str]:
    """The URL of a database with every valid order of the sample shop; tests only read it."""
    url = embedded_postgres.ensure_database(server, "cohort")
    sample_shop.ensure(url)
    with psycopg.connect(url, options="-c TimeZone=UTC") as connection:
        ensure_table(connection, load_contract("transactions"))
        connection.execute(LOAD)
        connection.execute("ANALYZE analytics.fct_transactions")
    yield url
    databases.drop(server, "cohort")


@pytest.fixture(scope="session")
def snapshot(cohort: str) -> Snapshot:
    """The cohort's snapshot at a cutoff."""

    @cache
    def at(cutoff: date) -> pa.Table:
        return snapshots.read(cohort, cutoff, as_of=LAST_DAY, timezone="UTC")

    return at
