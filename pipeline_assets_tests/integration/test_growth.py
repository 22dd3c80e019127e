"""The cost of a load follows what changed, not what the warehouse holds."""

import psycopg
import pytest

from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.reconcile import compare
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.integration.test_exactness import KEYS, WINDOWS, Pipeline, loaded, truth

ORDERS = 200_000


def full_scans(warehouse: psycopg.Connection, table: str) -> int:
    """Full scans of a table since the statistics began."""
    row = warehouse.execute(
        "SELECT seq_scan FROM pg_stat_user_tables WHERE relid = to_regclass(%s)", [table]
    ).fetchone()
    assert row is not None
    return int(row[0])


def hand_in_statistics(pipeline: Pipeline) -> None:
    """A server process keeps its counts for a second, unless it is told to hand them in."""
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
    for number in range(10):
        shop.put(f"order-{number * 1000 + 1}", 1, number, customer_id=number * 50, amount=5)
        shop.put(f"new-{number}", 1, number, customer_id=number * 50)
    tables = ("analytics.fct_transactions", "analytics.dim_customers")
    before = {table: full_scans(warehouse, table) for table in tables}

    pipeline.run(KEYS[1])
    day = {KEYS[1]: WINDOWS[KEYS[1]]}
    found = compare(pipeline.at_source, pipeline.at_warehouse, pipeline.table.contract, day)
    assert found[KEYS[1]].in_step
    hand_in_statistics(pipeline)

    assert {table: full_scans(warehouse, table) for table in tables} == before
    assert loaded(warehouse) == truth(shop)
