"""What is removed once it is old, and what never is.

Never removed: materializations, check results, runs with their outcome, and the ledger. Without them a
partition would look missing, and be loaded again. `resources/dagster_instance.py` prunes Dagster's own
storage, this module the project's files and tables.

A quarantined row loses its content but stays in its table. Reconciliation compares the source with warehouse
and quarantine together: were the row deleted, its day would be out of step for as long as the source has the
row, and every tick of the sensor would load the day and quarantine the row anew. That comparison needs key
and version, so they stay, with the rules that the row broke. The row itself is removed when the source
changes and its day is loaded again. A held day keeps everything: somebody has yet to look at it.
"""

import shutil
from datetime import date, datetime, timedelta
from pathlib import Path

import psycopg
from psycopg import sql

from pipeline_assets.quality.ddl import exist

REPRODUCIBLE = ("raw_", "validated_")
"""Layers whose files a run of the day makes again from source or archive. Others are kept: a training
snapshot says what a model was trained on."""


def cutoff(now: datetime, days: int) -> datetime:
    """The moment before which something is old enough to be removed."""
    return now - timedelta(days=days)


def remove_archive(archive: Path, before: datetime) -> int:
    """Remove the raw answers of days before a moment; returns how many days.

    The archive has a folder per provider, and in it one per day.
    """
    removed = 0
    for shelf in archive.glob("*/*/"):
        if _is_day(shelf.name) and shelf.name < before.date().isoformat():
            shutil.rmtree(shelf)
            removed += 1
    return removed


def empty_quarantine(warehouse: psycopg.Connection, before: datetime) -> int:
    """Empty the content of rows quarantined before a moment; returns how many.

    They keep their partition, key, version and broken rules. Rows of held partitions aren't touched.
    """
    emptied = 0
    for name in _quarantined_tables(warehouse):
        emptied += warehouse.execute(
            sql.SQL(
                "UPDATE {} AS q SET source_row = '{{}}' WHERE quarantined_at < %s"
                " AND source_row <> '{{}}' AND NOT EXISTS (SELECT FROM pipeline.batches AS b"
                " WHERE b.table_name = %s AND b.partition_key = q.partition_key"
                " AND b.verdict = 'failed')"
            ).format(sql.Identifier("quarantine", name)),
            [before, name],
        ).rowcount
    return emptied


def ledger_keys(warehouse: psycopg.Connection) -> set[str]:
    """Every partition in the ledger, as `ledger table/partition`; the proof that none was lost."""
    if not exist(warehouse, ["pipeline.batches"]):
        return set()
    rows = warehouse.execute(
        "SELECT 'ledger ' || table_name || '/' || partition_key FROM pipeline.batches"
    )
    return {key for (key,) in rows}


def _quarantined_tables(warehouse: psycopg.Connection) -> list[str]:
    if not exist(warehouse, ["pipeline.batches"]):
        return []
    rows = warehouse.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'quarantine' ORDER BY tablename"
    )
    return [name for (name,) in rows]


def _is_day(name: str) -> bool:
    try:
        date.fromisoformat(name)
    except ValueError:
        return False
    return True
