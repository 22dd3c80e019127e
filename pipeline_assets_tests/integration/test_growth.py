"""The cost of a load follows what changed, not what the warehouse holds."""

import psycopg
import pytest

from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.reconcile import compare
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.integration.test_exactness import KEYS, WINDOWS, Pipeline, loaded, truth

ORDERS = 200_000


def pages_read(warehouse: psycopg.Connection, table: str) -> tuple[int, int]:
    """Full scans of a table since the statistics began, and the table's pages touched so far."""
    row = warehouse.execute(
        """SELECT seq_scan, heap_blks_read + heap_blks_hit
           FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid)
           WHERE relid = to_regclass(%s)""",
        [table],
    ).fetchone()
    assert row is not None
    return row


@pytest.mark.slow
def test_a_small_day_scans_no_large_table(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.connection.execute(
        """INSERT INTO shop.transactions
           SELECT 'order-' || n, n / 20, timestamptz '2026-01-07' + n %% 86400 * interval '1 s', 10,
               'USD', 1, 'completed', timestamptz '2026-01-07' + n %% 86400 * interval '1 s'
           FROM generate_series(1, %s) AS n""",
        [ORDERS],
    )
    pipeline = Pipeline(settings)
    pipeline.run(KEYS[0])
    pipeline.at_warehouse.close()  # which hands in its statistics
    pipeline = Pipeline(settings)
    # As autovacuum does once a table has grown.
    warehouse.execute("VACUUM ANALYZE")
    for number in range(10):
        shop.put(f"order-{number * 1000 + 1}", 1, number, customer_id=number * 50, amount=5)
        shop.put(f"new-{number}", 1, number, customer_id=number * 50)
    tables = ("analytics.fct_transactions", "analytics.dim_customers")
    before = {table: pages_read(warehouse, table) for table in tables}

    pipeline.run(KEYS[1])
    day = {KEYS[1]: WINDOWS[KEYS[1]]}
    found = compare(pipeline.at_source, pipeline.at_warehouse, pipeline.table.contract, day)
    assert found[KEYS[1]].in_step
    pipeline.at_warehouse.close()

    for table in tables:
        scans, pages = pages_read(warehouse, table)
        assert scans == before[table][0], table
        # 20 orders of 10 customers with 20 orders each, read by three steps; the table has 2,500.
        assert pages - before[table][1] < 1500, table
    assert loaded(warehouse) == truth(shop)
