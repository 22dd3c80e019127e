"""What the ledger answers, compared with the same computed in Python."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from threading import Barrier

import dagster as dg
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pipeline_assets.models import records
from pipeline_assets.models.assets import weeks
from pipeline_assets.operations.checks import ServiceLevel
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.tables import load_tables
from pipeline_assets_tests.contracts import contract

FIRST = date(2026, 1, 7)
CONTRACT = load_tables()[0].contract
BATCH = """
INSERT INTO pipeline.batches (table_name, partition_key, window_start, window_end, verdict, rows_extracted,
    rows_valid, rows_quarantined, violations, broken_rules, content_hash, contract_version, code_version,
    validated_by, loaded_hash)
VALUES (%s, %s, now(), now(), %s, 1, 1, 0, '{}', '{}', 'hash', '1', '1', 'run', %s)
"""
STATES = {"loaded": ("passed", "hash"), "held": ("failed", None), "waits": ("passed", None)}


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    days=st.dictionaries(st.integers(-3, 12), st.sampled_from(sorted(STATES)), max_size=12),
    length=st.integers(1, 10),
)
def test_a_day_without_an_outcome_was_never_loaded(
    warehouse: psycopg.Connection, days: dict[int, str], length: int
) -> None:
    ledger.ensure_schema(warehouse, CONTRACT)
    warehouse.execute("TRUNCATE pipeline.batches")
    other = (FIRST - timedelta(days=30)).isoformat()
    warehouse.execute(BATCH, ["another_table", other, "passed", "hash"])
    for number, state in days.items():
        key = (FIRST + timedelta(days=number)).isoformat()
        warehouse.execute(BATCH, [CONTRACT.name, key, *STATES[state]])
    last = FIRST + timedelta(days=length - 1)

    found = ledger.never_loaded(warehouse, CONTRACT, FIRST, last)

    assert found == {
        (FIRST + timedelta(days=number)).isoformat()
        for number in range(length)
        if days and number >= min(days) and days.get(number) not in ("loaded", "held")
    }


def test_of_a_weekly_table_weeks_are_late_not_days(
    warehouse: psycopg.Connection,
) -> None:
    weekly = load_contract("purchase_predictions")
    ledger.ensure_schema(warehouse, weekly)
    for week in ("2026-06-01", "2026-06-15"):
        warehouse.execute(BATCH, [weekly.name, week, *STATES["loaded"]])
    level = ServiceLevel(weekly, dg.AssetKey(weekly.name), weeks(Settings()))
    assert level.late(warehouse, datetime(2026, 6, 25, tzinfo=UTC)) == ["2026-06-08"]


@pytest.mark.parametrize("key", [["id"], ["id", "part"]])
def test_the_identity_of_a_row_is_what_the_database_makes_of_its_key(
    server: embedded_postgres.Server, key: list[str]
) -> None:
    """Arrow's join dropped the texts of rows whose key is all null."""
    rows = [(1, "a"), (None, None), (2, None), (None, "b"), (3, "c|d")]
    properties = [
        {"name": name, "physicalType": kind, "primaryKey": True, "primaryKeyPosition": place}
        for place, (name, kind) in enumerate([("id", "bigint"), ("part", "text")], start=1)
        if name in key
    ]
    things = contract(properties)
    ids, parts = zip(*rows, strict=True)
    table = pa.table({"id": pa.array(ids, pa.int64()), "part": pa.array(parts, pa.string())})
    with psycopg.connect(server.url()) as connection:
        query = sql.SQL(
            "SELECT {} FROM unnest(%s::bigint[], %s::text[]) WITH ORDINALITY AS t (id, part, place)"
            " ORDER BY place"
        ).format(ledger.identity_sql(things))
        told = connection.execute(query, [list(ids), list(parts)]).fetchall()
    assert ledger.source_identity(table, things) == [identity for (identity,) in told]


def test_a_table_may_have_the_name_of_another_with_a_word_behind(
    warehouse: psycopg.Connection,
) -> None:
    """The quarantine of `things_version` was thought to exist: an index of `things` had its name."""
    for name in ("things", "things_version", "things_partition"):
        ledger.ensure_schema(warehouse, contract([], name=name, physicalName=f"public.{name}"))
        assert warehouse.execute(f"SELECT count(*) FROM quarantine.{name}").fetchone() == (0,)


def test_a_new_warehouse_may_be_opened_by_any_number_at_once(
    server: embedded_postgres.Server,
) -> None:
    """As the sensors of a deployment do when it starts."""
    sessions = 6

    def open_it(number: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            together.wait()
            if number % 2:
                records.ensure_schema(connection)
            ledger.ensure_schema(connection, CONTRACT)

    for attempt in range(5):
        url = embedded_postgres.ensure_database(server, f"opened_at_once_{attempt}")
        together = Barrier(sessions)
        with ThreadPoolExecutor(sessions) as pool:
            list(pool.map(open_it, range(sessions)))
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute(
                sql.SQL("DROP DATABASE {}").format(sql.Identifier(f"opened_at_once_{attempt}"))
            )
