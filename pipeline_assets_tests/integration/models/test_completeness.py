"""What the ledger says of the days that a week of the model rests on."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import psycopg

from pipeline_assets.models.completeness import incomplete_days
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.quality.validation import Verdict
from pipeline_assets.warehouse import ledger

CUTOFF = date(2026, 6, 1)
TRANSACTIONS = load_contract("transactions")


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def record(warehouse: psycopg.Connection, day: date, *, broken: bool = False) -> None:
    """Record a verdict on a day's batch of one row, which is held if `broken` and passes otherwise."""
    violations = Counter(amount_positive=int(broken))
    verdict = Verdict(TRANSACTIONS, rows=1, rejected=int(broken), violations=violations)
    ledger.record_verdict(
        warehouse,
        day.isoformat(),
        (midnight(day), midnight(day + timedelta(days=1))),
        verdict,
        watermark=None,
        content_hash=f"content of {day}",
        run_id="a run",
    )


def load(warehouse: psycopg.Connection, day: date) -> None:
    ledger.record_load(
        warehouse,
        TRANSACTIONS,
        day.isoformat(),
        rows_written=1,
        rows_deleted=0,
        loaded_hash=f"content of {day}",
        run_id="a run",
    )


def test_each_day_that_is_not_as_it_should_be_is_named_with_why(
    warehouse: psycopg.Connection,
) -> None:
    days = [CUTOFF + timedelta(days=number) for number in range(4)]
    ledger.ensure_schema(warehouse, TRANSACTIONS)
    record(warehouse, days[0])
    load(warehouse, days[0])
    record(warehouse, days[1], broken=True)
    record(warehouse, days[2])
    assert incomplete_days(warehouse, TRANSACTIONS, days) == {
        "2026-06-02": "held by amount_positive",
        "2026-06-03": "not loaded",
        "2026-06-04": "missing",
    }


def test_a_day_that_was_loaded_and_is_held_since_is_named(warehouse: psycopg.Connection) -> None:
    ledger.ensure_schema(warehouse, TRANSACTIONS)
    record(warehouse, CUTOFF)
    load(warehouse, CUTOFF)
    record(warehouse, CUTOFF, broken=True)
    assert incomplete_days(warehouse, TRANSACTIONS, [CUTOFF]) == {
        "2026-06-01": "held by amount_positive"
    }


def test_a_warehouse_without_a_ledger_has_no_days(warehouse: psycopg.Connection) -> None:
    assert incomplete_days(warehouse, TRANSACTIONS, [CUTOFF]) == {"2026-06-01": "missing"}
