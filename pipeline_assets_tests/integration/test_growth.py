"""The cost of a load follows what changed, not what the warehouse holds."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.reconcile import compare, source_digests
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.integration.test_exactness import loaded, truth
from pipeline_assets_tests.load_steps import KEYS, WINDOWS, Pipeline

ORDERS = 200_000


def full_scans(warehouse: psycopg.Connection, table: str) -> int:
    """Full scans of a table since the statistics began."""
    row = warehouse.execute(
        "SELECT seq_scan FROM pg_stat_user_tables WHERE relid = to_regclass(%s)", [table]
    ).fetchone()
    assert row is not None
    return int(row[0])


def pages_asked_for(warehouse: psycopg.Connection, table: str) -> int:
    """Pages of a table, without its indexes, read since the statistics began, whether cached or not."""
    row = warehouse.execute(
        """SELECT heap_blks_hit + heap_blks_read FROM pg_statio_user_tables
           WHERE relid = to_regclass(%s)""",
        [table],
    ).fetchone()
    assert row is not None
    return int(row[0])


def rows_in_groups_of(warehouse: psycopg.Connection, orders: list[str]) -> int:
    """Rows that share the business day or the customer of one of the orders."""
    row = warehouse.execute(
        """WITH changed AS (SELECT * FROM analytics.fct_transactions WHERE order_id = ANY(%s))
           SELECT (SELECT count(*) FROM analytics.fct_transactions
                   WHERE business_day IN (SELECT business_day FROM changed))
                + (SELECT count(*) FROM analytics.fct_transactions
                   WHERE customer_id IN (SELECT customer_id FROM changed))""",
        [orders],
    ).fetchone()
    assert row is not None
    return int(row[0])


def hand_in_statistics(pipeline: Pipeline) -> None:
    """Make the server process report its counts, which it would otherwise keep for a second."""
    pipeline.at_warehouse.execute("SELECT pg_stat_force_next_flush()")


@pytest.mark.slow
def test_a_small_day_scans_no_large_table(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.connection.execute(
        """INSERT INTO shop.transactions
           SELECT 'order-' || n, n / 20, timestamptz '2023-01-01' + n %% 1000 * interval '1 day', 10,
               'USD', 1, 'completed', timestamptz '2026-01-07' + n %% 86400 * interval '1 s'
           FROM generate_series(1, %s) AS n""",
        [ORDERS],
    )
    pipeline = Pipeline(settings)
    pipeline.run(KEYS[0])
    hand_in_statistics(pipeline)
    # As autovacuum does once a table has grown.
    warehouse.execute("VACUUM ANALYZE")
    orders = [f"order-{number}" for number in range(1, ORDERS, ORDERS // 10)]
    for number, order in enumerate(orders):
        shop.put(order, 1, number, customer_id=number * 1000, amount=5)
        shop.put(f"new-{number}", 1, number, customer_id=number * 1000)
    tables = ("analytics.fct_transactions", "analytics.dim_customers")

    rows_of_groups = rows_in_groups_of(warehouse, orders)
    hand_in_statistics(pipeline)
    before = {table: full_scans(warehouse, table) for table in tables}
    pages_before = pages_asked_for(warehouse, tables[0])

    pipeline.run(KEYS[1])
    day = {KEYS[1]: WINDOWS[KEYS[1]]}
    found = compare(pipeline.at_source, pipeline.at_warehouse, pipeline.table.contract, day)
    assert found[KEYS[1]].in_step
    hand_in_statistics(pipeline)

    assert {table: full_scans(warehouse, table) for table in tables} == before
    # A mart's group is computed from all of its rows, each on a page of its own at worst; the rest is a
    # few pages per changed row.
    pages = pages_asked_for(warehouse, tables[0]) - pages_before
    assert pages < rows_of_groups + 10 * 2 * len(orders)
    assert loaded(warehouse) == truth(shop)


@pytest.mark.slow
def test_comparing_a_few_days_scans_no_large_table(shop: Shop) -> None:
    # Wide rows, those of a day scattered over the whole table, as upserts leave them.
    shop.connection.execute(
        """INSERT INTO shop.transactions
           SELECT 'order-' || n, n, timestamptz '2023-01-01', 10, 'USD', 1, repeat('x', 300),
               timestamptz '2023-01-01' + n %% 1000 * interval '1 day'
           FROM generate_series(1, %s) AS n""",
        [ORDERS],
    )
    shop.connection.execute("VACUUM ANALYZE shop.transactions")
    days = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    windows = {f"{day:%Y-%m-%d}": (day, day + timedelta(days=1)) for day in days}
    before = full_scans(shop.connection, "shop.transactions")

    found = source_digests(shop.connection, load_contract("transactions"), windows)

    assert {digest.rows for digest in found.values()} == {ORDERS // 1000}
    shop.connection.execute("SELECT pg_stat_force_next_flush()")
    assert full_scans(shop.connection, "shop.transactions") == before
