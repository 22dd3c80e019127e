"""A table's status: what is loaded, held and quarantined, from the ledger and the databases."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from psycopg import sql

from pipeline_assets.quality.contract import Contract
from pipeline_assets.quality.ddl import exist, relation
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.reconcile import Windows, compare
from pipeline_assets.warehouse.tables import Table


@dataclass(frozen=True)
class TableStatus:
    """One table: its days by outcome, its rows, and the sums of its money columns."""

    relation: str
    closed: int
    loaded: int
    newest: str | None
    behind: int
    """Closed days after the newest that is loaded."""
    extracted: int
    quarantined: int
    violations: dict[str, int]
    """Rule name -> rows that broke it, of the days in the ledger; a row may break several."""
    held: dict[str, list[str]]
    """Partition key -> the rules that hold it back."""
    rows: int
    totals: dict[str, Decimal]


def closed_days(settings: Settings, now: datetime | None = None) -> Windows:
    """Partition key -> window of every day since the first that has ended, oldest first."""
    zone = ZoneInfo(settings.pipeline_timezone)
    today = (now or datetime.now(UTC)).astimezone(zone).date()
    first = settings.warehouse_start_date
    days = [first + timedelta(days=number) for number in range((today - first).days)]
    return {day.isoformat(): (_midnight(day, zone), _midnight(day + DAY, zone)) for day in days}


DAY = timedelta(days=1)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), zone)


def days_to_load(settings: Settings, table: Table, *, everything: bool = False) -> list[str]:
    """The closed days that aren't loaded as the source has them, oldest first; or all closed days."""
    windows = closed_days(settings)
    if everything or not windows:
        return list(windows)
    contract = table.contract
    first, last = (date.fromisoformat(day) for day in (min(windows), max(windows)))
    with (
        Database("source", settings).connect(autocommit=True) as source,
        Database("warehouse", settings).connect(autocommit=True) as warehouse,
    ):
        ledger.ensure_schema(warehouse, contract)
        known = ledger.batches(warehouse, contract)
        half_done = ledger.half_done(warehouse, contract, first, last)
        comparisons = compare(source, warehouse, contract, windows)
    return [
        key
        for key, found in comparisons.items()
        if key not in known
        or known[key].verdict == "failed"  # in step if all its rows are in quarantine
        or key in half_done
        or not found.in_step
    ]


def quarantined_rows(
    settings: Settings, contract: Contract, *, day: str, rule: str, limit: int
) -> tuple[list[tuple[str, list[str], dict[str, Any]]], int]:
    """Quarantined rows (day, broken rules, the source's row), newest first, and how many there are.

    An empty `day` or `rule` means any.
    """
    query = sql.SQL(
        "SELECT partition_key, broken_rules, source_row, count(*) OVER () FROM {}"
        " WHERE %(day)s IN ('', partition_key) AND (%(rule)s = '' OR %(rule)s = ANY(broken_rules))"
        " ORDER BY partition_key DESC LIMIT %(limit)s"
    ).format(relation(ledger.quarantine_relation(contract)))
    with Database("warehouse", settings).connect(autocommit=True) as warehouse:
        ledger.ensure_schema(warehouse, contract)
        rows = warehouse.execute(query, {"day": day, "rule": rule, "limit": limit}).fetchall()
    return [(key, rules, row) for key, rules, row, _ in rows], rows[0][3] if rows else 0


def quarantined_days(settings: Settings, table: Table, *, rule: str) -> list[str]:
    """The closed days that are held or have quarantined rows (by `rule`, unless empty), oldest first."""
    query = sql.SQL(
        "SELECT partition_key FROM {} WHERE %(rule)s = '' OR %(rule)s = ANY(broken_rules)"
        " UNION SELECT partition_key FROM pipeline.batches"
        " WHERE table_name = %(table)s AND verdict = 'failed'"
        " AND (%(rule)s = '' OR %(rule)s = ANY(broken_rules)) ORDER BY partition_key"
    ).format(relation(ledger.quarantine_relation(table.contract)))
    asked = {"rule": rule, "table": table.contract.name}
    with Database("warehouse", settings).connect(autocommit=True) as warehouse:
        ledger.ensure_schema(warehouse, table.contract)
        closed = closed_days(
            settings
        )  # with a later first day, older ones are no partitions any more
        return [key for (key,) in warehouse.execute(query, asked) if key in closed]


def table_status(settings: Settings, table: Table) -> TableStatus:
    """The table's current status."""
    contract = table.contract
    closed = closed_days(settings)
    target = relation(contract.target_relation)
    money = [
        column.name for column in contract.columns if column.physical_type.startswith("numeric")
    ]
    with Database("warehouse", settings).connect(autocommit=True) as warehouse:
        ledger.ensure_schema(warehouse, contract)
        batches = list(ledger.batches(warehouse, contract).values())
        rows, totals = 0, {}
        if exist(warehouse, [contract.target_relation]):
            sums = [sql.SQL(", sum({})").format(sql.Identifier(name)) for name in money]
            query = sql.SQL("SELECT count(*){} FROM {}").format(sql.Composed(sums), target)
            found = warehouse.execute(query).fetchone() or (0,)
            rows, totals = found[0], dict(zip(money, found[1:], strict=True))
    violations: Counter[str] = Counter()
    for batch in batches:
        violations.update(batch.violations)
    loaded = [batch.partition_key for batch in batches if batch.loaded_hash is not None]
    newest = max(loaded, default=None)
    return TableStatus(
        relation=contract.target_relation,
        closed=len(closed),
        loaded=len(loaded),
        newest=newest,
        behind=sum(newest is None or day > newest for day in closed),
        extracted=sum(batch.rows_extracted for batch in batches),
        quarantined=sum(batch.rows_quarantined for batch in batches),
        violations=dict(violations.most_common()),
        held={
            batch.partition_key: batch.broken_rules
            for batch in batches
            if batch.verdict == "failed"
        },
        rows=rows,
        totals={name: total or Decimal(0) for name, total in totals.items()},
    )
