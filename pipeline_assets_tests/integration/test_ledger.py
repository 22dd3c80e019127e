"""What the ledger answers, held against the same said in Python."""

from datetime import date, timedelta

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.tables import load_tables

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
